"""view/slices.py and sheet.py: the right slices, in true proportions, on one scale, with the right names."""

import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camlucida import view
from camlucida.errors import InputError
from camlucida.view import marks
from camlucida.view.slices import peak, picked, plane

SIDE = 100


def spot(shape: tuple[int, int, int], at: tuple[int, int, int]) -> np.ndarray:
    heat = np.zeros(shape, np.float32)
    heat[at] = 1
    return heat


def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every word that is written on a slice, in order."""
    words: list[str] = []
    real = marks.tag

    def spoken(image: Image.Image, text: str, *rest: Any) -> Image.Image:
        words.append(text)
        return real(image, text, *rest)

    for name in ("slices", "sheet"):
        monkeypatch.setattr(sys.modules[f"camlucida.view.{name}"], "tag", spoken)
    return words


def test_even_slices_are_the_middles_of_equal_parts() -> None:
    heat = np.zeros((100, 2, 2))
    assert picked(heat, 0, 4) == [12, 37, 62, 87] and picked(heat, 1, 4) == [0, 1]
    assert picked(heat, 0, 100) == list(range(100)) and picked(heat, 0, 1) == [50]


def test_slices_with_most_evidence_are_found_and_stay_in_order() -> None:
    heat = np.zeros((9, 4, 4), np.float32)
    heat[7], heat[2], heat[4] = 0.9, -0.8, 0.1
    heat[5, 0, 0] = np.nan
    assert picked(heat, 0, 3, "evidence") == [2, 4, 7]
    with pytest.raises(InputError, match="'even' or 'evidence'"):
        picked(heat, 0, 3, "best")


def test_the_peak_is_the_middle_of_equals_and_of_nothing() -> None:
    assert peak(spot((5, 6, 7), (1, 2, 3))) == (1, 2, 3)
    assert peak(-spot((5, 6, 7), (4, 0, 6))) == (4, 0, 6)
    flat = np.zeros((9, 9, 9), np.float32)
    flat[4, 4, 2:7] = 1
    assert peak(flat) == (4, 4, 4) and peak(np.zeros((4, 6, 8))) == (1, 2, 3)
    holes = np.full((3, 3, 3), np.nan, np.float32)
    assert peak(holes) == (1, 1, 1)


def test_a_slice_shows_the_axes_that_are_left_in_their_order() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6), dtype=np.uint8)
    for axis, size in ((0, (6, 5)), (1, (6, 4)), (2, (5, 4))):
        shown = np.asarray(plane(pixels, axis, 2, size))[..., 0]
        np.testing.assert_array_equal(shown, pixels.take(2, axis))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 1.0, 1.0), (0.5, 2.0, 1.0)])
def test_planes_are_in_true_proportions_and_of_one_scale(spacing: tuple[float, float, float]) -> None:
    shape = (10, 20, 30)
    made = view.planes(view.Solid(np.zeros(shape), spacing), np.zeros(shape), side=300, bare=True)
    lengths = [n * s for n, s in zip(shape, spacing, strict=True)]
    scale = 300 / max(lengths)
    z, y, x = (max(1, round(length * scale)) for length in lengths)
    wide = sum(max(64, w) for w in (x, x, y)) + 8
    high = 2 * max(max(40, h) for h in (y, z, z)) + 4
    assert made.size == (wide, high)


def test_the_cross_is_at_the_peak_of_every_plane_and_the_heat_is_there() -> None:
    shape, at = (10, 20, 30), (2, 15, 25)
    made = np.asarray(view.planes(view.Solid(np.zeros(shape)), spot(shape, at), side=300, bare=True), int)
    rows, columns = (200, 100, 100), (300, 300, 200)
    left = 0
    for axis, (down, across) in enumerate(((1, 2), (0, 2), (0, 1))):
        x = left + round((at[across] + 0.5) / shape[across] * columns[axis])
        y = round((at[down] + 0.5) / shape[down] * rows[axis])
        bright = made[:200].min(-1) > 100
        assert bright[y, left + 60 : left + columns[axis] - 70].mean() > 0.5, axis  # the line across
        assert bright[40 : rows[axis] - 30, x].mean() > 0.3, axis
        assert made[204 + y, x, 0] > made[204 + y, x, 2] + 50, axis  # red: the evidence, below
        left += columns[axis] + 4


def test_planes_name_what_lies_at_their_edges_and_count_as_the_file_does(monkeypatch: pytest.MonkeyPatch) -> None:
    words = said(monkeypatch)
    solid = view.Solid(
        np.zeros((10, 20, 30)),
        ends=(("S", "I"), ("A", "P"), ("R", "L")),
        flipped=(True, False, True),
        names=("axial", "coronal", "sagittal"),
    )
    view.planes(solid, spot((10, 20, 30), (2, 15, 25)))
    third = len(words) // 6
    assert words[:third] == ["A", "P", "R", "L", "axial 7"]
    assert words[2 * third : 3 * third] == ["S", "I", "R", "L", "coronal 15"]
    assert words[4 * third : 5 * third] == ["S", "I", "A", "P", "sagittal 4"]


def test_slices_are_labelled_with_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    words = said(monkeypatch)
    solid = view.Solid(np.zeros((20, 8, 8)), flipped=(True, False, False), names=("axial", "b", "c"))
    view.slices(solid, np.zeros((20, 8, 8)), count=4)
    assert words == ["axial 17", "axial 12", "axial 7", "axial 2"]
    view.slices(solid, np.zeros((20, 8, 8)), at=[3, 5], axis=1)
    assert words[4:] == ["b 3", "b 5"]


def test_each_slice_is_under_its_own_heat() -> None:
    heat = np.zeros((4, 50, 100), np.float32)
    heat[2] = 1
    made = np.asarray(view.slices(view.Solid(np.zeros((4, 50, 100))), heat, side=SIDE, bare=True, columns=2), int)
    cells = [made[y : y + 40, x + 50 : x + 90].mean((0, 1)) for y in (10, 64) for x in (0, 104)]
    assert cells[2][0] > cells[2][2] + 50 and all(c[2] >= c[0] - 10 for c in cells[:2] + cells[3:])


def test_grey_values_leave_outliers_aside_and_colours_as_they_are() -> None:
    voxels = np.tile(np.linspace(0, 100, 1000, dtype=np.float32), 10).reshape(10, 10, 100)
    voxels[0, 0, 0], voxels[1, 1, 1], voxels[2, 2, 2] = 1e9, np.nan, -np.inf
    pixels = view.Solid(voxels).pixels
    assert pixels[0, 0, 0] == 255 and pixels[1, 1, 1] == 0 and pixels[2, 2, 2] == 0
    assert pixels.mean() == pytest.approx(127, abs=3)
    colour = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    assert view.Solid(colour).pixels is colour
    assert view.Solid(np.full((2, 2, 2), np.nan)).pixels.max() == 0 == view.Solid(np.full((2, 2, 2), 7.0)).pixels.max()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 200, 200), (300, 2, 2)])
@pytest.mark.parametrize("signed", [False, True])
def test_tiny_and_flat_volumes_are_drawn(shape: tuple[int, int, int], signed: bool) -> None:
    heat = np.full(shape, -0.5 if signed else 0.5)
    solid = view.Solid(np.random.default_rng(0).normal(size=shape))
    for made in (
        view.planes(solid, heat, signed=signed, title="t", caption="c", note="n"),
        view.slices(solid, heat, signed=signed),
    ):
        assert 0 < made.width < 3000 and 0 < made.height < 3000


def test_what_does_not_fit_is_refused() -> None:
    solid = view.Solid(np.zeros((4, 5, 6)))
    with pytest.raises(InputError, match=r"\(4, 5, 6\) voxels, the map \(4, 5, 5\)"):
        view.slices(solid, np.zeros((4, 5, 5)))
    with pytest.raises(InputError, match="axis 0, 1 or 2; got 3"):
        view.slices(solid, np.zeros((4, 5, 6)), axis=3)
    with pytest.raises(InputError, match=r"slices 0 to 3 .* got at=\[4\]"):
        view.slices(solid, np.zeros((4, 5, 6)), at=[4])
    with pytest.raises(InputError, match=r"\(4, 5\)"):
        view.Solid(np.zeros((4, 5)))
    with pytest.raises(InputError, match="spacing"):
        view.Solid(np.zeros((4, 5, 6)), (1.0, 0.0, 1.0))


# --- sheet


def test_a_sheet_puts_pictures_above_their_overlays() -> None:
    pictures = [Image.new("RGB", (100, 60), (40 * k, 0, 0)) for k in range(4)]
    heats = [np.full((60, 100), k / 3, np.float32) for k in range(4)]
    made = np.asarray(view.sheet(pictures, heats, [""] * 4, side=100, bare=True, apart=True, columns=2), int)
    assert made.shape[:2] == (4 * 60 + 3 * 4, 204)
    assert made[50, 150].tolist() == [40, 0, 0] and made[2 * 64 + 50, 50].tolist() == [80, 0, 0]
    laid = np.asarray(view.overlay(pictures[1], heats[1]))
    np.testing.assert_array_equal(made[64 : 64 + 60, 104:], laid)


def test_a_sheet_marks_what_was_never_seen_and_wants_a_heat_for_each() -> None:
    heat = np.zeros((60, 100), np.float32)
    heat[:, 50:] = np.nan
    made = np.asarray(view.sheet([Image.new("RGB", (100, 60), "red")], [heat], ["a"], side=100, bare=True), int)
    assert np.ptp(made[:, 55:], -1).max() == 0 and np.ptp(made[20:, :45], -1).min() > 0
    for wrong in (([], [], []), ([Image.new("RGB", (4, 4))], [], ["a"])):
        with pytest.raises(InputError, match="a heat map and a label for each picture"):
            view.sheet(*wrong)


@pytest.mark.parametrize("count, size", [(1, (224, 224)), (12, (160, 224)), (16, (224, 100)), (7, (50, 600))])
def test_rows_of_a_sheet_are_even(count: int, size: tuple[int, int]) -> None:
    from camlucida.view.sheet import _columns

    columns = _columns(count, size)
    rows = -(-count // columns)
    assert 1 <= columns <= count and columns * rows - count < rows and columns * (size[0] + 4) <= 1600 + size[0]
