"""The steps from a raw map to a picture: each against a slow twin, at every size of number and in every blank case."""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import nets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replicas import apart
from torch import Tensor
from torch.nn.functional import interpolate

import camlucida as cl
from camlucida import maps
from camlucida.frame import Frame
from camlucida.maps import Centres

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
SIZES = [
    ((5,), (17,)), ((5,), (2,)), ((1,), (4,)), ((7, 4), (20, 33)), ((7, 4), (3, 2)), ((7, 4), (7, 4)), ((1, 6), (5, 6)),
    ((3, 4), (1, 1)), ((2, 3, 4), (5, 6, 7)), ((3, 4, 2), (2, 9, 1)), ((1, 1, 1), (2, 3, 4)), ((7, 7), (224, 224)),
]  # fmt: skip


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -------------------------------------------------------------------------------------------------------------- resize


@pytest.mark.parametrize(("before", "after"), SIZES, ids=str)
def test_resize_is_linear_interpolation_between_aligned_centres(
    before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    map = drawn(2, *before)
    expected = interpolate(map[:, None], size=after, mode=MODES[len(before)], align_corners=False)[:, 0]
    assert apart(maps.resize(map, after), expected) < 1e-12
    single = maps.resize(map.float(), after)
    assert apart(single, expected) < 2e-5 and single.dtype == torch.float32


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_resize_is_linear_interpolation_for_any_sizes(data: st.DataObject) -> None:
    dims = data.draw(st.integers(1, 3))
    before, after = (data.draw(st.tuples(*[st.integers(1, 9)] * dims)) for _ in range(2))
    map = drawn(2, *before)
    expected = interpolate(map[:, None], size=after, mode=MODES[dims], align_corners=False)[:, 0]
    assert apart(maps.resize(map, after), expected) < 1e-12


@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_resize_keeps_a_flat_map_flat_and_goes_beyond_no_extreme(dims: int) -> None:
    flat = torch.full((1, *(3,) * dims), 0.7, dtype=torch.float64)
    assert apart(maps.resize(flat, (5,) * dims), flat.mean().expand(1, *(5,) * dims)) < 1e-12
    map = drawn(1, *(3,) * dims)
    large = maps.resize(map, (7,) * dims)
    assert large.max() <= map.max() + 1e-12 and large.min() >= map.min() - 1e-12


def slow_resize(map: Tensor, size: Sequence[int], centres: Centres) -> Tensor:
    """One line at a time: NumPy's interpolation from the centres of cells to those of pixels."""
    values = map.numpy()
    for axis, (n, start, stride) in enumerate(zip(size, centres.start, centres.stride, strict=True)):
        cells = start + stride * np.arange(values.shape[axis])
        read = partial(np.interp, np.arange(n) + 0.5, cells)
        values = np.apply_along_axis(read, axis, values)
    return torch.from_numpy(values)


@pytest.mark.parametrize(
    ("before", "after", "start", "stride"),
    [
        ((7,), (224,), (31.5,), (32.0,)), ((7,), (224,), (0.5,), (32.0,)), ((5,), (9,), (-1.25,), (2.7,)),
        ((1,), (4,), (2.0,), (4.0,)), ((4, 3), (16, 9), (3.5, 2.0), (4.0, 2.5)),
        ((2, 3, 4), (5, 6, 7), (1.0, 2.0, 3.0), (2.0, 1.5, 1.0)),
    ],
    ids=str,
)  # fmt: skip
def test_resize_lays_cells_at_their_centres(
    before: tuple[int, ...], after: tuple[int, ...], start: tuple[float, ...], stride: tuple[float, ...]
) -> None:
    map, centres = drawn(2, *before), Centres(start, stride)
    for i in range(2):
        assert apart(maps.resize(map, after, centres)[i], slow_resize(map[i], after, centres)) < 1e-12
    assert apart(maps.resize(map.float(), after, centres), maps.resize(map, after, centres)) < 2e-5


@pytest.mark.parametrize(("before", "after"), SIZES, ids=str)
def test_even_centres_are_no_centres(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    map, even = drawn(2, *before), Centres.even(after, before)
    assert apart(maps.resize(map, after, even), maps.resize(map, after)) < 1e-12


def test_centres_on_another_grid_say_which_of_its_cells_they_are() -> None:
    fine, coarse = Centres((1.5, 2.0), (2.0, 4.0)), Centres((7.5, 4.0), (8.0, 8.0))
    map, size = drawn(1, 3, 4), (12, 8)
    laid = maps.resize(map, size, coarse.on(fine))[0]
    for i, j in itertools.product(range(12), range(8)):  # cell (i, j) of the fine grid lies at this pixel
        at = [(1.5 + 2 * i - 7.5) / 8, (2 + 4 * j - 4) / 8]
        near = [min(max(v, 0.0), n - 1.0) for v, n in zip(at, (3, 4), strict=True)]
        assert abs(float(laid[i, j]) - read_at(map[0].tolist(), (near[1] + 0.5) / 4, (near[0] + 0.5) / 3)) < 1e-12


def test_resize_turns_with_the_map() -> None:
    map = drawn(1, 4, 6)
    assert apart(maps.resize(map.flip(2), (9, 11)), maps.resize(map, (9, 11)).flip(2)) < 1e-12
    assert apart(maps.resize(map.transpose(1, 2), (11, 9)), maps.resize(map, (9, 11)).transpose(1, 2)) < 1e-12


# ----------------------------------------------------------------------------------------------------------------- lay


def read_at(map: list[list[float]], u: float, v: float) -> float:
    """The map at fractions (u, v) of its extent: cell centres at (i + ½)/n, linear between, flat beyond the last."""
    rows, columns = len(map), len(map[0])
    y, x = min(max(v * rows - 0.5, 0.0), rows - 1.0), min(max(u * columns - 0.5, 0.0), columns - 1.0)
    i, j = min(int(y), rows - 1), min(int(x), columns - 1)
    below, right = min(i + 1, rows - 1), min(j + 1, columns - 1)
    fy, fx = y - i, x - j
    upper = map[i][j] * (1 - fx) + map[i][right] * fx
    lower = map[below][j] * (1 - fx) + map[below][right] * fx
    return upper * (1 - fy) + lower * fy


def slow_lay(map: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """Pixel by pixel: where its centre lies in the box, and what the map is there."""
    left, top, right, bottom = frame.box
    heat = torch.zeros(frame.height, frame.width, dtype=torch.float64)
    seen = torch.zeros(frame.height, frame.width, dtype=torch.bool)
    rows = map.tolist()
    for r, c in itertools.product(range(frame.height), range(frame.width)):
        u, v = (c + 0.5 - left) / (right - left), (r + 0.5 - top) / (bottom - top)
        if 0 <= u <= 1 and 0 <= v <= 1:
            seen[r, c] = True
            heat[r, c] = read_at(rows, u, v)
    return heat, seen


FRAMES = {
    "whole": Frame.whole(13, 9), "crop": Frame(13, 9, (2.0, 0.0, 11.0, 9.0)),
    "crop, broken": Frame(13, 9, (2.3, 1.7, 10.9, 8.1)),
    "letterbox": Frame(13, 9, (0.0, -2.0, 13.0, 11.0)), "beyond": Frame(13, 9, (-3.25, -5.5, 20.1, 30.0)),
    "half beyond": Frame(13, 9, (6.5, -4.0, 20.0, 5.0)), "one pixel": Frame(13, 9, (4.0, 4.0, 5.0, 5.0)),
    "between pixels": Frame(13, 9, (4.6, 4.6, 5.4, 5.4)), "outside": Frame(13, 9, (20.0, 20.0, 30.0, 30.0)),
    "picture of one pixel": Frame.whole(1, 1),
}  # fmt: skip


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("grid", [(3, 4), (1, 1), (1, 5), (20, 30)], ids=str)
def test_lay_is_the_map_read_at_every_pixels_centre(frame: Frame, grid: tuple[int, int]) -> None:
    map = drawn(*grid)
    heat, seen = maps.lay(map, frame)
    expected, expected_seen = slow_lay(map, frame)
    assert torch.equal(seen, expected_seen) and heat.shape == (frame.height, frame.width)
    assert apart(heat, expected) < 1e-12
    assert apart(maps.lay(map.float(), frame)[0], expected) < 2e-5


def test_lay_over_a_whole_picture_is_resize() -> None:
    map = drawn(1, 4, 6)
    heat, seen = maps.lay(map[0], Frame.whole(17, 12))
    assert apart(heat, maps.resize(map, (12, 17))[0]) < 1e-12 and seen.all()


def test_lay_leaves_what_was_not_seen_at_zero() -> None:
    heat, seen = maps.lay(torch.ones(2, 2), FRAMES["crop"])
    assert (heat[~seen] == 0).all() and (heat[seen] == 1).all()
    assert seen[:, 2:11].all() and not seen[:, :2].any() and not seen[:, 11:].any()


def test_lay_counts_a_pixel_as_seen_by_its_centre() -> None:
    seen = maps.lay(torch.ones(2, 2), Frame(6, 1, (0.4, 0.0, 3.5, 1.0)))[1]
    assert seen.tolist() == [[True, True, True, True, False, False]]


# ---------------------------------------------------------------------------------------------------------------- unit


def shown(map: Tensor, signed: bool = False) -> Tensor:
    raw = map if signed else maps.rectify(map)
    return maps.unit(raw, maps.scale_of(map, signed), signed)


@pytest.mark.parametrize("signed", [False, True], ids=["for", "signed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-8, 1e-3, 7.0, 1e8, 1e20, 1e30])
def test_a_map_of_any_size_is_shown_alike(size: float, dtype: torch.dtype, signed: bool) -> None:
    map = drawn(2, 5, 6).to(dtype)
    found = shown(map * size, signed)
    assert apart(found, shown(map, signed)) < (1e-5 if dtype == torch.float32 else 1e-12)
    assert found.abs().max() == 1 and found.dtype == dtype


@settings(max_examples=50, deadline=None, derandomize=True)
@given(exponent=st.floats(-30, 30), seed=st.integers(0, 99), signed=st.booleans())
def test_a_map_of_any_size_at_all_is_shown_alike(exponent: float, seed: int, signed: bool) -> None:
    map = drawn(1, 3, 4, seed=seed)
    assert apart(shown(map * 10.0**exponent, signed), shown(map, signed)) < 1e-12


def test_unit_divides_by_the_scale_it_is_told_and_clips() -> None:
    map = torch.tensor([[-4.0, -1.0, 0.0, 1.0, 2.0, 4.0]])
    assert maps.unit(map, 2.0).tolist() == [[0, 0, 0, 0.5, 1, 1]]
    assert maps.unit(map, 2.0, signed=True).tolist() == [[-1, -0.5, 0, 0.5, 1, 1]]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize(
    "values",
    [[0.0, 0.0], [torch.nan, torch.nan], [torch.inf, 1.0], [-torch.inf, -1.0], [0.0, 1e30], [0.0, -1e30], [1e-30, 0.0]],
    ids=str,
)
def test_unit_is_never_nan_and_never_beyond_its_range(values: list[float], scale: float, signed: bool) -> None:
    for dtype in (torch.float32, torch.float64):
        found = maps.unit(torch.tensor([values], dtype=dtype), scale, signed)
        assert found.isfinite().all() and found.max() <= 1 and found.min() >= (-1 if signed else 0)


def test_scale_is_the_largest_evidence_or_none() -> None:
    cases = {(1.0, -3.0): (1, 3), (-1.0, -3.0): (0, 3), (0.0, 0.0): (0, 0)}
    cases |= {(torch.nan, 2.0): (2, 2), (torch.inf, 2.0): (2, 2)}
    for values, expected in cases.items():
        assert tuple(maps.scale_of(torch.tensor([values]), signed) for signed in (False, True)) == expected, values


def test_rectify_keeps_the_evidence_for_and_the_map_itself_as_it_was() -> None:
    map = torch.tensor([[1.0, -3.0, 0.0]])
    assert maps.rectify(map).tolist() == [[1.0, 0.0, 0.0]] and map.tolist() == [[1.0, -3.0, 0.0]]


def test_one_scale_for_several_maps_keeps_their_proportion() -> None:
    net = nets.gap_linear()
    strong = cl.explain(net, net.x(1), target=1, layer=net.layer)
    with torch.no_grad():
        net.head.weight.div_(4)
    weak = cl.explain(net, net.x(1), target=1, layer=net.layer)
    scale = cl.shared_scale([strong, weak])
    assert scale == float(strong.map.max())
    assert apart(weak.heatmap(scale=scale), strong.heatmap(scale=scale) / 4) < 1e-12
    assert apart(weak.heatmap(), strong.heatmap()) < 1e-12


# ------------------------------------------------------------------------------------------------------ status and P23

CASES = {
    "ok": [1.0, -2.0, 3.0], "ok, tiny": [0.0, 1e-37, 0.0], "all-negative": [-1.0, -2.0, -3.0],
    "all-negative or zero": [0.0, -2.0, 0.0], "no evidence": [0.0, 0.0, 0.0], "constant": [2.0, 2.0, 2.0],
    "constant, negative": [-2.0, -2.0, -2.0], "non-finite": [1.0, torch.nan, 0.0],
    "non-finite, infinite": [1.0, torch.inf, 0.0], "non-finite, all": [torch.nan] * 3,
    "non-finite, negative": [-torch.inf, -1.0, -1.0],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_status_says_whether_a_map_shows_anything(case: str) -> None:
    expected = case.split(",")[0].removesuffix(" or zero")
    assert maps.status(torch.tensor([CASES[case]])) == (expected,)
    assert maps.status(torch.tensor([[1.0, 2.0, 0.0], CASES[case]])) == ("ok", expected)


def test_status_tells_a_zero_gradient_from_no_evidence_and_only_for_blank_maps() -> None:
    map = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0], [torch.nan, 0.0]])
    assert maps.status(map, [True, False, True, True]) == ("zero gradient", "no evidence", "ok", "non-finite")


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1)], ids=str)
def test_p23_a_single_place_is_evidence_and_not_constant(shape: tuple[int, ...]) -> None:
    assert maps.status(torch.full((1, *shape), 2.0)) == ("ok",)
    assert maps.status(torch.full((1, *shape), -2.0)) == ("all-negative",)
    assert maps.status(torch.zeros(1, *shape)) == ("no evidence",)
    assert shown(torch.full((1, *shape), 2.0)).flatten().tolist() == [1.0]


@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith("ok")])
@pytest.mark.parametrize("signed", [False, True], ids=["for", "signed"])
def test_p23_a_blank_map_is_shown_as_zeros_and_never_as_nan(case: str, signed: bool) -> None:
    map = torch.tensor([CASES[case]])
    e = blank(map)
    heat = e.heatmap(signed=signed)
    assert heat.shape == (9,) and heat.isfinite().all()
    if signed and case.startswith("all-negative"):
        assert heat.min() == -1
    else:
        assert (heat == 0).all()


def blank(map: Tensor) -> cl.Explanation:
    from camlucida.core.explanation import Facts, Pictures

    facts = Facts("class 0", "gradcam", "Grad-CAM", "features", "channels first", 1.0, "0")
    return cl.Explanation(map, torch.zeros(len(map)), maps.status(map), facts, Pictures((9,), ("picture",) * len(map)))


def test_p23_one_blank_picture_leaves_the_others_shown() -> None:
    e = blank(torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 4.0], [torch.nan, 1.0, 2.0]]))
    assert e.status == "no evidence, ok, non-finite"
    assert (e.heatmap(0) == 0).all() and e.heatmap(1).max() == 1 and (e.heatmap(2) == 0).all()
    assert torch.equal(e.heatmap(-2), e.heatmap(1)) and torch.equal(e[1].heatmap(), e.heatmap(1))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_heatmap_is_the_rectified_map_over_its_maximum_on_the_inputs_own_places(dims: int) -> None:
    net = nets.relu_tail(dims, 2)
    x = net.x(2)
    e = cl.explain(net, x, target=cl.rank(1), layer="tail.0")
    for i in range(2):
        raw = e.map[i]
        peak = max(0.0, float(raw.max()))
        expected = raw.clamp(min=0) / peak if peak else torch.zeros_like(raw)
        size = x.shape[2:]
        assert e.centres is not None and e.centres.stride == (1.0,) * dims  # no padding: five places of seven
        expected = slow_resize(expected, size, e.centres)
        assert apart(e.heatmap(i), expected) < 1e-12 and e.seen(i).all() and tuple(e.seen(i).shape) == tuple(size)


def test_spread_of_one_cell_is_everywhere_itself() -> None:
    assert maps.resize(torch.tensor([[[3.0]]]), (4, 5)).unique().tolist() == [3.0]
    assert math.isfinite(float(maps.resize(torch.tensor([[[3.0]]]), (1, 1))))
