"""Recipro-CAM and Ablation-CAM: against slow twins, by the identities, and without asking more than they must."""

from collections.abc import Callable

import nets
import pytest
import torch
from fingerprint import untouched
from replicas import apart
from replicas_mask import Score, ablationcam, reciprocam
from torch import Tensor, nn

import camlucida as cl
from camlucida.errors import MethodError
from camlucida.methods.ask import _gains
from camlucida.registry import get

ASKING = ["reciprocam", "ablationcam"]
every_method = pytest.mark.parametrize("method", ASKING)
every_space = pytest.mark.parametrize("dims", [1, 2, 3], ids=["1d", "2d", "3d"])
CURVED = {"smooth": nets.smooth_tail, "piecewise": nets.biased_tail}
PROVED = {"gap": nets.gap_linear, "flatten": nets.flatten_linear, "nin": nets.nin}


def mapped(net: nets.Net, x: Tensor, method: str, target: object = 1) -> Tensor:
    return cl.explain(net, x, target=target, method=method, layer=net.layer).map


def tail_of(net: nets.Net, k: int = 1) -> Score:
    def y(act: Tensor) -> float:
        with torch.no_grad():
            return net.tail(act[None])[0, k].item()

    return y


def small(build: Callable[..., nets.Net], dims: int) -> nets.Net:
    """The net with a picture of few places, so that loops over them end."""
    net = build(dims)
    if build is not nets.flatten_linear:
        net.shape = (2, *{1: (7,), 2: (4, 5), 3: (4, 4, 5)}[dims])
    return net


def signed(build: Callable[..., nets.Net], dims: int) -> nets.Net:
    return small(build, dims) if build is nets.smooth_tail else build(dims, last=nn.Identity())


# --------------------------------------------------------------------------------------------------------- slow twins


@every_space
@pytest.mark.parametrize("kind", [*CURVED, "gap", "flatten"])
@pytest.mark.parametrize("how", ["", ":baseline=false", ":gaussian=true", ":baseline=false:gaussian=true"])
def test_reciprocam_is_the_score_of_each_place_alone(kind: str, dims: int, how: str) -> None:
    net = small({**CURVED, **PROVED}[kind], dims)
    x = net.x(1 if dims == 3 else 2)
    found = mapped(net, x, "reciprocam" + how)
    for i in range(len(x)):
        twin = reciprocam(net.act(x)[i], tail_of(net), "baseline" not in how, "gaussian" in how)
        assert apart(found[i], twin) < 1e-11


@every_space
@pytest.mark.parametrize("kind", [*CURVED, *PROVED])
@pytest.mark.parametrize("how", ["", ":relative=true", ":calibrated=true", ":calibrated=true:relative=true"])
def test_ablationcam_weighs_by_the_drop_without_a_channel(kind: str, dims: int, how: str) -> None:
    net = small({**CURVED, **PROVED}[kind], dims)
    x = net.x(2, seed=3)
    found = mapped(net, x, "ablationcam" + how)
    for i in range(2):
        assert apart(found[i], ablationcam(net.act(x)[i], tail_of(net), "relative" in how, "calibrated" in how)) < 1e-11


@every_method
def test_channels_last_and_tokens_are_asked_in_their_own_shape(method: str) -> None:
    """By a twin that edits the layer's output where it lies, and runs the whole net."""
    twin = {"reciprocam": reciprocam, "ablationcam": ablationcam}[method]
    for net in (nets.channels_last_net(), nets.token_net(2), nets.token_net(0, "mean")):
        x, kept = net.x(1), []
        layer = dict(net.named_modules())[net.layer]
        with layer.register_forward_hook(lambda m, a, made, kept=kept: kept.append(made.detach())), torch.no_grad():
            net(x)
        grid, raw = getattr(net, "grid", (4, 5)), kept[0]
        tokens = raw.dim() == 3
        act = (raw[0, net.prefix :].T.reshape(-1, *grid) if tokens else raw[0].movedim(-1, 0)).clone()

        def y(other: Tensor, net: nets.Net = net, raw: Tensor = raw, tokens: bool = tokens, layer=layer, x=x) -> float:
            made = raw.clone()
            if tokens:
                made[0, net.prefix :] = other.flatten(1).T
            else:
                made[0] = other.movedim(0, -1)
            with layer.register_forward_hook(lambda m, a, out: made), torch.no_grad():
                return net(x)[0, 1].item()

        assert apart(mapped(net, x, method)[0], twin(act, y)) < 1e-10, type(net)


# --------------------------------------------------------------------------------------------------------- identities


@every_space
def test_p13_reciprocam_of_a_pooled_linear_head_is_cam_over_the_places(dims: int) -> None:
    net = nets.gap_linear(dims)
    x = net.x(2)
    places = net.act(x)[0, 0].numel()
    assert apart(places * mapped(net, x, "reciprocam"), mapped(net, x, "cam")) < 1e-12
    bias = net.head.bias[1].item()
    assert apart(places * (mapped(net, x, "reciprocam:baseline=false") - bias), mapped(net, x, "cam")) < 1e-11


@every_space
def test_p13_reciprocam_of_one_linear_layer_is_hirescam(dims: int) -> None:
    net = signed(nets.flatten_linear, dims)
    assert apart(mapped(net, net.x(2), "reciprocam"), mapped(net, net.x(2), "hirescam")) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_p14_reciprocam_is_exactly_zero_where_the_model_is_blind(dtype: torch.dtype) -> None:
    net = nets.blind_tail().to(dtype)
    mask = net.tail[0].mask > 0
    with torch.no_grad():
        net.tail[-1].bias.fill_(1e3)  # rounding of a large score is no evidence
    found = mapped(net, net.x(3), "reciprocam")
    assert (found[:, ~mask] == 0).all() and (found[:, mask] != 0).any()


def test_reciprocam_takes_rounding_of_a_large_score_for_nothing() -> None:
    scores = torch.tensor([[1e3 + 6.2e-5, 1e3 + 0.5, 1e3], [1e-3 + 1e-5, 0.0, 1e-3]])
    found = _gains(scores)
    assert found[0].tolist() == [0.0, 0.5], "one unit in the last place"
    assert found[1, 0] > 9e-6 and found[1, 1] < -9e-4, "each score by its own size"


@every_space
def test_p8_calibrated_ablationcam_is_gradcam_at_a_pool_and_xgradcam_at_a_linear_layer(dims: int) -> None:
    gap, flat = signed(nets.gap_linear, dims), signed(nets.flatten_linear, dims)
    x = gap.x(2)
    assert apart(mapped(gap, x, "ablationcam:calibrated=true"), mapped(gap, x, "gradcam")) < 1e-11
    assert apart(mapped(flat, x, "ablationcam:calibrated=true"), mapped(flat, x, "xgradcam")) < 1e-11
    raw = mapped(gap, x, "ablationcam")
    grad = mapped(gap, x, "gradcam")
    assert apart(raw / raw.abs().max(), grad / grad.abs().max()) > 1e-2, "the drops themselves are other weights"


def edited(net: nets.Net, order: list[int], scale: list[float]) -> nets.Net:
    """The same function of the input: channels put in another order, repeated, and rescaled, undone by the head."""
    conv, head = net.features[2], net.tail[-1]
    share = torch.tensor([order.count(k) for k in order], dtype=torch.float64)
    t = torch.tensor(scale, dtype=torch.float64)
    wide = nn.Conv2d(3, len(order), 3, padding=1).double()
    linear = nn.Linear(len(order), nets.CLASSES).double()
    with torch.no_grad():
        wide.weight.copy_(conv.weight[order] * t[:, None, None, None])
        wide.bias.copy_(conv.bias[order] * t)
        linear.weight.copy_(head.weight[:, order] / (t * share))
        linear.bias.copy_(head.bias)
    features = nn.Sequential(*net.features[:2], wide, nn.ReLU())
    tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    return nets.Net(features, tail, net.shape).eval()


def curved(net: nets.Net) -> nets.Net:
    """With an even, curved function of the logits behind, so that no closed form is found."""
    net.tail.append(nn.SiLU())
    return net


@pytest.mark.parametrize("last", [lambda n: n, curved], ids=["closed form", "asked"])
def test_p20_what_is_no_change_of_the_function_changes_no_map_that_promises_it(last: Callable[..., nets.Net]) -> None:
    base = last(nets.gap_linear())
    x, ones = base.x(2), [1.0] * 4
    order, split = edited(nets.gap_linear(), [2, 0, 3, 1], ones), edited(nets.gap_linear(), [0, 1, 1, 2, 3], [1.0] * 5)
    scaled = edited(nets.gap_linear(), [0, 1, 2, 3], [0.01, 7.0, 1.0, 30.0])
    for method in ("reciprocam", "ablationcam", "ablationcam:calibrated=true"):
        before = mapped(base, x, method)
        assert apart(mapped(last(order), x, method), before) < 1e-10
        order.tail = order.tail[:3]
        after = mapped(last(scaled), x, method)
        scaled.tail = scaled.tail[:3]
        assert apart(after, before) < 1e-10 if method != "ablationcam" else apart(after, before) > 0.1
    if last is not curved:
        for method in ("reciprocam", "ablationcam", "ablationcam:calibrated=true"):
            assert apart(mapped(split, x, method), mapped(base, x, method)) < 1e-10


# ------------------------------------------------------------------------------------------------ what the peers do


def test_a_negative_score_does_not_turn_ablationcam_over_but_where_it_is_asked_to() -> None:
    net = nets.smooth_tail()
    x = net.x(1)
    before = mapped(net, x, "ablationcam")
    with torch.no_grad():
        net.tail[-1].bias.sub_(100)
    assert apart(mapped(net, x, "ablationcam"), before) < 1e-9
    assert apart(mapped(net, x, "ablationcam:relative=true"), before / net(x)[0, 1].item()) < 1e-9


def test_an_ablated_channel_is_zero_and_not_far_below_its_least_value() -> None:
    net = nets.smooth_tail()  # signed: GELU
    seen: list[Tensor] = []
    x = net.x(1)
    with net.tail[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].detach().clone())):
        mapped(net, x, "ablationcam")
    act = net.act(x)
    assert act.min() < 0
    rows = seen[-1][1:-1]  # the first and the last are the undisturbed activation
    for k, row in enumerate(rows):
        assert (row[k] == 0).all()
        assert torch.equal(torch.cat([row[:k], row[k + 1 :]]), torch.cat([act[0, :k], act[0, k + 1 :]]))


def test_only_what_follows_the_layer_is_run_again_and_dead_channels_are_not_asked_for() -> None:
    net = nets.biased_tail()
    with torch.no_grad():
        net.features[2].bias[1] = -1e3  # dead behind the ReLU
    rows: list[int] = []
    before: list[int] = []
    x = net.x(1)
    expected = ablationcam(net.act(x)[0], tail_of(net))
    with (
        net.tail[0].register_forward_hook(lambda m, a, made: rows.append(len(made))),
        net.features[0].register_forward_hook(lambda m, a, made: before.append(len(made))),
    ):
        assert apart(mapped(net, x, "ablationcam")[0], expected) < 1e-11
    assert rows == [1, 3 + 2, 1], "three live channels, the undisturbed activation at both ends; and where cells look"
    assert before == [1, 1, 1], "the picture enters once a chunk, and once to see where the cells look"


@every_method
def test_closed_forms_run_the_model_once(method: str) -> None:
    net = nets.flatten_linear()
    runs: list[int] = []
    with net.register_forward_hook(lambda m, a, made: runs.append(len(made))):
        for extra in ("", ":baseline=false" if method == "reciprocam" else ":relative=true"):
            net_map = mapped(net, net.x(2), method + extra)
            assert net_map.isfinite().all()
    one = len(runs)
    with net.register_forward_hook(lambda m, a, made: runs.append(len(made))):
        for _ in range(2):
            mapped(net, net.x(2), "gradcam")
    assert one <= len(runs) - one + 6 and max(runs) <= 2  # a proof of linearity, but no row a channel or a place


# ------------------------------------------------------------------------------------------------------------ contract


@every_method
def test_many_targets_are_many_single_ones_and_a_batch_its_pictures(method: str) -> None:
    net = nets.smooth_tail()
    x = net.x(3)
    found = cl.sweep(net, x, targets=[0, 3], methods=[method], layers=[net.layer])
    for e, k in zip(found, (0, 3), strict=True):
        for i in range(3):
            one = cl.explain(net, x[i : i + 1], target=k, method=method, layer=net.layer).map[0]
            assert apart(e.map[i], one) < 1e-11


@every_method
@pytest.mark.parametrize(("dtype", "slack"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15)])
def test_lower_precisions_give_single_precision_maps_near_the_truth(
    method: str, dtype: torch.dtype, slack: float
) -> None:
    net = nets.smooth_tail()
    x = net.x(2)
    truth = mapped(net, x, method)
    found = mapped(net.to(dtype), x.to(dtype), method)
    assert found.dtype == torch.float32 and apart(found, truth) < slack


@every_method
def test_operations_in_place_change_no_map(method: str) -> None:
    for layer in nets.TWIN_LAYERS:
        one, two = (cl.explain(n, n.x(2), target=1, method=method, layer=layer).map for n in nets.inplace_pair())
        assert apart(one, two) < 1e-12, layer


@every_method
def test_a_picture_of_one_channel_and_an_activation_of_zeros(method: str) -> None:
    net = nets.seeded(nets.Net(nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU()), nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.SiLU(), nn.Flatten(), nn.Linear(2 * 3 * 4, nets.CLASSES)), (1, 6, 7)), 1)  # fmt: skip
    x = net.x(1)
    twin = {"reciprocam": reciprocam, "ablationcam": ablationcam}[method]
    assert apart(mapped(net, x, method)[0], twin(net.act(x)[0], tail_of(net))) < 1e-11
    with torch.no_grad():
        net.features[0].bias.fill_(-1e3)
    e = cl.explain(net, x, target=1, method=method, layer="features")
    assert (e.map == 0).all() and e.status == "no evidence"


@every_method
@pytest.mark.parametrize("build", [nets.smooth_tail, nets.gap_linear], ids=["asked", "closed form"])
def test_a_picture_of_nan_is_told_and_leaves_its_neighbour_alone(method: str, build: Callable[[], nets.Net]) -> None:
    net = build()
    x = net.x(2)
    good = mapped(net, x, method)[1]
    x[0] = float("nan")
    e = cl.explain(net, x, target=1, method=method, layer=net.layer)
    assert e.statuses == ("non-finite", "ok") and apart(e.map[1], good) < 1e-12


@every_method
def test_the_model_is_as_it_was_after_a_call_and_after_a_failure(method: str) -> None:
    net = nets.smooth_tail().train()
    with untouched(net):
        mapped(net, net.x(2), method)

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 1:
                raise ValueError("too many")
            return x

    net.tail.insert(0, Fails())
    with untouched(net), pytest.raises(ValueError, match="too many"):
        mapped(net, net.x(1), method)


@every_method
def test_options_are_told_and_checked(method: str) -> None:
    known = {
        "reciprocam": {"baseline": True, "gaussian": False},
        "ablationcam": {"calibrated": False, "relative": False},
    }
    assert get(method).choices == known[method]
    with pytest.raises(MethodError, match="bool"):
        get(method).having(**{next(iter(known[method])): 1})
    net = nets.smooth_tail()
    e = cl.explain(net, net.x(1), target=1, method=f"{method}:{next(iter(known[method]))}=false", layer=net.layer)
    assert e.facts.method == f"{method}:{next(iter(known[method]))}=False" and e.facts.paper in (
        "byun2022",
        "desai2020",
    )
