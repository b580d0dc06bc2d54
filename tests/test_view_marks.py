"""view/marks.py and blobs.py: lines where the level is, boxes around what is strong, names that can be read."""

import numpy as np
import pytest
from PIL import Image

from camlucida import view
from camlucida.errors import InputError
from camlucida.view.blobs import connected

RED, BLUE = (255, 0, 0), (0, 0, 255)


def cone(size: int = 101) -> np.ndarray:
    """1 in the middle, less by 0.02 with every pixel."""
    y, x = np.mgrid[:size, :size] - size // 2
    return np.clip(1 - 0.02 * np.hypot(x, y), 0, 1).astype(np.float32)


def coloured(made: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(np.asarray(made, int) - colour).sum(-1) < 60).nonzero()  # type: ignore[return-value]


@pytest.mark.parametrize("level, radius", [(0.5, 25), (0.8, 10), (0.3, 35)])
def test_a_contour_is_a_closed_line_where_the_level_is(level: float, radius: float) -> None:
    made = view.contours(Image.new("RGB", (101, 101), "white"), cone(), [level], colours=[RED])
    y, x = coloured(made, RED)
    away = np.hypot(x - 50, y - 50)
    assert abs(away.mean() - radius) < 0.3 and away.min() > radius - 1.6 and away.max() < radius + 1.6
    turns = np.sort(np.arctan2(y - 50, x - 50))
    assert np.diff(turns).max() < 4 / radius  # no gap
    assert (np.asarray(made)[50, 50] == 255).all() and (np.asarray(made)[0, 0] == 255).all()


def test_a_contour_is_smooth() -> None:
    grey = np.asarray(view.contours(Image.new("RGB", (101, 101), "white"), cone(), [0.5], colours=[RED]), int)[..., 1]
    assert len(np.unique(grey)) > 20


def test_a_contour_has_the_colour_of_its_level_in_the_bar() -> None:
    made = view.contours(Image.new("RGB", (101, 101), "white"), cone(), [0.5])
    assert len(coloured(made, tuple(view.table("turbo")[128].tolist()))[0]) > 100
    signed = view.contours(Image.new("RGB", (101, 101), "white"), 2 * cone() - 1, [-0.5], signed=True)
    assert len(coloured(signed, tuple(view.scale(signed=True)[64].tolist()))[0]) > 100


def test_flat_and_unseen_places_have_no_lines() -> None:
    blank = Image.new("RGB", (30, 20), "white")
    for heat in (np.zeros((20, 30)), np.full((20, 30), 0.5), np.full((20, 30), np.nan)):
        np.testing.assert_array_equal(view.contours(blank, heat.astype(np.float32), [0.0, 0.5]), blank)
    half = np.linspace(0, 1, 30, dtype=np.float32)[None].repeat(20, 0)
    half[:, 15:] = np.nan
    assert (np.asarray(view.contours(blank, half, [0.75], colours=[RED])) == 255).all()
    assert view.contours(Image.new("RGB", (1, 1)), np.ones((1, 1), np.float32)).size == (1, 1)


def test_outlines_run_along_the_edge_of_a_mask() -> None:
    mask = np.zeros((60, 80), bool)
    mask[15:35, 30:60] = True
    y, x = coloured(view.outlines(Image.new("RGB", (80, 60), "white"), [mask], colours=[RED]), RED)
    away = np.maximum(np.maximum(15 - y, y - 34), np.maximum(30 - x, x - 59))
    assert away.min() >= -2 and away.max() <= 2
    two = np.asarray(view.outlines(Image.new("RGB", (80, 60), "white"), [mask, mask[::-1]], colours=[RED, BLUE]), int)
    assert ((two[..., 2] - two[..., 0]) > 100).sum() > 80 < ((two[..., 0] - two[..., 2]) > 100).sum()


def test_a_box_frames_its_pixels_and_no_others() -> None:
    made = view.boxes(Image.new("RGB", (100, 80), "white"), [(20, 30, 60, 70)], colours=[RED])
    y, x = coloured(made, RED)
    assert (x.min(), x.max(), y.min(), y.max()) == (20, 59, 30, 69)
    assert (np.asarray(made)[35:65, 25:55] == 255).all()


def test_boxes_beyond_the_picture_end_at_its_border_and_bad_ones_are_refused() -> None:
    made = view.boxes(Image.new("RGB", (100, 80), "white"), [(-50, -50, 500, 500)], colours=[RED])
    y, x = coloured(made, RED)
    assert (x.min(), x.max(), y.min(), y.max()) == (0, 99, 0, 79)
    view.boxes(Image.new("RGB", (100, 80)), [(200, 200, 300, 300)], ["beyond"])
    for wrong in ((5, 5, 5, 9), (9, 5, 4, 9), (np.nan, 0, 1, 1), (0, 0, np.inf, 1)):
        with pytest.raises(InputError, match="left < right"):
            view.boxes(Image.new("RGB", (10, 10)), [wrong])
    with pytest.raises(InputError, match="2 boxes and 1 labels"):
        view.boxes(Image.new("RGB", (10, 10)), [(0, 0, 4, 4)] * 2, ["one"])


def test_dashes_tell_one_kind_of_box_from_another() -> None:
    ground, box = Image.new("RGB", (200, 160), "white"), [(20.0, 30.0, 160.0, 140.0)]
    whole = len(coloured(view.boxes(ground, box, colours=[RED]), RED)[0])
    dashed = len(coloured(view.boxes(ground, box, colours=[RED], dashed=True), RED)[0])
    assert 0.3 * whole < dashed < 0.75 * whole


def test_the_name_of_a_box_stays_in_the_picture_and_can_be_read() -> None:
    for box in ((2.0, 2.0, 30.0, 30.0), (150.0, 60.0, 199.0, 99.0), (0.0, 0.0, 200.0, 100.0)):
        for colour, ink in (((0, 0, 120), 255), ((255, 255, 0), 38)):
            made = np.asarray(view.boxes(Image.new("RGB", (200, 100), "grey"), [box], ["cat 0.93"], colours=[colour]))
            tag = (np.abs(made.astype(int) - colour).sum(-1) < 10).sum()
            assert tag > 400 and (np.abs(made.astype(int) - ink).sum(-1) < 60).sum() > 20, (box, colour)


def test_a_legend_says_what_colours_mean_without_covering_the_picture() -> None:
    picture = Image.new("RGB", (200, 100), (7, 8, 9))
    made = view.legend(picture, [(RED, "true"), (BLUE, "predicted"), (RED, "a very long name " * 20)])
    np.testing.assert_array_equal(np.asarray(made)[16:116, 16:216], np.asarray(picture))
    assert len(coloured(made, RED)[0]) > 100 and len(coloured(made, BLUE)[0]) > 100
    assert made.width == 232 and made.height > 100 + 2 * 16 + 2 * 13
    assert view.legend(Image.new("RGB", (10, 10)), []).width >= 160


# --- blobs


def slow(inside: np.ndarray) -> np.ndarray:
    """Regions by flooding, one pixel after the other."""
    labels = np.zeros(inside.shape, int)
    for start in zip(*np.nonzero(inside), strict=True):
        if labels[start]:
            continue
        number, todo = labels.max() + 1, [start]
        while todo:
            y, x = todo.pop()
            if 0 <= y < inside.shape[0] and 0 <= x < inside.shape[1] and inside[y, x] and not labels[y, x]:
                labels[y, x] = number
                todo += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return labels


@pytest.mark.parametrize("share", [0.1, 0.3, 0.45, 0.6, 0.9])
def test_regions_are_those_of_flooding(share: float) -> None:
    for seed in range(6):
        inside = np.random.default_rng(seed).random((17, 23)) < share
        np.testing.assert_array_equal(connected(inside), slow(inside))
    assert connected(np.zeros((0, 3), bool)).shape == (0, 3)


def test_boxes_lie_around_regions_the_strongest_first() -> None:
    heat = np.zeros((40, 60), np.float32)
    heat[5:9, 10:30], heat[20:36, 40:50], heat[30, 2] = 0.6, 0.9, 1.0
    assert view.around(heat) == [(40, 20, 50, 36), (10, 5, 30, 9), (2, 30, 3, 31)]
    assert view.around(heat, 0.8) == [(40, 20, 50, 36), (2, 30, 3, 31)] and view.around(heat, 1.1) == []
    heat[20:36, 44:46] = np.nan
    assert (40, 20, 44, 36) in view.around(heat) and (46, 20, 50, 36) in view.around(heat)
    assert view.around(np.full((4, 4), np.nan)) == []
