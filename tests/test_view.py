"""view/: colours that tell the truth, and marks for what was never seen."""

import ast
import doctest
import importlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camlucida import view
from camlucida.errors import InputError
from camlucida.view import colour, sizes

ROOM = Path(view.__file__).parent
ROOMS = sorted(path.stem for path in ROOM.glob("*.py"))


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(7)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def bump(width: int, height: int, x: float, y: float, spread: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * spread**2)).astype(np.float32)


# --- the room itself


@pytest.mark.parametrize("room", ROOMS)
def test_no_torch_and_no_matplotlib(room: str) -> None:
    tree = ast.parse((ROOM / f"{room}.py").read_text("utf-8"))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {module.split(".")[0] for module in modules} & {"torch", "matplotlib", "jaxtyping"}
    ours = {module for module in modules if module.startswith("camlucida")}
    assert all(module == "camlucida.errors" or module.startswith("camlucida.view") for module in ours)


@pytest.mark.parametrize("room", ROOMS)
def test_examples_run(room: str) -> None:
    module = importlib.import_module(f"camlucida.view.{room}" if room != "__init__" else "camlucida.view")
    assert doctest.testmod(module).failed == 0


# --- colour


@pytest.mark.parametrize("name", view.names())
def test_tables_are_matplotlibs_to_the_byte(name: str) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not here to compare the tables with")
    theirs = matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3]
    np.testing.assert_array_equal(view.table(name), theirs)


def test_a_table_is_read_only_uint8_and_kept() -> None:
    table = view.table("turbo")
    assert (table.shape, table.dtype) == ((256, 3), np.uint8)
    assert view.table("turbo") is table
    for rows in (table, view.scale("bwr", signed=True)):
        with pytest.raises(ValueError, match="read-only"):
            rows[0, 0] = 1


def test_an_unknown_map_names_the_near_one() -> None:
    with pytest.raises(InputError, match=r"'viridiss'.*'viridis'"):
        view.paint(np.zeros((1, 1)), "viridiss")


def test_low_is_blue_and_high_is_red() -> None:
    low, high = view.paint(np.array([[0.1, 0.9]]))[0]
    minus, plus = view.paint(np.array([[-1.0, 1.0]]), signed=True)[0]
    assert low[2] > low[0] + 50 and high[0] > high[2] + 50
    assert minus[2] > minus[0] + 50 and plus[0] > plus[2] + 50


@pytest.mark.parametrize("name", sorted(colour.DIVERGING))
def test_signed_zero_is_neutral_and_alone(name: str) -> None:
    zero = view.paint(np.array([[0.0, -0.0, 1e-9, -1e-9]]), name, signed=True)[0]
    assert len(set(zero.ravel().tolist())) == 1
    rows = view.scale(name, signed=True).astype(int)
    assert len(rows) == 255 and (rows[126, 2] > rows[126, 0]) and (rows[128, 0] > rows[128, 2])
    np.testing.assert_array_equal(rows[[0, -1]], view.table(name)[[0, -1]])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_paint_is_the_table_row_clipped(dtype: type) -> None:
    values = np.array([[0.0, 0.25, 1.0, -3.0, 7.0, np.inf, -np.inf, np.nan]], dtype)
    rows = view.table("viridis")[[0, 64, 255, 0, 255, 255, 0]]
    np.testing.assert_array_equal(view.paint(values, "viridis")[0], [*rows, colour.UNSEEN])
    signed = view.paint(np.array([[-9.0, 9.0, np.nan]], dtype), "bwr", signed=True)[0]
    np.testing.assert_array_equal(signed, [[0, 0, 255], [255, 0, 0], colour.UNSEEN])


def test_paint_covers_pictures_of_many_strips() -> None:
    values = np.linspace(0, 1, 700 * 301, dtype=np.float32).reshape(700, 301)
    rows = (values * 255 + 0.5).astype(int)
    np.testing.assert_array_equal(view.paint(values, "jet"), view.table("jet")[rows])


@pytest.mark.parametrize("shape", [(3,), (1, 3, 3), (0, 4)])
def test_values_without_height_and_width_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="two axes"):
        view.paint(np.zeros(shape))


# --- overlay


def slow_overlay(picture: Image.Image, heat: np.ndarray, alpha: float, signed: bool, evidence: bool) -> np.ndarray:
    """`overlay` pixel by pixel, from its docstring."""
    rows, half = (view.scale(signed=True), 127) if signed else (view.scale(), 255)
    period = max(6, max(heat.shape) // 40)
    made = np.zeros((*heat.shape, 3))
    for y, x in np.ndindex(heat.shape):
        seen, value = picture.getpixel((x, y)), float(heat[y, x])
        if np.isnan(value):
            grey = round(0.299 * seen[0] + 0.587 * seen[1] + 0.114 * seen[2])
            made[y, x] = grey // 2 + (75 if (x + y) % period < period // 2 else 20)
            continue
        value = min(1.0, max(-1.0 if signed else 0.0, value))
        hot = rows[int(np.floor(value * half + 0.5)) + (127 if signed else 0)]
        a = alpha * abs(value) if evidence else alpha
        made[y, x] = [(1 - a) * s + a * h for s, h in zip(seen, hot, strict=True)]
    return made


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("blend", ["uniform", "evidence"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_overlay_equals_its_slow_twin(signed: bool, blend: str, alpha: float) -> None:
    picture = noise(23, 17)
    heat = np.random.default_rng(3).uniform(-1.2, 1.2, (17, 23)).astype(np.float32)
    heat[:, :5] = np.nan
    made = view.overlay(picture, heat, alpha=alpha, signed=signed, blend=blend)  # type: ignore[arg-type]
    assert (made.size, made.mode) == (picture.size, "RGB")
    apart = np.abs(np.asarray(made) - slow_overlay(picture, heat, alpha, signed, blend == "evidence"))
    assert apart.max() <= 1.5  # Pillow blends in whole numbers


def test_alpha_nought_is_the_picture_and_evidence_leaves_it_clean() -> None:
    picture, heat = noise(40, 30), bump(40, 30, 10, 20, 3)
    heat[heat < 0.01] = 0
    np.testing.assert_array_equal(view.overlay(picture, heat, alpha=0.0), picture)
    clean = np.asarray(view.overlay(picture, heat, blend="evidence"))
    np.testing.assert_array_equal(view.overlay(picture, heat, blend="evidence", alpha=0.8), clean)
    by_evidence = view.overlay(picture, heat, signed=True, blend="evidence")
    np.testing.assert_array_equal(view.overlay(picture, heat, signed=True), by_evidence)
    np.testing.assert_array_equal(clean[heat == 0], np.asarray(picture)[heat == 0])
    assert (clean[18:23, 8:13] != np.asarray(picture)[18:23, 8:13]).any()


@pytest.mark.parametrize("ground", ["black", "grey", "white", "red"])
@pytest.mark.parametrize("signed", [False, True])
def test_never_seen_is_striped_grey_and_unlike_no_evidence(ground: str, signed: bool) -> None:
    picture, heat = Image.new("RGB", (80, 60), ground), np.zeros((60, 80), np.float32)
    heat[:, 40:] = np.nan
    for made in (view.overlay(picture, heat, signed=signed), view.heatmap(heat, signed=signed)):
        cold, unseen = np.asarray(made, int)[:, :40], np.asarray(made, int)[:, 40:]
        assert np.ptp(unseen, axis=-1).max() == 0  # grey
        assert np.ptp(unseen[..., 0], axis=0).min() > 40 and np.ptp(unseen[..., 0], axis=1).min() > 40  # striped
        assert np.ptp(cold[..., 0]) == 0  # while what was seen has no stripes
    assert len(np.unique(unseen)) == 2


def test_overlay_says_both_sizes() -> None:
    with pytest.raises(InputError, match="40 × 30 pixels, the heat map 30 × 40"):
        view.overlay(noise(40, 30), np.zeros((40, 30), np.float32))
    with pytest.raises(InputError, match=r"from 0 to 1; got 1\.5"):
        view.overlay(noise(4, 3), np.zeros((3, 4), np.float32), alpha=1.5)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_any_mode_of_picture_and_no_baggage(mode: str) -> None:
    picture = noise(20, 10).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: a viewer would turn the overlay again
    picture.info |= {"exif": exif.tobytes(), "icc_profile": b"profile"}
    made = view.overlay(picture, np.zeros((10, 20), np.float32))
    again = Image.open(io.BytesIO(view.png_bytes(made)))
    assert not again.getexif() and "icc_profile" not in again.info
    assert "exif" in picture.info


def test_a_palette_with_transparency_warns_nobody() -> None:
    picture = noise(8, 8).convert("P")
    picture.info["transparency"] = bytes(range(256))
    view.overlay(picture, np.zeros((8, 8), np.float32))


# --- sizes


def test_heat_shrinks_without_nan_bleeding_or_growing() -> None:
    heat = np.full((60, 100), 0.5, np.float32)
    heat[:, :21] = np.nan  # the edge falls into the middle of a pixel of the small map
    small = sizes.fit_heat(heat, (50, 30))
    assert np.isnan(small[:, :10]).all() and np.allclose(small[:, 10:], 0.5)
    assert sizes.fit_heat(heat, (200, 120)).shape == (120, 200)
    assert sizes.fit_heat(np.full((9, 9), np.nan), (4, 4)).shape == (4, 4)


def test_a_thin_line_of_evidence_is_not_lost_when_shrunk() -> None:
    heat = np.zeros((60, 100), np.float32)
    heat[:, 33] = 1
    small = sizes.fit_heat(heat, (25, 15))
    np.testing.assert_allclose(small, np.where(np.arange(25) == 8, 0.25, 0.0)[None].repeat(15, 0), atol=1e-6)
