"""view/: panels, montages and cards that hold whatever they are given."""

import base64
import io

import numpy as np
import pytest
from PIL import Image, features

from camlucida import view
from camlucida.errors import InputError
from camlucida.view import sizes, text

PICTURE_SIZES = [(1, 1), (32, 32), (300, 200), (3000, 200), (200, 3000), (5000, 1)]


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(7)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def bump(width: int, height: int, x: float, y: float, spread: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * spread**2)).astype(np.float32)


# --- panel and montage


def middle_of(page: Image.Image, size: tuple[int, int], top: int) -> Image.Image:
    """The heat map on a panel: in the middle of the page, `top` pixels from its upper edge."""
    left = (page.width - size[0]) // 2
    return page.crop((left, top, left + size[0], top + size[1]))


@pytest.mark.parametrize(("size", "side"), [((300, 200), 640), ((32, 32), 640), ((1500, 1000), 500)])
def test_the_heat_sits_where_it_was_put(size: tuple[int, int], side: int) -> None:
    x, y = size[0] * 0.25, size[1] * 0.7
    shown = sizes.shown(size, side)
    page = view.panel(Image.new("RGB", size, "grey"), bump(*size, x, y, size[1] / 12), colours="gray", side=side)
    bright = np.asarray(middle_of(page, shown, 16).convert("L"), float)
    rows, columns = np.mgrid[: shown[1], : shown[0]]
    zoom = shown[0] / size[0]
    centre = [(where * bright).sum() / bright.sum() / zoom for where in (columns, rows)]
    assert np.allclose(centre, [x, y], atol=max(1.0, size[0] / 300))


@pytest.mark.parametrize("size", PICTURE_SIZES)
@pytest.mark.parametrize("signed", [False, True])
def test_a_panel_of_any_size(size: tuple[int, int], signed: bool) -> None:
    heat = np.zeros(size[::-1], np.float32)
    plain = view.panel(noise(*size), heat, signed=signed)
    full = view.panel(noise(*size), heat, signed=signed, titles=("a", "b", "c"), caption="d", note="e", top="3.2")
    column = max(160, sizes.shown(size, 640)[0])
    assert plain.width == full.width == 3 * column + 2 * 12 + 2 * 16
    assert full.height > plain.height >= sizes.shown(size, 640)[1] + 2 * 16
    edges = [np.asarray(full)[:14], np.asarray(full)[-14:], np.asarray(full)[:, :14], np.asarray(full)[:, -14:]]
    assert all((edge == 255).all() for edge in edges)


def test_the_bar_runs_from_cold_to_hot() -> None:
    page = np.asarray(view.panel(Image.new("RGB", (320, 200)), np.zeros((200, 320), np.float32)))
    bar = page[16 + 200 + 6 + 5, 16 + 320 + 12 + 1 :][:318]
    np.testing.assert_allclose(bar[[0, 158, -1]].astype(int), view.table("turbo")[[0, 127, 255]], atol=10)


WORDS = [
    "x" * 500,
    "tabby cat · " * 80,
    "é–× 中文 العربية 😀👩‍👩‍👧 e\u0301 \u202e",
    "a\nb\tc\x00\x07",
    "\ud83d half",
    "",
    " ",
    "\U0010ffff",
]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("freetype", [True, False])
def test_no_words_are_too_much(words: str, freetype: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda _: freetype)
    if not freetype:
        monkeypatch.setattr(text.ImageFont, "load_default", lambda _: text.ImageFont.load_default_imagefont())
    text.font.cache_clear()
    text._drawable.cache_clear()
    try:
        quiet = view.panel(noise(300, 20), np.zeros((20, 300)), caption="quiet", titles=("a", "b", "c"))
        titles = (words, words, "c")
        page = view.panel(noise(300, 20), np.zeros((20, 300)), caption=words or "-", titles=titles, note=words)
        assert page.size == quiet.size
        assert (np.asarray(page)[:, -14:] == 255).all()
        view.montage([[noise(9, 9)]], row_labels=[words], column_labels=[words])
    finally:
        text.font.cache_clear()
        text._drawable.cache_clear()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("a\nb\tc\x00\x07", "a b c"),
        ("\ud83d half", "? half"),
        ("abc \u202edef\u200b", "abc def"),  # a mark that turns the writing round
        ("Cafe\u0301 Ångström – 3 × 2", "Cafe Angstrom - 3 x 2"),
    ],
)
def test_words_become_one_line_that_can_be_drawn(words: str, line: str) -> None:
    assert text.clean(words) == line


def test_long_words_end_in_an_ellipsis_and_fit() -> None:
    face = text.font(14)
    short = text.cut("tabby cat " * 50, face, 200)
    assert short.endswith("…") and 150 < face.getlength(short) <= 200
    assert text.cut("tabby cat", face, 200) == "tabby cat"
    lines = text.wrap("no positive evidence: all-negative " * 9, face, 150, 3)
    assert len(lines) == 3 and lines[-1].endswith("…") and max(map(face.getlength, lines)) <= 150


def test_a_note_is_seen_on_both_maps_and_not_on_the_picture() -> None:
    picture, heat = Image.new("RGB", (320, 200), "grey"), np.zeros((200, 320), np.float32)
    bare, noted = (np.asarray(view.panel(picture, heat, note=note), int) for note in ("", "all-negative"))
    changed = (bare != noted).any(axis=2)
    assert not changed[:, : 16 + 320].any()
    assert changed[116, 16 + 332 : 16 + 652].all() and changed[116, 16 + 664 : 16 + 984].all()


def test_a_panel_refuses_what_it_cannot_show() -> None:
    picture, heat = noise(30, 20), np.zeros((20, 30), np.float32)
    with pytest.raises(InputError, match="30 × 20 pixels, the heat map 20 × 30"):
        view.panel(picture, heat.T)
    with pytest.raises(InputError, match="three titles"):
        view.panel(picture, heat, titles=("one",))
    with pytest.raises(TypeError, match=r"'captoin'.*'caption'"):
        view.panel(picture, heat, captoin="x")  # type: ignore[call-arg]
    with pytest.raises(InputError, match="side=0"):
        view.panel(picture, heat, side=0)


def test_a_montage_puts_each_picture_in_its_place() -> None:
    red, green, blue = (Image.new("RGB", *made) for made in (((50, 50), "red"), ((400, 200), "lime"), ((3, 9), "blue")))
    page = view.montage([[red, green], [None], [blue, blue]], side=100)
    assert page.size == (16 + 100 + 8 + 100 + 16, 16 + 100 + 8 + 100 + 8 + 100 + 16)
    pixel = [page.getpixel(at) for at in ((66, 66), (174, 66), (66, 174), (66, 282), (174, 282), (120, 66))]
    assert (np.asarray(page)[16:116, 16:116] == (255, 0, 0)).all()  # the words that are not there leave no dots
    grey = (236, 236, 236)
    assert pixel == [(255, 0, 0), (0, 255, 0), grey, (0, 0, 255), (0, 0, 255), (255, 255, 255)]
    labelled = view.montage([[red, green]], row_labels=["Grad-CAM"], column_labels=["a", "b"], side=100)
    assert labelled.width > 240 and labelled.height > 132
    assert labelled.getpixel((labelled.width - 66, labelled.height - 66)) == (0, 255, 0)


def test_a_montage_refuses_what_it_cannot_label() -> None:
    with pytest.raises(InputError, match="0 rows"):
        view.montage([])
    with pytest.raises(InputError, match="1 rows of at most 0"):
        view.montage([[]])
    with pytest.raises(InputError, match="2 column labels; got 1"):
        view.montage([[None, None]], column_labels=["a"])


# --- bytes and cards


def test_png_and_data_url_give_the_picture_back() -> None:
    picture = noise(33, 21)
    head, _, body = view.data_url(picture).partition(",")
    assert head == "data:image/png;base64"
    for data in (view.png_bytes(picture), base64.b64decode(body)):
        np.testing.assert_array_equal(Image.open(io.BytesIO(data)), picture)
    assert Image.open(io.BytesIO(view.png_bytes(picture.convert("CMYK")))).mode == "RGB"


def test_a_card_escapes_everything_and_loads_nothing() -> None:
    evil = "<script>alert('x')</script>\"&"
    page = view.card(noise(4, 4), {evil: evil, "half \ud83d": "\udc00"})
    assert "<script" not in page and "&lt;script&gt;" in page and "&quot;&amp;" in page
    assert page.count('"') % 2 == 0 and "http" not in page and page.encode("utf-8")
    assert "<table" not in view.card(noise(4, 4), {})


# --- the maps of several classes


def test_a_sheet_puts_every_class_above_its_overlay_on_one_scale() -> None:
    picture = Image.new("RGB", (100, 50), (0, 0, 200))
    heats = [np.full((50, 100), value, np.float32) for value in (1.0, 0.5, 0.0)]
    page = view.class_map_sheet(picture, heats, ["cat", "dog", "car"], side=100)
    top = page.height - 16 - 50 - 8 - 50  # the lower margin, two rows and what is between them
    assert page.width == 16 + 4 * 100 + 3 * 8 + 16
    assert page.getpixel((66, top + 25)) == (0, 0, 200)
    for i, value in enumerate((1.0, 0.5, 0.0), start=1):
        colour = np.array(view.table("turbo")[round(255 * value)], int)
        x = 16 + 108 * i + 50
        np.testing.assert_allclose(page.getpixel((x, top + 25)), colour, atol=1)
        np.testing.assert_allclose(page.getpixel((x, top + 83)), (colour + np.array([0, 0, 200])) / 2, atol=2)


def test_a_sheets_bar_runs_from_cold_to_hot_and_names_its_ends() -> None:
    picture, heats = Image.new("RGB", (300, 300), "grey"), [np.zeros((300, 300))]
    plain, signed = (np.asarray(view.class_map_sheet(picture, heats, ["cat"], signed=s), int) for s in (False, True))
    lows = []
    for page, scale in ((plain, view.table("turbo")), (signed, view.scale(signed=True))):
        rows = page[-16 - 224 :, 16 : 16 + 224]  # the place below the picture
        line = next(y for y in range(224) if np.abs(rows[y, 0] - scale[0]).max() < 3)
        np.testing.assert_allclose(rows[line + 3, [0, 223]], scale[[0, -1]], atol=3)
        np.testing.assert_allclose(rows[line + 3, 112], scale[len(scale) // 2], atol=6)
        lows.append((rows[line + 12 :, :75] < 128).sum())
    assert lows[0] > 0 and lows[1] > lows[0]  # "0" on the left, or "−max"
    other = np.asarray(view.class_map_sheet(picture, heats, ["cat"], signed=True, top="12.5"), int)
    changed = np.argwhere((other != signed).any(2))
    assert changed.size and changed[:, 1].max() < 16 + 224 and changed[:, 0].min() > 16 + 224


def test_a_sheets_caption_is_one_line_below_and_its_signs_are_told_apart() -> None:
    picture = Image.new("RGB", (200, 100), "grey")
    heats = [np.full((100, 200), value) for value in (-1.0, 1.0, np.nan)]
    bare = view.class_map_sheet(picture, heats, ["a", "b", "c"], signed=True)
    told = view.class_map_sheet(picture, heats, ["a", "b", "c"], signed=True, caption="low confidence")
    assert told.width == bare.width and 10 < told.height - bare.height < 30
    a, b = np.asarray(told), np.asarray(bare)
    assert np.array_equal(a[: bare.height - 16], b[:-16]) and (a[bare.height - 8 :, 16:] < 128).any()
    line = bare.height - 16 - 112 - 8 - 56
    ends = [told.getpixel((16 + 232 * i + 112, line)) for i in (1, 2)]
    np.testing.assert_array_equal(ends, view.scale(signed=True)[[0, -1]])
    unseen = a[line - 40 : line + 40, 16 + 232 * 3 + 20 :][:, :180]
    assert (unseen.max(2) == unseen.min(2)).all() and len(np.unique(unseen)) > 1  # grey, in stripes


def test_a_sheet_refuses_what_it_cannot_show() -> None:
    picture, heat = noise(30, 20), np.zeros((20, 30), np.float32)
    for heats, labels in (([heat], []), ([], []), ([heat, heat], ["one"]), ([heat], "a")):
        with pytest.raises(InputError, match=r"one label for each map.*: \d maps"):
            view.class_map_sheet(picture, heats, labels)
    with pytest.raises(InputError, match="30 × 20 pixels, the heat map 20 × 30"):
        view.class_map_sheet(picture, [heat, heat.T], ["a", "b"])
