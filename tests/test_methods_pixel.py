"""Gradients at the pixels: against slow twins, in any number of dimensions, at any layer, and where none applies."""

import threading
from collections.abc import Callable

import nets
import pytest
import torch
import torch.nn.functional as F
from fingerprint import untouched
from replicas import apart, gradcam, slow_gradient
from replicas_pixel import integrated, over_channels, ruled, slow_pixels, spread
from torch import Tensor, nn

import camlucida as cl
from camlucida.errors import MethodError
from camlucida.registry import get

PIXELS = ("gradient", "gradientxinput", "guidedbackprop", "deconvnet", "smoothgrad", "integratedgradients")
RULED = {"guidedbackprop": "guided", "deconvnet": "deconv"}
FEW = {"smoothgrad": "smoothgrad:samples=3", "integratedgradients": "integratedgradients:steps=3"}
ALL = [FEW.get(n, n) for n in (*PIXELS, "guidedgradcam")]
CLASS = 1
every_dimension = pytest.mark.parametrize("dims", [1, 2, 3])
every = pytest.mark.parametrize("method", ALL)


def rectified(dims: int = 2, cap: bool = False, seed: int = 5) -> nets.Net:
    """Affine layers and rectifiers one after the other; a small space, for the twins are slow."""
    conv, pool = getattr(nn, f"Conv{dims}d"), getattr(nn, f"AdaptiveAvgPool{dims}d")
    norm = getattr(nn, f"BatchNorm{dims}d")
    features = nn.Sequential(
        conv(2, 3, 2, padding=1), norm(3), nn.ReLU6() if cap else nn.ReLU(), conv(3, 4, 2), nn.ReLU()
    )
    tail = nn.Sequential(pool(1), nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, nets.CLASSES))
    net = nets.seeded(nets.Net(features, tail, (2, *{1: (6,), 2: (3, 4), 3: (2, 3, 2)}[dims])), seed, gain=2.0)
    if cap:
        with torch.no_grad():
            net.features[1].weight.mul_(9)
    return net


def score(net: nets.Net, k: int = CLASS) -> Callable[[Tensor], Tensor]:
    return lambda x: net(x)[:, k]


def explained(net: nn.Module, x: Tensor, method: str, **more: object) -> Tensor:
    return cl.explain(net, x, target=CLASS, method=method, **more).map  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- slow twins


@every_dimension
@pytest.mark.parametrize("signed", [False, True])
def test_gradient_equals_finite_differences(dims: int, signed: bool) -> None:
    net = nets.smooth_tail(dims) if dims < 3 else rectified(3)
    x = net.x(1)
    twin = over_channels(slow_pixels(score(net), x), signed)
    assert apart(explained(net, x, f"gradient:signed={signed}"), twin) < 1e-6


@every_dimension
def test_gradient_times_input_equals_finite_differences(dims: int) -> None:
    net = nets.smooth_tail(dims) if dims < 3 else rectified(3)
    x = net.x(1)
    assert apart(explained(net, x, "gradientxinput"), over_channels(slow_pixels(score(net), x) * x, True)) < 1e-6


@every_dimension
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("cap", [False, True])
@pytest.mark.parametrize("method", RULED)
def test_ruled_gradient_equals_the_twin_layer_by_layer(method: str, cap: bool, signed: bool, dims: int) -> None:
    net = rectified(dims, cap)
    layers = [*net.features, *net.tail]
    for seed in (1, 2):
        x = net.x(1, seed)
        back, plain = (ruled(layers, x, CLASS, rule) for rule in (RULED[method], ""))
        assert apart(plain, slow_pixels(score(net), x)) < 1e-6, "the twin is no gradient without a rule"
        assert apart(back, plain) > 1e-3, "the rule changes nothing here, so that nothing is proved"
        assert apart(explained(net, x, f"{method}:signed={signed}"), over_channels(back, signed)) < 1e-10


@every_dimension
@pytest.mark.parametrize("signed", [False, True])
def test_guided_gradcam_equals_its_two_twins_multiplied(dims: int, signed: bool) -> None:
    drawn = ((net, net.x(1)) for net in (rectified(dims, seed=s) for s in range(40)))
    net, x = next(d for d in drawn if float(explained(*d, "guidedgradcam", layer="features").max()) > 1e-3)
    act = net.act(x)
    coarse = gradcam(act, slow_gradient(net, net.features, x, lambda y: y[:, CLASS]))[0].clamp(min=0)
    fine = ruled([*net.features, *net.tail], x, CLASS, "guided") * spread(coarse, x.shape[2:])
    found = explained(net, x, f"guidedgradcam:signed={signed}", layer="features")
    assert found.shape[1:] == x.shape[2:] and apart(found, over_channels(fine, signed)) < 1e-6
    assert found.abs().max() > 0


@pytest.mark.parametrize("signed", [False, True])
def test_smoothgrad_is_the_mean_over_its_noisy_pictures(signed: bool) -> None:
    net = nets.smooth_tail(1)
    x = net.x(2)
    found = explained(net, x, f"smoothgrad:samples=4:noise=0.3:signed={signed}")
    for i in range(2):
        draw, one, total = torch.Generator().manual_seed(0), x[i : i + 1], 0
        for _ in range(4):
            noise = torch.randn(one.shape[1:], generator=draw).double()
            total = total + slow_pixels(score(net), one + 0.3 * float(one.max() - one.min()) * noise) / 4
        assert apart(found[i : i + 1], over_channels(total, signed)) < 1e-6


def test_smoothgrad_defaults_are_those_of_the_paper() -> None:
    assert get("smoothgrad").choices == {"samples": 25, "noise": 0.15, "signed": False}
    net = nets.smooth_tail()
    x = net.x(1)
    assert apart(explained(net, x, "smoothgrad:noise=0.0"), explained(net, x, "gradient")) < 1e-12
    assert apart(explained(net, x, "smoothgrad"), explained(net, x, "gradient")) > 1e-3


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_integrated_gradients_equal_the_twin(baseline: str) -> None:
    net = nets.smooth_tail(1)
    x = net.x(1)
    start = torch.zeros_like(x) if baseline == "zero" else x.mean(2, keepdim=True).expand_as(x)
    found = explained(net, x, f"integratedgradients:steps=5:baseline={baseline}")
    assert apart(found, integrated(score(net), x, start, 5)) < 1e-6


# --------------------------------------------------------------------------------------------------------- identities


@every_dimension
@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_integrated_gradients_sum_to_the_difference(dims: int, baseline: str) -> None:
    """P17: at a smooth layer it converges with the square of the step."""
    net = nets.smooth_tail(dims)
    x = net.x(2)

    def gap(steps: int, layer: str) -> float:
        a = x if layer == "input" else net.act(x)
        start = (
            torch.zeros_like(a)
            if baseline == "zero"
            else a.flatten(2).mean(2).reshape(2, -1, *(1,) * dims).expand_as(a)
        )
        with torch.no_grad():
            after = net.tail if layer == "features" else net
            want = (after(a) - after(start))[:, CLASS]
        how = f"integratedgradients:steps={steps}:baseline={baseline}"
        return apart(explained(net, x, how, layer=layer).flatten(1).sum(1), want)

    assert gap(64, "features") < 1e-4 and gap(64, "features") < gap(8, "features") / 30
    assert (
        gap(256, "input") < 1e-2 and gap(256, "input") < gap(4, "input") / 5
    )  # a ReLU on the way: a kink converges slower


@pytest.mark.parametrize("make", [nets.gap_linear, nets.flatten_linear])
def test_integrated_gradients_of_an_affine_tail_are_exact_in_one_step(make: Callable[[], nets.Net]) -> None:
    net = make()
    x = net.x(2)
    found = explained(net, x, "integratedgradients:steps=1", layer=net.layer)
    with torch.no_grad():
        want = (net(x) - net.tail(torch.zeros_like(net.act(x))))[:, CLASS]
    assert apart(found.flatten(1).sum(1), want) < 1e-12
    assert apart(found, explained(net, x, "hirescam", layer=net.layer)) < 1e-12


def test_gradient_times_input_is_hirescam_and_sums_to_the_score_without_biases() -> None:
    net = nets.relu_tail()
    x = net.x(2)
    assert (
        apart(explained(net, x, "gradientxinput", layer="features"), explained(net, x, "hirescam", layer="features"))
        < 1e-12
    )
    found = explained(net, x, "gradientxinput", layer="features").flatten(1).sum(1)
    assert apart(found, net(x)[:, CLASS]) < 1e-12  # P5


def test_rules_change_nothing_where_no_gradient_is_negative() -> None:
    net = nets.rising_tail()
    x = net.x(2)
    for method in RULED:
        assert apart(*(explained(net, x, f"{m}:signed=true", layer="features") for m in (method, "gradient"))) < 1e-12


@pytest.mark.parametrize("method", RULED)
def test_rules_act_on_what_follows_the_layer(method: str) -> None:
    net = rectified()
    x = net.x(1)
    act = net.act(x)
    back = ruled([*net.tail], act, CLASS, RULED[method])
    assert apart(explained(net, x, method, layer="features"), over_channels(back)) < 1e-10


def test_magnitudes_are_never_negative_and_sums_are_signed() -> None:
    net = rectified()
    x = net.x(2)
    for name, method in get_signed().items():
        assert (explained(net, x, name) >= 0).all()
        found = explained(net, x, f"{name}:signed=true")
        assert (found < 0).any() and (found > 0).any() and (found.abs() <= 2 * explained(net, x, name) + 1e-12).all()
        assert method.having(signed=True).label == f"{name}:signed=True"


def get_signed() -> dict[str, object]:
    return {n: get(n) for n in ("gradient", "guidedbackprop", "deconvnet", "guidedgradcam", "smoothgrad")}


# ------------------------------------------------------------------------------------------- whatever the model is like


@every
@every_dimension
def test_maps_lie_at_the_input_and_are_those_of_single_pictures(method: str, dims: int) -> None:
    net = rectified(dims)
    x = net.x(3)
    whole = cl.explain(
        net, x, target=cl.classes([2, 0, 1]), method=method, layer="features" if "cam" in method else None
    )
    assert whole.map.shape == (3, *x.shape[2:]) and whole.map.dtype == torch.float64 and whole.map.isfinite().all()
    assert whole.layer == ("features" if "cam" in method else "input")
    for i, k in enumerate([2, 0, 1]):
        one = cl.explain(net, x[i : i + 1], target=k, method=method, layer=whole.layer)
        assert float((whole.map[i] - one.map[0]).abs().max()) <= 1e-12 * float(whole.map.abs().max())


@every
def test_map_asked_for_alone_is_that_of_many_targets_and_of_the_second_call(method: str) -> None:
    net = rectified()
    x = net.x(2)
    before = torch.get_rng_state()
    many = cl.sweep(net, x, targets=range(nets.CLASSES), methods=[method], layers=["features"])
    again = cl.sweep(net, x, targets=range(nets.CLASSES), methods=[method], layers=["features"])
    for k, (one, two) in enumerate(zip(many, again, strict=True)):
        assert torch.equal(one.map, two.map)
        assert apart(cl.explain(net, x, target=k, method=method, layer="features").map, one.map) < 1e-12
    assert torch.equal(before, torch.get_rng_state())


def test_samples_are_averaged_in_chunks_of_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    from camlucida.methods import pixel

    net = nets.smooth_tail()
    x = net.x(1)
    for method in ("smoothgrad:samples=7", "integratedgradients:steps=7"):
        whole = explained(net, x, method)
        monkeypatch.setattr(pixel, "_VALUES", 3 * x.numel())
        assert apart(explained(net, x, method), whole) < 1e-12
        monkeypatch.undo()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_models_have_single_precision_maps(method: str, dtype: torch.dtype) -> None:
    net = rectified().to(dtype)
    x = net.x(2)
    found = explained(net, x, method, layer="features" if "cam" in method else None)
    slack = 1e-4 if dtype == torch.float32 else 0.3
    wide = rectified().to(dtype).double()
    want = explained(wide, x.double(), method, layer="features" if "cam" in method else None)
    assert found.dtype == torch.float32 and found.isfinite().all() and apart(found, want) < slack


@every
def test_operations_in_place_change_no_map(method: str) -> None:
    one, two = nets.inplace_pair()
    x = one.x(2)
    for layer in ("input", "features.2.conv1", "features"):
        assert torch.equal(*(explained(n, x.clone(), method, layer=layer) for n in (one, two)))


@every
@pytest.mark.parametrize("layout", ["channels last", "tokens"])
def test_other_layouts_have_maps_too_or_say_that_nothing_rectifies(method: str, layout: str) -> None:
    net = nets.channels_last_net() if layout == "channels last" else nets.token_net(2, "mean")
    x = net.x(2)
    if "guided" in method or "deconv" in method:
        with pytest.raises(MethodError, match=r"no rectifier .*'gradient'"):
            explained(net, x, method, layer=net.layer)
    else:
        found, at_input = explained(net, x, method, layer=net.layer), explained(net, x, method)
        assert found.shape == (2, 4, 5 if layout == "channels last" else 6) and at_input.shape == (2, *x.shape[2:])
        assert found.abs().max() > 0 and at_input.abs().max() > 0


def test_functional_rectifiers_are_guided_as_modules_are() -> None:
    """The peers guide modules only: with their rule this net would have its plain gradient."""

    class Functional(nets.Net):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.tail(F.relu(self.features(x)).flatten(2).mean(2)))

    net = nets.seeded(Functional(nn.Conv2d(2, 4, 3), nn.Linear(4, nets.CLASSES), (2, 5, 6)), 1)
    x = net.x(1)
    layers = [net.features, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.tail, nn.ReLU()]
    for method, rule in RULED.items():
        k = int((ruled(layers, x, 0, "deconv").abs().max() == 0) or net(x)[0].argmax())
        found = cl.explain(net, x, target=k, method=method).map
        assert apart(found, over_channels(ruled(layers, x, k, rule))) < 1e-10
        assert apart(found, cl.explain(net, x, target=k, method="gradient").map) > 1e-3


# ------------------------------------------------------------------------------------------------------------- no trace


class Breaks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise KeyError("broken")
        return x


@every
def test_no_trace_is_left_after_success_and_after_an_error_of_the_model(method: str) -> None:
    net = rectified().train()
    net.tail[0].requires_grad_(False)
    net.head.weight.grad = torch.ones_like(net.head.weight)
    x = net.x(1)
    with untouched(net), torch.no_grad():
        explained(net, x, method, layer="features")
    net.tail.append(Breaks())
    asks = get(method).asks
    with untouched(net):
        if asks:
            with pytest.raises(KeyError, match="broken"):
                explained(net, x, method, layer="features")
        net.tail[-1].calls = 0
    probe = torch.tensor([1.0], requires_grad=True)
    assert torch.autograd.grad(probe.relu(), probe, torch.tensor([-1.0]))[0] == -1


def test_threads_on_one_model_do_not_mix_their_rules() -> None:
    net = rectified()
    x = net.x(1)
    want = {m: explained(net, x, m) for m in ("gradient", "guidedbackprop", "deconvnet")}
    wrong: list[str] = []

    def work(method: str) -> None:
        wrong.extend(method for _ in range(12) if not torch.equal(explained(net, x, method), want[method]))

    threads = [threading.Thread(target=work, args=(m,)) for m in want]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and len({float(m.sum()) for m in want.values()}) == 3


# ------------------------------------------------------------------------------------------------ degenerate, and no's


@every
def test_constant_black_and_broken_pictures(method: str) -> None:
    net = rectified()
    layer = "features" if "cam" in method else None
    for value in (0.0, 1.0, 1e6):
        assert explained(net, torch.full_like(net.x(1), value), method, layer=layer).isfinite().all()
    x = net.x(2)
    x[1, 0, 0, 0] = float("nan")
    e = cl.explain(net, x, target=CLASS, method=method, layer=layer)
    alone = explained(net, x[:1], method, layer=layer)
    assert float((e.map[0] - alone[0]).abs().max()) <= 1e-12 * float(alone.abs().max())
    if method != "gradient":  # it reads no number of the picture or of the score
        assert e.statuses[1] == "non-finite"


@pytest.mark.parametrize(
    ("method", "words"),
    [("smoothgrad:samples=0", "samples.*1 or more; got 0"), ("integratedgradients:steps=-2", "steps.*got -2"),
     ("integratedgradients:baseline=black", "'zero', 'mean'; got 'black'"), ("smoothgrad:noise=much", "noise is float"),
     ("gradient:signed=2", "signed is bool"), ("gradientxinput:signed=true", "no option 'signed'")],
)  # fmt: skip
def test_options_that_mean_nothing_are_errors(method: str, words: str) -> None:
    net = nets.smooth_tail()
    with pytest.raises(MethodError, match=words):
        explained(net, net.x(1), method)


def test_what_is_known_to_fail_sanity_checks_says_so() -> None:
    assert all("class" in get(n).insensitive for n in ("guidedbackprop", "deconvnet", "guidedgradcam"))
    assert all(get(n).at == "input" for n in PIXELS) and get("guidedgradcam").at == "layer"
