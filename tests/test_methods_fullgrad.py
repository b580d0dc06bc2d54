"""FullGrad against its slow twin, its completeness through every kind of bias, and the peers' fault in rescaling."""

from collections.abc import Callable

import nets
import pytest
import torch
import torch.nn.functional as F
from fingerprint import untouched
from replicas import apart, numbers, places, slow_gradient
from replicas_pixel import fullgrad as twin
from replicas_pixel import slow_pixels, spread
from test_scorer import subject
from torch import Tensor, nn

import camlucida as cl
from camlucida.core.biases import Bias, biases
from camlucida.core.layouts import channels_first
from camlucida.errors import MethodError
from camlucida.methods.fullgrad import completeness, rescaled
from camlucida.registry import get

CLASS = 1


def explained(net: nn.Module, x: Tensor, method: str = "fullgrad", **more: object) -> Tensor:
    return cl.explain(net, x, target=CLASS, method=method, **more).map  # type: ignore[arg-type]


def small(dims: int) -> nets.Net:
    """Two convolutions and a BatchNorm, of several resolutions, over a space small enough for the twin."""
    conv, norm, pool = (getattr(nn, f"{kind}{dims}d") for kind in ("Conv", "BatchNorm", "AdaptiveAvgPool"))
    features = nn.Sequential(conv(2, 3, 2, padding=1), norm(3), nn.ReLU())
    tail = nn.Sequential(conv(3, 2, 2, stride=2), nn.LeakyReLU(0.1), pool(1), nn.Flatten(), nn.Linear(2, nets.CLASSES))
    return nets.seeded(nets.Net(features, tail, (2, *{1: (6,), 2: (4, 5), 3: (3, 4, 3)}[dims])), 6)


def added(layer: nn.Module) -> Tensor:
    """What a layer adds, a number a channel, from its definition."""
    if getattr(layer, "running_mean", None) is None:
        return layer.bias.detach()
    of = (t.tolist() for t in (layer.weight, layer.bias, layer.running_mean, layer.running_var))
    return torch.tensor(
        [b - m * g / (v + layer.eps) ** 0.5 for g, b, m, v in zip(*of, strict=True)], dtype=torch.float64
    )


def slow_terms(net: nets.Net, x: Tensor, layers: list[nn.Module]) -> list[Tensor]:
    """Input times gradient, and each bias times the gradient where it is added, by finite differences."""
    found = [(slow_pixels(lambda v: net(v)[:, CLASS], x) * x)[0]]
    for layer in layers:
        grad = slow_gradient(net, layer, x, lambda y: y[:, CLASS])[0]
        bias, made = numbers(added(layer)), torch.zeros_like(grad)
        for at in places(grad.shape):
            made[at] = bias[at[:1]] * grad[at]
        found.append(made)
    return found


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_fullgrad_equals_the_twin(dims: int) -> None:
    net = small(dims)
    x = net.x(1)
    terms = slow_terms(net, x, [net.features[0], net.features[1], net.tail[0]])
    assert all(t.abs().max() > 1e-4 for t in terms)
    assert apart(explained(net, x)[0], twin(terms, x.shape[2:])) < 1e-5


def test_rescaling_one_channel_at_a_time_is_another_map() -> None:
    """The peers' fault: it lifts every channel to one, however little it adds."""
    net = small(2)
    x = net.x(1)
    terms = slow_terms(net, x, [net.features[0], net.features[1], net.tail[0]])
    wrong = torch.zeros(x.shape[2:], dtype=torch.float64)
    for term in terms:
        for channel in term:
            wrong += twin([channel[None]], x.shape[2:])
    assert torch.corrcoef(torch.stack([explained(net, x).flatten(), wrong.flatten()]))[0, 1] < 0.98
    assert apart(explained(net, x)[0], wrong) > 0.05


def test_rescaled_looks_at_the_whole_layer() -> None:
    term = torch.tensor([[1.0, -2.0], [3.0, 5.0]])
    assert rescaled(term).tolist() == [[0.0, 0.25], [0.5, 1.0]]
    assert rescaled(torch.full((2, 3), -4.0)).abs().max() == 0 and rescaled(torch.zeros(2, 3)).abs().max() == 0
    assert rescaled(term * 1e-30).isfinite().all() and apart(rescaled(term * -7), rescaled(term)) < 1e-6


# ------------------------------------------------------------------------------------------------- completeness, P7


def gap(net: nets.Net, layer: str, x: Tensor | None = None, targets: object = (cl.classes(1), cl.classes(3))) -> float:
    x = net.x(2) if x is None else x
    if layer == "input":
        about = subject(net, x, list(targets), "features")  # type: ignore[call-overload]
        about = type(about)(net, about.inputs, "input", about.layout, x, about.targets, about.picked, about.scores)
    else:
        about = subject(net, x, list(targets), layer)  # type: ignore[call-overload]
    return max(apart(completeness(one), one.base) for one in (about.picture(0), about.picture(1)))


LINEAR: dict[str, Callable[[int], nets.Net]] = {
    "gap_linear": nets.gap_linear, "flatten_linear": nets.flatten_linear, "nin": nets.nin,
    "relu_tail": nets.relu_tail, "biased_tail": nets.biased_tail, "small": small,
}  # fmt: skip


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("layer", ["input", "features"])
@pytest.mark.parametrize("name", LINEAR)
def test_terms_sum_to_the_score(name: str, layer: str, dims: int) -> None:
    assert gap(LINEAR[name](dims), layer) < 1e-10


@pytest.mark.parametrize("layer", ["input", "features", "features.2.conv1"])
def test_terms_sum_to_the_score_in_place_and_not(layer: str) -> None:
    def straight(net: nets.Net) -> nets.Net:
        net.tail[3] = nn.ReLU(inplace=net.tail[1].inplace)  # in place of SiLU, which is curved
        return net

    one, two = (straight(net) for net in nets.inplace_pair())
    x = one.x(2)
    assert gap(one, layer) < 1e-10 and gap(two, layer) < 1e-10
    assert torch.equal(explained(one, x, layer=layer), explained(two, x, layer=layer))


class Joined(nn.BatchNorm2d):
    """Normalisation and rectifier in one module, the latter in place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu_()


class Frozen(nn.Module):
    """A normalisation written as a product and a sum with buffers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(1, width, 1, 1))
        self.register_buffer("shift", torch.randn(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Plain(nn.Module):
    """Functions with weights of their own, constants on either side, sums in place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 3, 1, 1)), nn.Parameter(torch.randn(3))
        self.place = nn.Parameter(torch.randn(1, 1, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, bias=self.bias) - 0.3
        x = self.place + x
        x += 0.2
        x.sub_(self.bias[:, None, None])
        x = 1 - x
        x = self.place - x + self.place[..., :1].relu() * 2
        return torch.add(x, x.flip(-1)) + x


class Reused(nn.Module):
    """One layer run twice: each time it adds its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x).relu())


KINDS: dict[str, Callable[[], nn.Module]] = {
    "joined": lambda: Joined(3), "frozen": lambda: Frozen(3), "plain functions": Plain, "reused": Reused,
    "transposed": lambda: nn.ConvTranspose2d(3, 3, 3, padding=1), "no affine": lambda: nn.BatchNorm2d(3, affine=False),
    "own statistics tracked": lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    "circular": lambda: nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"),
    "no bias": lambda: nn.Conv2d(3, 3, 1, bias=False),
    "batch norm function": lambda: _Function(),
}  # fmt: skip


class _Function(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        return torch.batch_norm(x, n.weight, n.bias, n.running_mean, n.running_var, False, 0.0, n.eps, False)


def holding(middle: nn.Module) -> nets.Net:
    features = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), middle, nn.ReLU())
    tail = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, nets.CLASSES))
    return nets.seeded(nets.Net(features, tail, (2, 5, 6)), 8)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_bias_counts(name: str) -> None:
    net = holding(KINDS[name]())
    assert gap(net, "input") < 1e-10
    assert (explained(net, net.x(2), "fullgrad:strict=true") > 0).any()


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 3), nn.LayerNorm([3, 5, 6]), nn.InstanceNorm2d(3, affine=True)])
def test_biases_of_normalisations_with_statistics_of_their_own_are_noted(norm: nn.Module) -> None:
    """Such a layer is curved, so that the terms need not sum to the score; its β is a bias all the same."""
    norm = nets.seeded(nets.Net(norm, nn.Identity(), (3, 5, 6)), 2).features
    x, found = torch.randn(1, 3, 5, 6, dtype=torch.float64, requires_grad=True), []
    with biases(found):
        y = norm(x * 1)
    if norm.bias.dim() == 1:
        (bias,) = found
        assert isinstance(bias, Bias) and bias.axis == 1 and apart(bias.bias.flatten(), norm.bias) == 0
        assert apart(bias.bias + F.group_norm(x, 1 if isinstance(norm, nn.GroupNorm) else 3, norm.weight), y) < 1e-4
    else:
        assert not found  # one number a place and channel: no bias of channels


def test_bias_of_a_linear_layer_over_places_lies_at_its_places() -> None:
    net = nets.channels_last_net()
    x, found = net.x(1).requires_grad_(), []
    with biases(found):
        net(x * 1)
    found = [b for b in found if not b.curved]
    assert [b.axis for b in found] == [1, -1, -1, -1]
    assert [tuple(b.made.shape) for b in found] == [(1, 12, 4, 5), (1, 4, 5, 12), (1, 4, 5, 12), (1, 5)]
    assert apart(found[2].bias.flatten(), net.features[3].bias) == 0


def test_strict_refuses_what_does_not_sum_to_the_score() -> None:
    net = nets.channels_last_net()
    x = net.x(1)
    with pytest.raises(MethodError, match=r"affine layers.*miss it by.*'integratedgradients'"):
        explained(net, x, "fullgrad:strict=true")
    assert explained(net, x).isfinite().all()
    with pytest.raises(MethodError, match=r"affine layers"):
        cl.explain(small(2), small(2).x(1), target=cl.classes(1, score="probability"), method="fullgrad:strict=true")


BENT: dict[str, Callable[[], nn.Module]] = {
    "ReLU6": nn.ReLU6, "GELU": nn.GELU, "tanh GELU": lambda: nn.GELU("tanh"), "SiLU": nn.SiLU, "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh, "hard swish": nn.Hardswish, "ELU": nn.ELU, "softplus": nn.Softplus, "Mish": nn.Mish,
    "SiLU in place": lambda: nn.SiLU(inplace=True), "ReLU6 in place": lambda: nn.ReLU6(inplace=True),
    "leaky": lambda: nn.LeakyReLU(0.2), "PReLU": nn.PReLU, "hardtanh": nn.Hardtanh, "SELU": nn.SELU, "CELU": nn.CELU,
    "log sigmoid": nn.LogSigmoid, "hard sigmoid": nn.Hardsigmoid, "threshold": lambda: nn.Threshold(0.1, 0.7),
}  # fmt: skip


@pytest.mark.parametrize("name", BENT)
def test_tangents_of_nonlinearities_count_in_the_sum(name: str) -> None:
    net = holding(nn.Sequential(nn.Conv2d(3, 3, 1), BENT[name](), nn.Conv2d(3, 3, 1)))
    x = net.x(2) * 4
    assert gap(net, "input", x) < 1e-10
    assert gap(nets.smooth_tail(2), "input") < 1e-10
    pair = [explained(net, x, f"fullgrad:implicit={i}") for i in (False, True)]
    assert (apart(*pair) == 0) == (name in ("leaky", "PReLU"))


def test_implicit_adds_what_a_nonlinearity_adds_to_its_tangent() -> None:
    net = holding(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh()))
    x = net.x(1)
    act: list[Tensor] = []
    with net.features[2][0].register_forward_hook(lambda m, a, made: act.append(made.detach())):
        net(x)
    grad = slow_gradient(net, net.features[2][1], x, lambda y: y[:, CLASS])
    term = ((act[0].tanh() - (1 - act[0].tanh() ** 2) * act[0]) * grad)[0]
    more = explained(net, x, "fullgrad:implicit=true")[0] - explained(net, x)[0]
    assert apart(more, twin([term], (5, 6))) < 1e-5


# ------------------------------------------------------------------------------------------- layers, layouts, the rest


def test_at_a_layer_it_is_the_same_of_what_follows() -> None:
    net = small(2)
    x = net.x(1)
    act = net.act(x)
    grads = [slow_gradient(net, m, x, lambda y: y[:, CLASS])[0] for m in (net.features, net.tail[0])]
    terms = [act[0] * grads[0], grads[1] * net.tail[0].bias.detach()[:, None, None]]
    assert apart(explained(net, x, layer=("features", channels_first))[0], twin(terms, act.shape[2:])) < 1e-5


def test_channels_last_terms_lie_the_right_way_round() -> None:
    net = nets.channels_last_net()
    x = net.x(1)
    grads = [
        slow_gradient(net, m, x, lambda y: y[:, CLASS])[0] for m in (net.features[1], net.features[2], net.features[3])
    ]
    terms = [net.features[1](net.features[0](x))[0].movedim(-1, 0) * grads[0].movedim(-1, 0)]
    terms += [(g * m.bias).movedim(-1, 0) for g, m in zip(grads[1:], (net.features[2], net.features[3]), strict=True)]
    assert apart(explained(net, x, layer="features.1")[0], twin([t.detach() for t in terms], (4, 5))) < 1e-5
    assert explained(net, x).shape == (1, 8, 10)


def test_tokens_are_read_as_the_layers_own_and_refused_elsewhere() -> None:
    net = nets.token_net(2, "mean")
    x = net.x(1)
    with pytest.raises(MethodError, match=r"tokens or windows \(1, \d+, \d+\).*'gradcam'"):
        explained(net, x)
    assert explained(net, x, layer="blocks.0").shape == (1, *net.grid)
    norm = explained(net, x, layer="norm")  # only a mean and a linear layer follow: the one term with places is A ⊙ G
    act: list[Tensor] = []
    handle = net.norm.register_forward_hook(lambda m, a, made: act.append(made.detach()))
    net(x)
    handle.remove()
    grad = slow_gradient(net, net.norm, x, lambda y: y[:, CLASS])
    term = (act[0] * grad)[0, net.prefix :].T.reshape(-1, *net.grid)
    assert apart(norm[0], twin([term], net.grid)) < 1e-5


def test_batch_is_a_stack_of_singles_and_targets_are_told_apart() -> None:
    net = nets.biased_tail()
    x = net.x(3)
    whole = cl.sweep(net, x, targets=[0, 1, 2], methods=["fullgrad"])
    for k, e in enumerate(whole):
        assert (e.map >= 0).all() and e.status == "ok"
        for i in range(3):
            one = cl.explain(net, x[i : i + 1], target=k, method="fullgrad").map
            assert apart(e.map[i : i + 1], one) < 1e-12
    assert apart(whole[0].map, whole[1].map) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_models_have_single_precision_maps(dtype: torch.dtype) -> None:
    net = nets.biased_tail().to(dtype)
    found = explained(net, net.x(1))
    wide = nets.biased_tail().to(dtype).double()
    assert found.dtype == torch.float32 and apart(found, explained(wide, net.x(1).double())) < (
        1e-4 if dtype == torch.float32 else 0.3
    )


def test_degenerate_pictures() -> None:
    net = nets.biased_tail()
    for value in (0.0, 1.0, -1e4):
        assert explained(net, torch.full_like(net.x(1), value)).isfinite().all()
    x = net.x(2)
    x[1, 0, 0, 0] = float("nan")
    e = cl.explain(net, x, target=CLASS, method="fullgrad")
    assert e.statuses == ("ok", "non-finite") and apart(e.map[:1], explained(net, x[:1])) < 1e-12


class Breaks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise KeyError("broken")
        return x


@pytest.mark.parametrize("fault", [None, KeyError, MethodError])
def test_no_trace_is_left(fault: type[Exception] | None) -> None:
    net = (nets.channels_last_net() if fault is MethodError else nets.biased_tail()).train()
    x = net.x(1)
    net.tail.append(Breaks() if fault is KeyError else nn.Identity())
    with untouched(net), torch.inference_mode():
        if fault is None:
            explained(net, x, "fullgrad:strict=true")
            return
        with pytest.raises(fault):
            explained(net, x, "fullgrad:strict=true")
        if fault is KeyError:
            net.tail[-1].calls = 0


def test_registry_says_what_is_shown() -> None:
    assert not get("fullgrad").homogeneous and "strict" in get("fullgrad").choices
    assert spread(torch.eye(2), (2, 2)).tolist() == [[1, 0], [0, 1]]
