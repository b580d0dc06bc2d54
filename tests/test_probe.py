"""The true centres of a grid's cells: read off the graph to the pixel, remembered, and proved by patches."""

import copy
import gc
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

import camlucida as cl
from camlucida.core import probe as probe_
from camlucida.core.capture import How, Inputs, run
from camlucida.core.layers import survey
from camlucida.core.layouts import channels_first, channels_last, tokens
from camlucida.core.probe import Reach, centred, probe
from camlucida.core.trace import centres
from camlucida.maps import Centres
from camlucida.types import Layout

Window = tuple[int, int, int, int]  # kernel, stride, padding before, dilation


def kind(name: str, dims: int) -> type[nn.Module]:
    return getattr(nn, f"{name}{dims}d")


def level(net: nn.Module) -> nn.Module:
    """The net with weights that lean to no side: its windows look at their middles."""
    for p in net.parameters():
        if p.dim() > 2:
            nn.init.constant_(p, 0.1)
    return net


def seen(net: nn.Module, size: Sequence[int], layout: Layout = channels_first) -> Centres | None:
    """The centres of what a net with level weights gives, from the graph of one pass."""
    x = torch.randn(1, 2, *size, requires_grad=True)
    return centres(layout(level(net)(x.clone())), x)


def known(windows: Sequence[Window]) -> tuple[float, float]:
    """Start and stride of a row of windows in closed form."""
    start, stride = 0.5, 1.0
    for kernel, step, before, wide in windows:
        start += stride * (wide * (kernel - 1) / 2 - before)
        stride *= step
    return start, stride


# ----------------------------------------------------------------------------------------------- closed forms, one axis


class Same(nn.Module):
    """A convolution or pool padded as TensorFlow does it: so that ⌈n/stride⌉ come out, the odd pixel at the end."""

    def __init__(self, dims: int, channels: tuple[int, int], kernel: int, stride: int) -> None:
        super().__init__()
        self.conv, self.kernel, self.stride = kind("Conv", dims)(*channels, kernel, stride), kernel, stride

    def before(self, n: int) -> int:
        return max((-(-n // self.stride) - 1) * self.stride + self.kernel - n, 0) // 2

    def forward(self, x: Tensor) -> Tensor:
        sides: list[int] = []
        for n in reversed(x.shape[2:]):
            whole = max((-(-n // self.stride) - 1) * self.stride + self.kernel - n, 0)
            sides += [whole // 2, whole - whole // 2]
        return self.conv(pad(x, sides))


ROWS: dict[str, list[Window]] = {
    "padded, odd": [(3, 2, 1, 1)] * 4, "valid": [(3, 1, 0, 1), (3, 2, 0, 1), (3, 2, 0, 1)],
    "even kernels": [(2, 2, 0, 1), (4, 2, 1, 1), (2, 1, 0, 1)], "patches": [(8, 8, 0, 1)],
    "overlapping patches": [(7, 4, 3, 1), (3, 2, 1, 1)], "dilated": [(3, 1, 0, 2), (3, 2, 3, 3), (2, 2, 0, 2)],
    "wide padding": [(3, 2, 2, 1)], "large kernel": [(31, 4, 15, 1)], "one": [(1, 1, 0, 1)], "gaps": [(1, 3, 0, 1)],
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("module", ["Conv", "MaxPool", "AvgPool"])
def test_windows_in_closed_form(row: str, module: str) -> None:
    def made(k: int, s: int, p: int, d: int) -> nn.Module:
        if module == "Conv":
            return nn.Conv1d(2, 2, k, s, p, d)
        around = nn.ConstantPad1d(p, 0.0)
        return nn.Sequential(around, nn.MaxPool1d(k, s, 0, d) if module == "MaxPool" else nn.AvgPool1d(k, s))

    windows = [(k, s, p, 1) for k, s, p, _ in ROWS[row]] if module == "AvgPool" else ROWS[row]
    start, stride = known(windows)
    assert seen(nn.Sequential(*itertools.starmap(made, windows)), [80]) == Centres((start,), (stride,))


@pytest.mark.parametrize("size", [64, 65, 67, 96])
def test_padding_as_in_tensorflow_depends_on_the_size(size: int) -> None:
    windows, n = [], size
    row = [Same(1, (2, 2), k, s) for k, s in ((3, 2), (3, 1), (5, 2), (2, 2))]
    for same in row:
        windows.append((same.kernel, same.stride, same.before(n), 1))
        n = -(-n // same.stride)
    start, stride = known(windows)
    assert seen(nn.Sequential(*row), [size]) == Centres((start,), (stride,))
    assert size != 64 or start == 0.5 + 1 + 2 * 1 + 4 * 0.5


def test_a_padded_pool_and_one_that_rounds_up() -> None:
    assert seen(nn.MaxPool1d(3, 2, 1), [32]) == Centres((0.5,), (2.0,))
    assert seen(nn.MaxPool1d(3, 2, ceil_mode=True), [32]) == Centres((1.5,), (2.0,))
    assert seen(nn.AvgPool1d(4, 4), [32]) == Centres((2.0,), (4.0,))


def test_a_field_of_view_larger_than_the_picture_does_not_bend_it() -> None:
    deep = nn.Sequential(*(nn.Conv1d(2, 2, 3, 2, 1) for _ in range(4)), *(nn.Conv1d(2, 2, 3, 1, 1) for _ in range(9)))
    assert seen(deep, [96]) == Centres((0.5,), (16.0,))


# ------------------------------------------------------------------------------------------------- many axes, many ways


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_axis_by_itself(dims: int) -> None:
    kernels, strides, paddings = (3, 2, 5)[:dims], (2, 1, 3)[:dims], (1, 0, 0)[:dims]
    net = nn.Sequential(kind("Conv", dims)(2, 3, kernels, strides, paddings), nn.GELU(), kind("BatchNorm", dims)(3))
    told = [known([(k, s, p, 1)]) for k, s, p in zip(kernels, strides, paddings, strict=True)]
    assert seen(net.eval(), (16, 13, 17)[:dims]) == Centres(*zip(*told, strict=True))


def test_residual_ways_that_agree_are_one() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.way = nn.Sequential(nn.Conv2d(2, 2, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 3, 1, 1))
            self.short = nn.Conv2d(2, 2, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return (self.way(x) + self.short(x)).relu()

    assert seen(nn.Sequential(Block(), Block()), [20, 28]) == Centres((0.5, 0.5), (4.0, 4.0))


def test_a_transposed_convolution_refines_the_grid_where_each_cell_looks_at_its_own_place() -> None:
    patches = nn.Conv2d(2, 2, 8, 8)
    between = nn.Sequential(patches, nn.ConvTranspose2d(2, 2, 3, 2, 1, 1))  # from one cell, from two, from one …
    assert seen(between, [64, 48]) == Centres((4.0, 4.0), (4.0, 4.0))
    for stairs in (nn.ConvTranspose2d(2, 2, 2, 2), nn.Upsample(scale_factor=2)):  # two cells with one centre
        assert seen(nn.Sequential(patches, stairs), [64, 48]) is None


def test_blocks_that_all_look_to_one_side_look_half_as_far_as_their_branches() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.way = nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(2, 2, 2))
            nn.init.ones_(self.way[1].weight)  # type: ignore[arg-type]

        def forward(self, x: Tensor) -> Tensor:
            return x + self.way(x)

    net = nn.Sequential(nn.Conv2d(2, 2, 4, 4), *(Block() for _ in range(20)))  # beyond the edge of the picture
    assert seen(net, [64, 64]) == Centres((2.0 - 20, 2.0 - 20), (4.0, 4.0))
    net[1].way[1].weight.data *= torch.tensor([0.0, 1.0])  # as training makes up for it
    x = torch.zeros(1, 2, 64, 64, requires_grad=True)
    assert centres(net(x.clone()), x) == Centres((-18.0, -17.0), (4.0, 4.0))


class Slices(nn.Module):
    """Every second row and column, side by side in the channels: how patches are merged."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :, a::2, b::2] for a in (0, 1) for b in (0, 1)], 1)


class Unshuffled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 1, 3, 5, 2, 4).reshape(b, c * 16, h // 4, w // 4)


def test_numbers_that_only_move_are_followed() -> None:
    assert seen(nn.Sequential(nn.Conv2d(2, 2, 3, 2, 1), Slices()), [24, 32]) == Centres((1.5, 1.5), (4.0, 4.0))
    assert seen(nn.Sequential(Unshuffled(), nn.Conv2d(32, 2, 1)), [24, 32]) == Centres((2.0, 2.0), (4.0, 4.0))
    assert seen(nn.PixelUnshuffle(2), [24, 32]) == Centres((1.0, 1.0), (2.0, 2.0))
    assert seen(nn.Unfold(4, stride=4), [24, 32], lambda x: x.unflatten(2, (6, 8))) == Centres((2.0, 2.0), (4.0, 4.0))


class Gated(nn.Module):
    """Squeeze and excitation: every place is scaled by all, and all of them are added to each."""

    def __init__(self, much: float = 1.0) -> None:
        super().__init__()
        self.fc, self.much = nn.Conv2d(2, 2, 1), much

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid() + self.much * x.sum((2, 3), keepdim=True)


def test_what_mixes_all_places_does_not_hide_the_own_one() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 3, 2), Gated(), nn.Conv2d(2, 2, 3, 2), Gated(), nn.GroupNorm(1, 2))
    assert seen(net, [31, 39]) == Centres((3.5, 3.5), (4.0, 4.0))


class Mixer(nn.Module):
    """One perceptron over places, one over features."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.over, self.within, self.norm = nn.Linear(places, places), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norm(x))


class Tokens(nn.Module):
    """A stem that gives a grid, then blocks over its places as tokens, after a class token or not."""

    def __init__(self, stem: nn.Module, blocks: nn.Module, prefix: int = 0) -> None:
        super().__init__()
        self.stem, self.blocks, self.prefix = stem, blocks, prefix
        self.first = nn.Parameter(torch.zeros(1, prefix, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(torch.cat([self.first, self.stem(x).flatten(2).transpose(1, 2)], 1))


def test_tokens_of_overlapping_patches_after_attention() -> None:
    stem, blocks = nn.Conv2d(2, 6, 7, 4, 2), nn.Sequential(nets.Block(6), nets.Block(6))
    assert seen(Tokens(stem, blocks, 2), [24, 32], tokens(2, (6, 8))) == Centres((1.5, 1.5), (4.0, 4.0))
    fast = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
    assert seen(Tokens(stem, fast, 1), [24, 32], tokens(1, (6, 8))) == Centres((1.5, 1.5), (4.0, 4.0))


def test_attention_with_no_way_round_it_is_followed_by_what_asks() -> None:
    net = Tokens(nn.Conv2d(2, 6, 4, 4), nets.Attention(6))
    assert seen(net, [24, 32], tokens(0, (6, 8))) == Centres((2.0, 2.0), (4.0, 4.0))


def test_mixers_are_told_by_the_way_round() -> None:
    net = Tokens(nn.Conv2d(2, 6, 4, 4), nn.Sequential(*(Mixer(48, 6) for _ in range(8))))
    assert seen(net, [24, 32], tokens(0, (6, 8))) == Centres((2.0, 2.0), (4.0, 4.0))


class Windows(nn.Module):
    """Attention in shifted windows of 4×4, ``b h w c``, as Swin has it."""

    def __init__(self, width: int, shift: int) -> None:
        super().__init__()
        self.norm, self.attn, self.shift = nn.LayerNorm(width), nets.Attention(width), shift

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        rolled = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2))
        cut = rolled.view(b, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
        back = self.attn(cut).view(b, h // 4, w // 4, 4, 4, c).transpose(2, 3).reshape(b, h, w, c)
        return x + torch.roll(back, (self.shift, self.shift), (1, 2))


def test_shifted_windows_and_merged_patches() -> None:
    merge = nn.Sequential(nets.ToLast(), nn.LayerNorm(24), nn.Linear(24, 6))
    first = nn.Sequential(nn.Conv2d(2, 6, 2, 2), nets.ToLast(), Windows(6, 0), Windows(6, 2), First())
    net = nn.Sequential(first, Slices(), merge, Windows(6, 2))
    assert seen(net, [32, 48], channels_last) == Centres((2.0, 2.0), (4.0, 4.0))


class First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1)


# ------------------------------------------------------------------------------------------------------ what is no help


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_weights_that_lean_move_the_centres(dims: int) -> None:
    conv = kind("Conv", dims)
    net = nn.Sequential(conv(2, 3, 3, 2, 1), nn.ReLU(), conv(3, 3, 3, 1, 1), nn.ReLU())
    x = torch.randn(1, 2, *(16, 24, 12)[:dims], requires_grad=True)
    with torch.no_grad():
        for p in level(net).parameters():
            p[..., 0] = p.dim() <= 2  # of three taps along the last axis, only the later two are left
    found = centres(net(x.clone()), x)
    assert found is not None and found.stride == (2.0,) * dims
    assert found.start == pytest.approx((*(0.5,) * (dims - 1), 0.5 + 0.5 + 2 * 0.5))
    tiles = conv(2, 3, 2, 2)  # windows that do not overlap are where they are
    with torch.no_grad():
        tiles.weight[..., 0] = 0
    assert centres(tiles(x.clone()), x) == Centres((1.0,) * dims, (2.0,) * dims)


def test_of_two_ways_the_mean_lean_counts() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 2, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(x)

    net, x = nn.Sequential(Block(), nn.Conv1d(2, 2, 4, 4)), torch.randn(1, 2, 32, requires_grad=True)
    with torch.no_grad():
        net[0].conv.weight.copy_(torch.tensor([0.0, 0.0, 1.0]))
    assert centres(net(x.clone()), x) == Centres((2.5,), (4.0,))  # half the way that the branch leans


def test_numbers_do_not_matter() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 3, 3, 2, 1), nn.ReLU())
    assert seen(net, [16, 24]) == Centres((0.5, 0.5), (4.0, 4.0))
    for p in net.parameters():
        nn.init.zeros_(p)
    assert seen(net, [16, 24]) == Centres((0.5, 0.5), (4.0, 4.0))  # dead weights, no gradient anywhere
    nn.init.constant_(net[0].bias, -100.0)  # a rectifier that never opens
    assert seen(net, [16, 24]) == Centres((0.5, 0.5), (4.0, 4.0))
    x = torch.randn(1, 2, 16, 24, dtype=torch.bfloat16, requires_grad=True)
    assert centres(net.bfloat16()(x.clone()), x) == Centres((0.5, 0.5), (4.0, 4.0))
    level(net.requires_grad_(False).float())
    assert seen(net, [16, 24]) == Centres((0.5, 0.5), (4.0, 4.0))


@pytest.mark.parametrize(
    "last",
    [
        lambda x: x.transpose(2, 3),
        lambda x: x.flip(3),
        lambda x: x.flatten(2)[:, :, torch.randperm(64)].reshape(x.shape),
        lambda x: x.reshape(1, 3, 4, 16)[..., :8].reshape(1, 3, 8, 4).repeat(1, 1, 1, 2),
        lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
        lambda x: torch.fft.ifft2(torch.fft.fft2(x)).real,
        lambda x: x.detach().requires_grad_() * 2,
    ],
    ids=["transposed", "mirrored", "shuffled", "mis-shaped", "mean", "fourier", "cut off"],
)
def test_cells_on_no_regular_grid_are_not_told(last: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(1, 2, 32, 32, requires_grad=True)
    assert centres(last(nn.Conv2d(2, 3, 4, 4)(x.clone())), x) is None


class Known(torch.autograd.Function):
    """An operation whose inside autograd does not show; it changes the shape."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x[..., ::2].clone()

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return grad.repeat_interleave(2, -1)


def test_what_is_not_known_is_given_up() -> None:
    x = torch.randn(1, 2, 32, requires_grad=True)
    assert centres(Known.apply(nn.Conv1d(2, 3, 3, padding=1)(x.clone())), x) is None


# ----------------------------------------------------------------------------------------------------------- remembered


class Counted(nn.Module):
    """A net that counts its passes, three strided convolutions deep."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0
        self.body = nn.Sequential(*(m for _ in range(2) for m in (Same(2, (2, 2), 3, 2), nn.ReLU())))
        self.fc = nn.Linear(2, 4)
        level(self)

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.fc(self.body(x).mean((2, 3)))


def test_it_costs_one_pass_at_most_and_then_nothing() -> None:
    net, x = Counted().eval(), torch.randn(3, 2, 24, 32)
    first = cl.explain(net, x, target=1)
    assert net.passes == 2  # the survey, which tells the centres of its choice too, and the answer
    assert first.centres == Centres((3.5, 3.5), (4.0, 4.0))
    assert cl.explain(net, x[:1], target=2).centres == first.centres and net.passes == 3
    early = cl.explain(net, x, target=1, layer="body.1")
    assert net.passes == 5 and early.centres is None  # a quarter of a cell from an even spread: not worth leaving it
    pair = cl.sweep(net, x, targets=[1, 2], layers=["body.0", "body.2", "body.1"])
    assert net.passes == 7 and pair[0].centres == early.centres and pair[1].centres == first.centres
    cl.sweep(net, x, targets=[1, 2], layers=["body.0", "body.2", None])
    assert net.passes == 8


def test_another_size_is_another_grid() -> None:
    net = Counted().eval()
    assert cl.explain(net, torch.randn(1, 2, 24, 32), target=1).centres == Centres((3.5, 3.5), (4.0, 4.0))
    odd = cl.explain(net, torch.randn(1, 2, 25, 32), target=1).centres
    assert odd == Centres((0.5, 3.5), (4.0, 4.0))


def test_what_would_not_be_seen_stays_an_even_spread() -> None:
    conv = level(nn.Conv1d(2, 2, 3, 1, 1, bias=False))
    net = nn.Sequential(conv, nn.AdaptiveAvgPool1d(1), nn.Flatten())
    for lean, told in ((0.0, None), (0.2, None), (0.3, Centres((0.8,), (1.0,)))):
        with torch.no_grad():  # energies of 0 : 1 − lean : lean
            conv.weight.copy_(torch.tensor([0.0, (1 - lean) ** 0.5, lean**0.5]))
        found = cl.explain(copy.deepcopy(net), torch.randn(1, 2, 20), target=1, layer="0").centres
        assert (found is None) == (told is None)
        assert found is None or told is None or (*found.start, *found.stride) == pytest.approx((0.8, 1.0))


def test_no_model_is_kept_alive() -> None:
    net = Counted().eval()
    cl.explain(net, torch.randn(1, 2, 24, 32), target=1)
    assert net in probe_._KNOWN
    before = len(probe_._KNOWN)
    del net
    gc.collect()
    assert len(probe_._KNOWN) < before


def test_survey_and_a_pass_of_its_own_tell_the_same() -> None:
    net, inputs = Counted().eval(), Inputs((torch.randn(2, 2, 24, 32),))
    place = survey(net, inputs).choice
    told = centred(net, inputs, {place.name: place.layout})
    other = Counted().eval()
    assert told == centred(other, inputs, {place.name: place.layout}) == {place.name: Centres((3.5, 3.5), (4.0, 4.0))}
    assert (net.passes, other.passes) == (1, 1)


def test_layouts_of_ones_own_and_the_input_itself_are_spread_evenly() -> None:
    net, x = Counted().eval(), torch.randn(1, 2, 24, 32)
    assert cl.explain(net, x, target=1, layer=("body.2", lambda t: t)).centres is None and net.passes == 1
    assert cl.explain(net, x, target=1, layer="input").centres is None


class Moody(nn.Module):
    """A net that fails wherever gradients are recorded from the input on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 2, 3, 2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise RuntimeError("not with gradients")
        return self.fc(self.conv(x).mean((2, 3)))


def test_a_model_that_fails_in_the_pass_for_it_still_has_its_map() -> None:
    e = cl.explain(Moody(), torch.randn(1, 2, 15, 15), target=1, layer="conv")
    assert e.status == "ok" and e.centres is None and e.steps[-1].endswith("spread evenly")


# ------------------------------------------------------------------------------------------------------------ the proof


def proved(net: nn.Module, x: Tensor, name: str, layout: Layout) -> Reach | None:
    with run(net, Inputs((x,)), [name], how=How(graph=False)) as tape:
        act = layout(tape.acts[name])
    return probe(net, Inputs((x,)), name, layout, act)


class Last(nn.Module):
    """A body, something done to what it gives, and a head."""

    def __init__(self, body: nn.Module, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.after, self.last, self.fc = body, after, nn.Identity(), nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.after(self.body(x))).flatten(1))


def convolutions(dims: int) -> nn.Sequential:
    conv = kind("Conv", dims)
    return nn.Sequential(conv(2, 8, 3, 2, 1), nn.ReLU(), conv(8, 8, 3, 2, 1), nn.ReLU())


@pytest.mark.parametrize("size", [(96,), (64, 48), (24, 32, 40)], ids=str)
def test_a_right_grid_is_found_right(size: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        net = Last(level(convolutions(len(size))), lambda x: x).to(dtype)
        found = proved(net, torch.randn(2, 2, *size).to(dtype), "last", channels_first)
        assert found == Reach(True, (0.5,) * len(size), (4.0,) * len(size))


def wrong(grid: tuple[int, ...]) -> dict[str, Callable[[Tensor], Tensor]]:
    shuffle = torch.randperm(math.prod(grid), generator=torch.Generator().manual_seed(3))
    return {
        "transposed": lambda x: x.transpose(-1, -2),
        "mirrored": lambda x: x.flip(-1),
        "shuffled": lambda x: x.flatten(2)[..., shuffle].reshape(x.shape),
        "mis-shaped": lambda x: x.flatten(2).reshape(*x.shape[:2], grid[1], grid[0]).transpose(-1, -2),
        "channels for rows": lambda x: x.transpose(1, 2),
    }


@pytest.mark.parametrize("how", ["transposed", "mirrored", "shuffled", "mis-shaped", "channels for rows"])
def test_a_wrong_grid_is_found_wrong(how: str) -> None:
    size = (64, 64) if how in ("transposed", "channels for rows") else (64, 96)
    body = convolutions(2) if how != "channels for rows" else nn.Sequential(convolutions(2), nn.Conv2d(8, 16, 1))
    net = Last(body, wrong(tuple(n // 4 for n in size))[how])
    found = proved(net, torch.randn(1, 2, *size), "last", channels_first)
    assert found is None or not found.right


def test_tokens_read_one_place_off_are_found_wrong() -> None:
    net = Last(Tokens(nn.Conv2d(2, 6, 8, 8), nets.Block(6), 1), lambda x: x)
    x = torch.randn(1, 2, 64, 64)
    found = proved(net, x, "last", tokens(1, (8, 8)))
    assert found == Reach(True, (4.0, 4.0), (8.0, 8.0))

    def off(t: Tensor) -> Tensor:
        return t[:, :-1].movedim(-1, 1).reshape(len(t), -1, 8, 8)

    shifted = proved(net, x, "last", off)
    assert shifted is not None and (not shifted.right or shifted.start == (4.0, -4.0))


def test_mixing_all_over_does_not_hide_where_the_patch_was() -> None:
    body = nn.Sequential(nn.Conv2d(2, 2, 3, 2, 1), Gated(0.01), nn.Conv2d(2, 2, 3, 2, 1), Gated(0.01))
    found = proved(Last(body, lambda x: x), torch.randn(1, 2, 64, 48), "last", channels_first)
    assert found is not None and found.right


def test_what_does_not_change_or_all_alike_is_no_proof() -> None:
    dead = Last(nn.Sequential(nn.Conv2d(2, 4, 4, 4), nn.ReLU()), lambda x: x)
    nn.init.constant_(dead.body[0].bias, -1e4)
    assert proved(dead, torch.randn(1, 2, 32, 32), "last", channels_first) is None
    flat = Last(nn.Conv2d(2, 4, 4, 4), lambda x: x.mean((2, 3), keepdim=True).expand_as(x))
    assert proved(flat, torch.randn(1, 2, 32, 32), "last", channels_first) is None
    x = torch.full((1, 2, 32, 32), torch.nan)
    assert proved(Last(nn.Conv2d(2, 4, 4, 4), lambda x: x), x, "last", channels_first) is None


# ------------------------------------------------------------------------------------------- nets that mix their places


class Harsh(nn.Module):
    """Features times a gate that every place has a part in, as squeeze-and-excitation has it, but harsher."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.gate = nn.Conv2d(2, 8, 4, 4, bias=False), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk(x)
        return y * (50 * self.gate(y.mean((2, 3))))[..., None, None].exp().clamp(max=1e3)


class Mixed(nn.Module):
    """Features, and to each place the mean over all of them added, many times over: with it or against it."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.trunk, self.share = nn.Conv2d(2, 8, 4, 4), share

    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk(x)
        return self.share * y + 100 * y.mean((2, 3), keepdim=True).tanh()


@pytest.mark.parametrize("make", [Harsh, lambda: Mixed(1.0), lambda: Mixed(0.05), lambda: Mixed(-0.05)])
@pytest.mark.parametrize("wrong", [None, "turned", "mirrored"])
def test_gates_and_means_over_all_places_do_not_hide_where_a_patch_is(make: Any, wrong: str | None) -> None:
    torch.manual_seed(5)
    ways: dict[str | None, Layout] = {
        None: channels_first,
        "turned": lambda t: t.transpose(2, 3),
        "mirrored": lambda t: t.flip(3),
    }
    net, x = nn.Sequential(make(), nn.Identity()), torch.randn(1, 2, 48, 48)
    found = probe(net, Inputs((x,)), "0", ways[wrong], torch.zeros(1, 8, 12, 12))
    assert (found is not None and found.right) == (wrong is None)


def test_where_all_that_is_left_is_the_mean_nothing_is_said() -> None:
    net = nn.Sequential(Mixed(0.0), nn.Identity())
    assert probe(net, Inputs((torch.randn(1, 2, 48, 48),)), "0", channels_first, torch.zeros(1, 8, 12, 12)) is None
