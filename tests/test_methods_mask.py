"""Methods that show the picture through masks: against slow twins, by what must be exact, and within their memory."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nets
import pytest
import replicas_mask as twins
import torch
from fingerprint import untouched
from replicas import apart
from torch import Tensor, nn

import camlucida as cl
from camlucida.core import chunks
from camlucida.core import scorer as scorer_
from camlucida.core.capture import Inputs
from camlucida.core.layouts import channels_first
from camlucida.core.scorer import PictureScorer
from camlucida.errors import MethodError
from camlucida.methods import _masks, occlude
from camlucida.methods.occlude import Grids, rise_with_error
from camlucida.registry import get

BY_CHANNEL = ["scorecam", "fasterscorecam:channels=3", "groupcam:groups=3", "opticam:steps=4"]
AT_INPUT = ["occlusion:window=3:stride=2", "rise:samples=70:grid=3"]
every_method = pytest.mark.parametrize("method", [*BY_CHANNEL, *AT_INPUT])
by_channel = pytest.mark.parametrize("method", BY_CHANNEL)
every_space = pytest.mark.parametrize("dims", [1, 2, 3], ids=["1d", "2d", "3d"])
SHAPES = {1: (2, 11), 2: (2, 7, 8), 3: (2, 4, 5, 6)}


def net_of(dims: int = 2, last: nn.Module | None = None, channels: int = 5, seed: int = 4) -> nets.Net:
    """A layer at half the resolution of the picture, a curved tail."""
    conv, pool = getattr(nn, f"Conv{dims}d"), getattr(nn, f"AdaptiveAvgPool{dims}d")
    features = nn.Sequential(conv(2, 3, 3, stride=2, padding=1), nn.SiLU(), conv(3, channels, 3, padding=1),
                             last or nn.SiLU())  # fmt: skip
    tail = nn.Sequential(conv(channels, 3, 2), nn.SiLU(), pool(1), nn.Flatten(), nn.Linear(3, nets.CLASSES))
    return nets.seeded(nets.Net(features, tail, SHAPES[dims]), seed, gain=2.0)


def mapped(net: nets.Net, x: Tensor, method: Any, target: object = 1, layer: Any = None) -> Tensor:
    return cl.explain(net, x, target=target, method=method, layer=layer).map


def at(net: nets.Net, x: Tensor, method: Any, target: object = 1) -> Tensor:
    return mapped(net, x, method, target, net.layer)


def score_of(net: nets.Net, k: int = 1) -> twins.Score:
    def y(x: Tensor) -> float:
        with torch.no_grad():
            return net(x[None])[0, k].item()

    return y


def tail_of(net: nets.Net, k: int = 1) -> twins.Score:
    def y(act: Tensor) -> float:
        with torch.no_grad():
            return net.tail(act[None])[0, k].item()

    return y


def slope_of(net: nets.Net, act: Tensor, k: int = 1) -> Tensor:
    act = act[None].clone().requires_grad_()
    return torch.autograd.grad(net.tail(act)[0, k], act)[0][0]


@contextmanager
def rows_of(module: nn.Module) -> Iterator[list[int]]:
    seen: list[int] = []
    with module.register_forward_hook(lambda m, a, made: seen.append(len(made))):
        yield seen


# --------------------------------------------------------------------------------------------------------- slow twins


@every_space
@pytest.mark.parametrize("weigh", ["softmax", "gain", "score"])
@pytest.mark.parametrize("fill", [0.0, -1.5])
def test_scorecam_is_the_papers(dims: int, weigh: str, fill: float) -> None:
    net = net_of(dims)
    x = net.x(2)
    found = at(net, x, get("scorecam").having(weigh=weigh, fill=fill))
    for i in range(2):
        assert apart(found[i], twins.scorecam(x[i], net.act(x)[i], score_of(net), weigh, fill)) < 1e-11


@every_space
def test_scorecam_counts_constant_channels_as_the_paper_does(dims: int) -> None:
    """One that is zero everywhere adds to the softmax, one that is constant to the map, too; neither has a mask."""
    net = net_of(dims, nn.ReLU())
    with torch.no_grad():
        net.features[2].bias[1] = -1e3
        net.features[2].weight[2] = 0
        net.features[2].bias[2] = 0.7
    x = net.x(1)
    for weigh in ("softmax", "gain", "score"):
        twin = twins.scorecam(x[0], net.act(x)[0], score_of(net), weigh)
        assert apart(at(net, x, f"scorecam:weigh={weigh}")[0], twin) < 1e-11


@every_space
@pytest.mark.parametrize("channels", [1, 3, 99])
def test_faster_scorecam_takes_the_channels_that_vary_most(dims: int, channels: int) -> None:
    net = net_of(dims)
    x = net.x(2)
    found = at(net, x, f"fasterscorecam:channels={channels}")
    for i in range(2):
        assert apart(found[i], twins.fasterscorecam(x[i], net.act(x)[i], score_of(net), channels)) < 1e-11
    if channels == 99:
        assert apart(found, at(net, x, "scorecam")) < 1e-12


@every_space
@pytest.mark.parametrize("groups", [1, 2, 3, 5, 32])
def test_groupcam_is_the_papers(dims: int, groups: int) -> None:
    net = net_of(dims)
    x = net.x(1)
    act = net.act(x)[0]
    twin = twins.groupcam(x[0], act, slope_of(net, act), score_of(net), groups)
    assert apart(at(net, x, f"groupcam:groups={groups}")[0], twin) < 1e-9


def test_groupcam_keeps_what_is_above_its_percentile_and_not_what_is_at_it() -> None:
    net = net_of(2)
    x = net.x(1)
    assert (at(net, x, "groupcam:above=100.0") == 0).all(), "nothing is above the largest"
    counts = [int((at(net, x, f"groupcam:groups=1:above={q}") != 0).sum()) for q in (60.0, 80.0)]
    assert counts == [6, 3], "of 16 places; the 60th percentile is the tenth smallest itself"


@every_space
def test_opticam_climbs_as_torchs_own_adam_does(dims: int) -> None:
    net = net_of(dims)
    x = net.x(2)
    found = at(net, x, "opticam:steps=12")
    for i in range(2):
        twin = twins.opticam(x[i], net.act(x)[i], lambda p: net(p[None])[0, 1], 12)
        assert apart(found[i], twin) < 1e-8
    assert apart(at(net, x, "opticam:steps=12:rate=0.3"), found) > 1e-3


@every_space
@pytest.mark.parametrize(("window", "stride", "fill"), [(3, 2, 0.0), (2, 2, 1.5), (1, 1, 0.0), (99, 1, 0.0)])
def test_occlusion_is_the_mean_drop_of_the_windows_that_cover_a_place(
    dims: int, window: int, stride: int, fill: float
) -> None:
    net = net_of(dims)
    x = net.x(1)
    asked = get("occlusion").having(window=window, stride=stride, fill=fill)
    assert apart(mapped(net, x, asked)[0], twins.occlusion(x[0], score_of(net), window, stride, fill)) < 1e-11
    act = net.act(x)[0]
    assert apart(at(net, x, asked)[0], twins.occlusion(act, tail_of(net), window, stride, fill)) < 1e-11


@every_space
def test_rise_and_its_error_are_the_papers(dims: int) -> None:
    net = net_of(dims)
    x = net.x(1)
    twin, error = twins.rise(x[0], score_of(net), 70, 3)
    assert apart(mapped(net, x, "rise:samples=70:grid=3:show=paper")[0], twin) < 1e-11
    plain = rise_with_error(picture(net, x), samples=70, grid=3, centred=False)
    assert apart(plain.map[0], twin) < 1e-11 and apart(plain.error[0], error) < 1e-9
    middle = (score_of(net)(x[0]) + score_of(net)(torch.zeros_like(x[0]))) / 2
    centred, error = twins.rise(x[0], score_of(net), 70, 3, middle)
    assert apart(mapped(net, x, "rise:samples=70:grid=3")[0], centred) < 1e-11
    assert apart(mapped(net, x, "rise:samples=70:grid=3:show=error")[0], error) < 1e-9
    act = net.act(x)[0]
    assert apart(at(net, x, "rise:samples=20:grid=9:show=paper")[0], twins.rise(act, tail_of(net), 20, 9)[0]) < 1e-11


def test_rise_masks_are_half_on_on_average_and_no_two_alike() -> None:
    masks = Grids.drawn(3000, 4, torch.zeros(1, 10, 7), torch.Generator().manual_seed(5))
    made = masks(torch.arange(3000))
    assert 0 <= made.min() and made.max() <= 1
    assert float((made.mean(0) - 0.5).abs().max()) < 0.05, "every place is seen in half the masks"
    assert len(made.flatten(1).unique(dim=0)) > 2900


# ---------------------------------------------------------------------------------------- what the channel masks are


@by_channel
def test_channels_last_and_tokens_give_the_maps_of_their_channels(method: str) -> None:
    for net in (nets.channels_last_net(), nets.token_net(2), nets.token_net(0, "mean")):
        x = net.x(1)
        grid = getattr(net, "grid", (4, 5))
        assert at(net, x, method).shape == (1, *grid) and at(net, x, method).isfinite().all()
    net = nets.channels_last_net()
    x = net.x(1)
    act = net.act(x)[0].movedim(-1, 0)
    assert apart(at(net, x, "scorecam")[0], twins.scorecam(x[0], act, score_of(net))) < 1e-11


def test_masks_are_enlarged_first_and_normalised_after() -> None:
    """One peak cell between others: normalised first, its mask would still be scaled after enlarging (the order of
    another library); enlarged first, every mask reaches 0 and 1 on the picture itself."""
    net = net_of(2)
    seen: list[Tensor] = []
    x = net.x(1)
    with net.features[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].detach().clone())):
        at(net, x, "scorecam")
    shown = torch.cat(seen[:-1])[-6:]  # the last pass sees where the cells of the grid look
    for one in shown[:-1]:
        mask = (one / x[0]).mean(0)
        assert abs(float(mask.min())) < 1e-12 and abs(float(mask.max()) - 1) < 1e-12
    assert (shown[-1] == 0).all(), "the last one shows nothing"


def test_scorecam_adds_up_to_the_picture_of_its_weights() -> None:
    """Softmax weights sum to one: a layer of equal channels gives that channel."""
    net = net_of(2)
    with torch.no_grad():
        net.features[2].weight.copy_(net.features[2].weight[:1].expand_as(net.features[2].weight))
        net.features[2].bias.copy_(net.features[2].bias[:1].expand_as(net.features[2].bias))
    x = net.x(2)
    assert apart(at(net, x, "scorecam"), net.act(x)[:, 0]) < 1e-12
    assert apart(at(net, x, "opticam:steps=3"), net.act(x)[:, 0]) < 1e-12


def test_authors_variant_of_scorecam_is_a_probability_without_softmax_over_channels() -> None:
    net = net_of(2)
    x = net.x(1)
    found = at(net, x, "scorecam:weigh=score", cl.rank(1, "probability"))
    best = int(net(x).argmax())

    def p(x: Tensor) -> float:
        with torch.no_grad():
            return net(x[None])[0].softmax(0)[best].item()

    assert apart(found[0], twins.scorecam(x[0], net.act(x)[0], p, "score")) < 1e-11


def test_a_constant_added_to_the_score_changes_no_softmax_and_no_gain() -> None:
    net = net_of(2)
    x = net.x(1)
    asked = [
        "scorecam",
        "scorecam:weigh=gain",
        "groupcam:groups=3",
        "opticam:steps=3",
        "occlusion",
        "rise:samples=64",
    ]
    before = [mapped(net, x, m, layer=net.layer) for m in asked]
    with torch.no_grad():
        net.tail[-1].bias.add_(50)
    for m, b in zip(asked, before, strict=True):
        assert apart(mapped(net, x, m, layer=net.layer), b) < 1e-9, m


@pytest.mark.parametrize("method", ["scorecam", "scorecam:weigh=gain", "fasterscorecam:channels=3", "opticam:steps=5"])
def test_p20_order_of_channels_changes_nothing_but_rescaling_them_does(method: str) -> None:
    net, other = net_of(2), net_of(2)
    x = net.x(2)
    order = [3, 0, 4, 1, 2]
    with torch.no_grad():
        other.features[2].weight.copy_(net.features[2].weight[order])
        other.features[2].bias.copy_(net.features[2].bias[order])
        other.tail[0].weight.copy_(net.tail[0].weight[:, order])
    assert apart(other(x), net(x)) < 1e-12
    assert apart(at(other, x, method), at(net, x, method)) < 1e-9
    lin, scaled = net_of(2, nn.ReLU()), net_of(2, nn.ReLU())
    t = torch.tensor([0.2, 5.0, 1.0, 3.0, 0.5], dtype=torch.float64)
    with torch.no_grad():
        scaled.features[2].weight.mul_(t[:, None, None, None])
        scaled.features[2].bias.mul_(t)
        scaled.tail[0].weight.div_(t[:, None, None])
    assert apart(scaled(x), lin(x)) < 1e-12
    assert apart(at(scaled, x, method), at(lin, x, method)) > 1e-2, (
        "said in the literature: weights do not scale as 1/t"
    )


def test_opticam_raises_the_score_of_the_masked_picture() -> None:
    net = net_of(2)
    x = net.x(1)

    def through(m: Tensor) -> float:
        return score_of(net)(twins.masked(x[0], twins.unit(twins.enlarged(m[0], x.shape[2:]))))

    few, many = (through(at(net, x, f"opticam:steps={n}")) for n in (1, 60))
    assert many > few + 1e-3
    assert "average drop" in (get("opticam").read.__doc__ or "") and "average drop" in get("opticam").deviations


def test_opticam_of_dead_channels_is_that_of_the_live_ones_up_to_a_factor() -> None:
    net = net_of(2, nn.ReLU())
    with torch.no_grad():
        net.features[2].bias[1] = -1e3
    x = net.x(1)
    act = net.act(x)[0]
    twin = twins.opticam(x[0], act[[0, 2, 3, 4]], lambda p: net(p[None])[0, 1], 8)
    found = at(net, x, "opticam:steps=8")[0]
    assert apart(found / found.max(), twin / twin.max()) < 1e-9


# ----------------------------------------------------------------------------------------------- occlusion and RISE


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_p14_occlusion_is_exactly_zero_where_the_model_is_blind(dtype: torch.dtype) -> None:
    net = nets.blind_tail().to(dtype)
    mask = net.tail[0].mask > 0
    found = at(net, net.x(3), "occlusion:window=1:stride=1")
    assert (found[:, ~mask] == 0).all() and (found[:, mask] != 0).any()


def test_occlusion_of_single_places_at_a_linear_head_is_hirescam() -> None:
    net = nets.flatten_linear(2, last=nn.Identity())
    x = net.x(2)
    assert apart(at(net, x, "occlusion:window=1:stride=1"), at(net, x, "hirescam")) < 1e-11


def test_occlusion_works_at_the_input_unless_a_layer_is_named() -> None:
    net = net_of(2)
    x = net.x(1)
    e = cl.explain(net, x, target=1, method="occlusion")
    assert e.layer == "input" and e.map.shape == (1, 7, 8)
    with rows_of(net.features[0]) as rows:
        assert mapped(net, x, "occlusion:window=2:stride=2").shape == (1, 7, 8)
    assert sum(rows) == 1 + 4 * 4, "the last window is moved to the edge"
    assert apart(mapped(net, x, "occlusion"), twins.occlusion(x[0], score_of(net), 1, 1)[None]) < 1e-11


def test_default_windows_are_an_eighth_of_each_axis_and_half_apart() -> None:
    net = nets.smooth_tail()
    net.shape = (2, 32, 16)
    x = net.x(1)
    with rows_of(net) as rows:
        mapped(net, x, "occlusion")
    assert sum(rows) == 1 + 15 * 15


class Linear(nn.Module):
    """``y = Σ w x + b``: what RISE's expectation is known for."""

    def __init__(self, space: tuple[int, ...]) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(3, 2, *space, generator=draw, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("kc...,bc...->bk", self.w, x)


def test_rise_is_unbiased_and_its_error_is_the_spread_of_its_runs() -> None:
    """Every mask there is, against runs with seeds of their own."""
    net = Linear((6,)).eval()
    x = torch.randn(1, 2, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    lines = []
    for cells in range(2**3):
        on = torch.tensor([[cells >> j & 1 for j in range(3)]], dtype=torch.float64)
        big = twins.enlarged(on[0], [8])
        lines += [[big[(shift + j,)] for j in range(6)] for shift in range(2)]
    masks = torch.tensor(lines, dtype=torch.float64)
    y = torch.einsum("c n, m n -> m", (net.w[1] * x[0]).detach(), masks)
    truth, centred = (y[:, None] * masks / 0.5).mean(0), ((y - 3)[:, None] * (masks - 0.5) / 0.5).mean(0)
    runs: dict[bool, list[Any]] = {False: [], True: []}
    for seed in range(60):
        for kind in runs:
            runs[kind].append(rise_with_error(picture(net, x, seed), samples=300, grid=3, centred=kind))
    for kind, expected in ((False, truth), (True, centred)):
        maps = torch.stack([r.map[0] for r in runs[kind]])
        told = torch.stack([r.error[0] for r in runs[kind]]).mean(0)
        error = maps.std(0)
        assert ((maps.mean(0) - expected).abs() < 4 * error / math.sqrt(60)).all()
        assert ((error / told - 1).abs() < 0.35).all()


def picture(net: nn.Module, x: Tensor, seed: int = 0, layer: str = "input") -> PictureScorer:
    """The scorer of one picture, drawing with a seed of its own."""
    asked = [cl.classes(1)]
    with torch.no_grad():
        y = net(x)
    about = scorer_.Subject(net, Inputs((x,)), layer, channels_first, x, asked, [asked[0].pick(y)], y[:, [1]].T)
    one = about.picture(0)
    one.random.manual_seed(seed)
    return one


def test_rise_ends_early_once_its_error_is_small_enough() -> None:
    net = net_of(2)
    x = net.x(1)
    one = picture(net, x)
    whole = rise_with_error(one, samples=1000, grid=3)
    flat = whole.map.flatten()
    within = float(whole.error.mean() / (flat.max() - flat.min()))
    soon = rise_with_error(picture(net, x), samples=1000, grid=3, stop=1.4 * within)
    late = rise_with_error(picture(net, x), samples=1000, grid=3, stop=within / 2)
    assert whole.samples == late.samples == 1000 and torch.equal(whole.map, late.map)
    assert 128 <= soon.samples <= 900 and soon.samples % occlude._BLOCK == 0
    assert float(soon.error.mean()) <= 1.4 * within * float(soon.map.max() - soon.map.min())
    with rows_of(net) as rows:
        mapped(net, x, get("rise").having(samples=1000, grid=3, stop=1.4 * within))
    assert sum(rows) == 1 + 1 + soon.samples, "the covered picture once"


def test_rise_of_a_score_that_does_not_move_is_flat_where_it_is_centred() -> None:
    net = net_of(2)
    with torch.no_grad():
        net.tail[-1].weight.zero_()
    e = cl.explain(net, net.x(1), target=1, method="rise:samples=64")
    assert (e.map == 0).all() and e.status == "no evidence"
    assert cl.explain(net, net.x(1), target=1, method="occlusion").status == "no evidence"


def test_rise_draws_the_same_masks_for_every_picture_and_leaves_everybodys_numbers_alone() -> None:
    net = net_of(2)
    x = net.x(1).repeat(2, 1, 1, 1)
    before = torch.random.get_rng_state()
    found = mapped(net, x, "rise:samples=30")
    again = mapped(net, x, "rise:samples=30")
    assert apart(found[0], found[1]) < 1e-12 and torch.equal(found, again)
    assert torch.equal(before, torch.random.get_rng_state())


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("channels", [5, 40])
def test_masks_are_made_a_chunk_at_a_time_however_many_channels_there_are(
    monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    net = net_of(2, channels=channels)
    x = net.x(1)
    expected = at(net, x, "scorecam"), at(net, x, "groupcam")
    monkeypatch.setattr(chunks, "CHUNK_BYTES", scorer_._WHOLE * x.numel() * 8 * 6)
    made: list[int] = []
    real = _masks.unit
    monkeypatch.setattr(_masks, "unit", lambda maps: made.append(len(maps)) or real(maps))
    with rows_of(net.features[0]) as rows:
        assert apart(at(net, x, "scorecam"), expected[0]) < 1e-12
    assert max(rows) <= 6 and sum(rows) == 1 + channels + 1
    assert max(made) <= 6 and channels <= sum(made) <= channels + 1, "one more where a faster body is proved"
    made.clear()
    assert apart(at(net, x, "groupcam"), expected[1]) < 1e-11 and max(made) <= 6


def test_covers_are_made_a_chunk_at_a_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    net = net_of(2)
    x = net.x(1)
    expected = mapped(net, x, "rise:samples=130:grid=3"), mapped(net, x, "occlusion:window=2:stride=1")
    monkeypatch.setattr(chunks, "CHUNK_BYTES", scorer_._WHOLE * x.numel() * 8 * 6)
    with rows_of(net) as rows:
        assert apart(mapped(net, x, "rise:samples=130:grid=3"), expected[0]) < 1e-12
        assert apart(mapped(net, x, "occlusion:window=2:stride=1"), expected[1]) < 1e-12
    assert max(rows) <= 6


def test_rise_is_the_same_when_memory_runs_out_on_its_way() -> None:
    net = net_of(2)
    x = net.x(1)
    expected = mapped(net, x, "rise:samples=100:grid=3")
    sizes: list[int] = []

    def scarce(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        sizes.append(len(args[0]))
        if len(args[0]) > 9:
            raise torch.OutOfMemoryError("no")

    with net.features[0].register_forward_pre_hook(scarce):
        assert apart(mapped(net, x, "rise:samples=100:grid=3"), expected) < 1e-12
    assert max(sizes) > 9 and min(sizes) < 9


def test_dead_channels_are_not_asked_for() -> None:
    net = net_of(2, nn.ReLU(), channels=9)
    with torch.no_grad():
        net.features[2].bias[[1, 4, 5, 8]] = -1e3
    x = net.x(1)
    live = int((net.act(x)[0].flatten(1).amax(1) > 0).sum())
    assert live == 5
    with rows_of(net.features[0]) as rows:
        at(net, x, "scorecam")
    assert sum(rows) == 1 + live + 1 + 1, "and one pass sees where the cells of the grid look"
    with rows_of(net.features[0]) as rows:
        at(net, x, "groupcam:groups=9")
    assert sum(rows) <= 1 + 1 + live + 1


# ----------------------------------------------------------------------------------------------------------- contract


@every_method
def test_many_targets_are_many_single_ones_and_a_batch_its_pictures(method: str) -> None:
    net = net_of(2)
    x = net.x(3)
    layer = None if method in AT_INPUT else net.layer
    found = cl.sweep(net, x, targets=[0, 3, 1], methods=[method], layers=[layer])
    for e, k in zip(found, (0, 3, 1), strict=True):
        for i in range(3):
            assert apart(e.map[i], mapped(net, x[i : i + 1], method, k, layer)[0]) < 1e-9, (k, i)


@every_method
@pytest.mark.parametrize(("dtype", "slack"), [(torch.float32, 1e-3), (torch.bfloat16, 0.3)])
def test_lower_precisions_give_single_precision_maps_near_the_truth(
    method: str, dtype: torch.dtype, slack: float
) -> None:
    net = net_of(2)
    x = net.x(2)
    truth = at(net, x, method)
    found = at(net.to(dtype), x.to(dtype), method)
    assert truth.dtype == torch.float64 and found.dtype == torch.float32 and apart(found, truth) < slack


@every_method
def test_operations_in_place_change_no_map(method: str) -> None:
    for layer in ("features.1", "features.2.relu1", "features", "tail.0"):
        one, two = (mapped(n, n.x(2), method, layer=layer) for n in nets.inplace_pair())
        assert apart(one, two) < 1e-10, layer


@every_method
def test_a_picture_of_one_channel_a_constant_one_and_an_activation_of_zeros(method: str) -> None:
    net = nets.seeded(nets.Net(nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU()), nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.SiLU(), nn.Flatten(), nn.Linear(2 * 3 * 4, nets.CLASSES)), (1, 6, 7)), 1)  # fmt: skip
    x = net.x(1)
    assert at(net, x, method).isfinite().all()
    assert at(net, torch.ones_like(x), method).isfinite().all()
    with torch.no_grad():
        net.features[0].bias.fill_(-1e3)
    e = cl.explain(net, x, target=1, method=method, layer="features")
    assert e.map.isfinite().all()
    if method in BY_CHANNEL:
        assert (e.map == 0).all() and e.status == "no evidence"


@every_method
def test_a_picture_of_nan_is_told_and_leaves_its_neighbour_alone(method: str) -> None:
    net = net_of(2)
    x = net.x(2)
    good = at(net, x, method)[1]
    x[0] = float("nan")
    e = cl.explain(net, x, target=1, method=method, layer=net.layer)
    assert e.statuses[0] == "non-finite" != e.statuses[1] and apart(e.map[1], good) < 1e-12


@every_method
def test_the_model_is_as_it_was_after_a_call_and_after_a_failure(method: str) -> None:
    net = net_of(2).train()
    layer = None if method in AT_INPUT else net.layer
    x = net.x(2)
    with untouched(net):
        kept = x.clone()
        mapped(net, x, method, layer=layer)
        assert torch.equal(x, kept)
    runs: list[int] = []

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            runs.append(len(x))
            if len(runs) > 2:
                raise ValueError("enough")
            return x

    net.tail.insert(0, Fails())
    with untouched(net), pytest.raises(ValueError, match="enough"):
        mapped(net, net.x(2), method, layer=layer)


@every_method
def test_frozen_models_and_callers_without_gradients_get_the_same_map(method: str) -> None:
    net = net_of(2)
    x = net.x(1)
    expected = at(net, x, method)
    net.requires_grad_(False)
    with torch.no_grad():
        assert apart(at(net, x, method), expected) < 1e-12
    with torch.inference_mode():
        assert apart(at(net, x.clone(), method), expected) < 1e-12


REFUSED: list[tuple[str, str]] = [
    ("scorecam:weigh=mean", "weigh is one of 'softmax', 'gain', 'score'; got 'mean'"),
    ("fasterscorecam:channels=0", "Faster Score-CAM: channels is 1 or more; got 0"),
    ("groupcam:groups=0", "Group-CAM: groups is 1 or more; got 0"),
    ("groupcam:above=101.0", "Group-CAM: above is 0 to 100; got 101"),
    ("groupcam:blur=0", "Group-CAM: blur is 1 or more; got 0"),
    ("groupcam:sigma=0.0", "Group-CAM: sigma is 1e-06 or more; got 0"),
    ("opticam:steps=0", "Opti-CAM: steps is 1 or more; got 0"),
    ("occlusion:window=2:stride=3", "windows of 2 that are 3 apart leave places uncovered: take stride=2 or less"),
    ("occlusion:window=-1", "Occlusion: window is 0 or more; got -1"),
    ("occlusion:stride=-1", "Occlusion: stride is 0 or more; got -1"),
    ("rise:samples=1", "RISE: samples is 2 or more; got 1"),
    ("rise:grid=1", "RISE: grid is 2 or more; got 1"),
    ("rise:show=all", "RISE: show is one of 'centred', 'paper', 'error'; got 'all'"),
]


@pytest.mark.parametrize(("method", "told"), REFUSED, ids=[m for m, _ in REFUSED])
def test_options_out_of_range_are_errors_that_say_the_range(method: str, told: str) -> None:
    net = net_of(2)
    with pytest.raises(MethodError, match=told):
        at(net, net.x(1), method)


@by_channel
def test_a_layer_with_other_axes_than_the_picture_is_refused(method: str) -> None:
    net = net_of(2)
    net.features.append(nn.Flatten(2))
    net.tail.insert(0, nn.Unflatten(2, (4, 4)))
    with pytest.raises(MethodError, match="1 axes of space over the picture's 2"):
        mapped(net, net.x(1), method, layer=(net.features, cl.channels_first))


def test_facts_are_those_of_the_papers() -> None:
    papers = {
        "scorecam": "wang2020", "fasterscorecam": "tabayashi2020", "groupcam": "zhang2021", "opticam": "zhang2023",
        "occlusion": "zeiler2014", "rise": "petsiuk2018",
    }  # fmt: skip
    for name, paper in papers.items():
        method = get(name)
        assert method.paper == paper and f"[{paper}]" in (method.read.__doc__ or "") and method.needs == "model"
        assert method.at == ("input" if name in ("occlusion", "rise") else "layer")
