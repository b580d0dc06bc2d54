"""How pixels become the tensor: every kind of pixel, every orientation, bit for bit what torchvision makes of them."""

import io
import itertools
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, TiffImagePlugin
from test_images import encoded, open_picture, photo, same

from camlucida.errors import InputError, PictureError
from camlucida.frame import IMAGENET, Frame, Preprocess
from camlucida.pixels import to_rgb

MEAN, STD = IMAGENET.mean, IMAGENET.std
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


# ------------------------------------------------------------------------------------------------------------- tensor
def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values).convert(mode)


def twin(picture: Image.Image, how: Preprocess) -> tuple[torch.Tensor, list[float]]:
    """Crop, in the words of the textbook: short side to size / crop, cut from the centre; pixel by pixel, float64."""
    (w, h), out, side = picture.size, how.size[0], round(how.size[0] / how.crop)
    rw, rh = (side, int(side * h / w)) if w <= h else (int(side * w / h), side)
    x0, y0 = round((rw - out) / 2), round((rh - out) / 2)
    resized = picture.resize((rw, rh), getattr(Image.Resampling, how.interpolation.upper()))
    x = torch.zeros(3, out, out, dtype=torch.float64)
    for c, i, j in itertools.product(range(3), range(out), range(out)):
        x[c, i, j] = (resized.getpixel((x0 + j, y0 + i))[c] / 255 - how.mean[c]) / how.std[c]
    return x, [x0 / rw * w, y0 / rh * h, (x0 + out) / rw * w, (y0 + out) / rh * h]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(50, 40), (31, 50), (51, 35), (33, 33), (7, 3), (1, 1), (150, 97)])
def test_crop_is_what_the_slow_twin_makes(size, interpolation):
    how = Preprocess((14, 14), MEAN, STD, interpolation=interpolation)
    x, frame = how(noise(*size))
    expected, box = twin(noise(*size), how)
    assert x.dtype == torch.float32 and torch.allclose(x.double(), expected, atol=1e-6)
    assert frame.box == pytest.approx(box) and (frame.width, frame.height) == size


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_crop_is_bit_for_bit_torchvision(interpolation):
    try:
        from torchvision import transforms as T
    except (ImportError, RuntimeError) as why:
        pytest.skip(f"torchvision: {why}")
    mode = T.InterpolationMode(interpolation)
    sizes, crops = [(500, 375), (37, 81), (90, 91), (224, 224)], [(224, 0.875), (32, 0.95)]
    for (w, h), (out, crop) in itertools.product(sizes, crops):
        theirs = T.Compose([T.Resize(round(out / crop), mode), T.CenterCrop(out), T.ToTensor(), T.Normalize(MEAN, STD)])
        ours, _ = Preprocess((out, out), MEAN, STD, crop, interpolation=interpolation)(noise(w, h))
        assert torch.equal(ours, theirs(noise(w, h)))


@pytest.mark.parametrize("size", [(1, 65_500), (65_500, 1), (2, 40_000), (1, 1)])
@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
def test_a_thin_strip_costs_no_more_than_any_other(size, fit, monkeypatch):
    asked, resize = [], Image.Image.resize

    def counted(self, size, *args, **kwargs):
        asked.append(size[0] * size[1])
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", counted)
    strip = Image.new("RGB", size, (255, 0, 0))
    picture = open_picture(encoded(strip, "PNG")).image
    x, frame = Preprocess((224, 224), MEAN, STD, fit=fit)(picture)
    assert x.shape == (3, 224, 224) and max(asked) <= 16_000_000
    middle = torch.tensor([(value - m) / s for value, m, s in zip((1.0, 0.0, 0.0), MEAN, STD, strict=True)])
    assert torch.allclose(x[:, 112, 112], middle, atol=1e-5)
    assert frame.to_picture(0.5, 0.5) == pytest.approx((size[0] / 2, size[1] / 2), abs=1)  # half a pixel of the tensor


@pytest.mark.parametrize("interpolation", INTERPOLATIONS[1:])
def test_the_way_for_strips_shows_the_same_pixels(interpolation, monkeypatch):
    """Both ways agree but for rounding; on smooth pictures to a few levels, so the rectangle is right."""
    how = Preprocess((32, 32), MEAN, STD, interpolation=interpolation)
    exact, frame = how(photo(300, 80))
    monkeypatch.setattr("camlucida.frame._LARGEST_STEP", 0)
    boxed, other = how(photo(300, 80))
    assert frame == other and abs(exact - boxed).max() < 0.05


def test_grey_models_get_one_channel_and_any_mode_is_taken():
    how = Preprocess((8, 8), (0.5,), (0.25,), crop=1.0)
    x, frame = how(noise(8, 8))
    grey = torch.from_numpy(np.array(noise(8, 8, "L"))).float() / 255
    assert how.channels == 1 and torch.equal(x, ((grey - 0.5) / 0.25)[None]) and frame == Frame.whole(8, 8)
    for mode in ("1", "L", "P", "CMYK", "RGBA", "I;16", "F"):
        assert IMAGENET(Image.new(mode, (9, 5)))[0].shape == (3, 224, 224)


def test_squash_and_letterbox():
    squash = Preprocess((20, 30), MEAN, STD, crop=1.0, fit="squash")
    x, frame = squash(noise(64, 48))
    assert x.shape == (3, 20, 30) and frame == Frame.whole(64, 48) and frame.covers_all
    assert not Preprocess((20, 30), MEAN, STD, fit="squash")(noise(64, 48))[1].covers_all
    x, frame = Preprocess((32, 32), MEAN, STD, fit="letterbox")(noise(64, 48))
    assert frame.box == (0.0, -8.0, 64.0, 56.0) and frame.covers_all
    assert (x[:, :4] == 0).all() and (x[:, 28:] == 0).all() and (x[:, 4:28] != 0).float().mean() > 0.9
    x, frame = Preprocess((32, 32), MEAN, STD, fit="letterbox")(noise(48, 65))
    inside = (x != 0).any(0).any(0).nonzero().flatten()
    for edge, where in ((0.0, int(inside[0])), (48.0, int(inside[-1]) + 1)):
        assert frame.to_tensor(edge, 0.0)[0] * 32 == pytest.approx(where)


@given(st.tuples(*[st.integers(1, 3000)] * 2), st.tuples(*[st.integers(1, 90)] * 2), st.floats(0.05, 1.0),
       st.sampled_from(["crop", "squash", "letterbox"]), st.tuples(*[st.floats(-1.0, 2.0)] * 2))  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_the_two_directions_of_a_frame(picture_size, size, crop, fit, at):
    (w, h), (tall, wide), (u, v), picture = picture_size, size, at, Image.new("L", picture_size)
    x, frame = Preprocess((tall, wide), (0.5,), (0.5,), crop, fit=fit)(picture)
    left, top, right, bottom = frame.box
    assert x.shape == (1, tall, wide) and (x != 0).any()
    assert frame.to_picture(0.0, 0.0) == (left, top) and frame.to_tensor(right, bottom) == (1.0, 1.0)
    assert frame.to_picture(1.0, 1.0) == pytest.approx((right, bottom))
    assert frame.to_tensor(*frame.to_picture(u, v)) == pytest.approx((u, v), abs=1e-6)
    if fit == "letterbox":
        assert frame.covers_all
    else:
        assert left >= 0 and top >= 0 and right <= w and bottom <= h


@pytest.mark.parametrize("wrong", [
    {"size": (0, 5)}, {"size": (5,)}, {"mean": (0.5, 0.5)}, {"mean": (), "std": ()}, {"std": (1.0, 0.0, 1.0)},
    {"crop": 0.0}, {"crop": 1.5}, {"crop": float("nan")}, {"fit": "stretch"}, {"interpolation": "cubic"},
])  # fmt: skip
def test_senseless_settings_are_refused(wrong):
    with pytest.raises((InputError, TypeError)):
        Preprocess(**{"size": (8, 8), "mean": MEAN, "std": STD, **wrong})


# ------------------------------------------------------------------------------------------------- every kind of pixel
def mean(source) -> list[float]:
    return np.asarray(open_picture(source).image).reshape(-1, 3).mean(0).round(1).tolist()


def test_sixteen_bits_are_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 256 * 64).reshape(64, 256).astype(np.uint16)
    wide, big = Image.fromarray(ramp), Image.frombytes("I;16B", (256, 64), ramp.astype(">u2").tobytes())
    pgm = b"P5 256 64 65535\n" + ramp.astype(">u2").tobytes()
    for source in (encoded(wide, "PNG"), encoded(wide, "TIFF"), encoded(big, "TIFF"), pgm, wide, big, ramp,
                   Image.fromarray(ramp.astype(np.int32)), ramp.astype(">u2")):  # fmt: skip
        picture = open_picture(source)
        assert picture.notes == ("16-bit scaled to 8",) and 126 < mean(source)[0] < 128.5
        assert abs(np.asarray(picture.image)[..., 0] - (ramp / 257)).max() <= 0.51


def test_thirty_two_bits_and_floats_are_scaled_and_said():
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(8, 32)
    for values, note in (
        (ramp, "floats in 0..1"), (ramp * 4000 - 1000, "values from -1000 to 3000"), (ramp * 1e38, "values from 0"),
        ((ramp * 255).round().astype(np.int32), "as 8-bit"), ((ramp * 2e9 - 1e9).astype(np.int32), "values from -1e"),
    ):  # fmt: skip
        for source in (Image.fromarray(values), encoded(Image.fromarray(values), "TIFF")):
            picture = open_picture(source)
            assert note in picture.notes[0]
            assert abs(np.asarray(picture.image)[..., 0] - ramp * 255).max() <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad):
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = bad
    for source in (values, Image.fromarray(values), encoded(Image.fromarray(values), "TIFF")):
        with pytest.raises(PictureError, match="NaN or infinite"):
            open_picture(source)


def test_colour_spaces():
    red, orange = Image.new("RGB", (8, 8), (220, 30, 40)), Image.new("CMYK", (32, 32), (0, 128, 255, 0))
    adobe = encoded(orange, "JPEG", quality=95)
    start = adobe.index(b"\xff\xee")  # the Adobe marker: ink is stored upside down
    bare = adobe[:start] + adobe[start + 2 + int.from_bytes(adobe[start + 2 : start + 4], "big") :]
    for source in (orange, adobe, bare, encoded(orange, "TIFF")):  # without the marker Pillow assumes Adobe as well
        assert mean(source) == pytest.approx([255, 127, 0], abs=3)
    for mode in ("YCbCr", "HSV", "RGBX"):
        assert mean(red.convert(mode)) == pytest.approx([220, 30, 40], abs=5)
    lab = Image.new("LAB", (8, 8), (160, 128, 128))  # L* = 160 / 255 · 100; 128 stands for no colour
    assert mean(encoded(lab, "TIFF")) == mean(lab) == pytest.approx([151] * 3, abs=4)
    assert mean(Image.new("1", (3, 3), 1)) == mean(encoded(Image.new("1", (3, 3), 1), "TIFF")) == [255] * 3


def test_alpha_lies_over_white_and_is_noted():
    clear, half = Image.new("RGBA", (4, 4), (255, 0, 0, 0)), Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    for source in (
        encoded(clear, "PNG"), encoded(clear, "WEBP"), np.zeros((4, 4, 4), bool), Image.new("LA", (4, 4)),
        encoded(palette, "PNG", transparency=1), encoded(palette, "GIF", transparency=1),
        encoded(palette, "PNG", transparency=b"\xff\0"),
        encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)), Image.new("PA", (4, 4), (0, 0)),
        encoded(Image.new("L", (4, 4), 7), "PNG", transparency=7), Image.new("La", (4, 4)), Image.new("RGBa", (4, 4)),
    ):  # fmt: skip
        assert mean(source) == [255] * 3 and open_picture(source).notes == ("alpha laid over white",)
    assert mean(encoded(half, "PNG")) == pytest.approx([255, 127, 127], abs=1)
    assert mean(encoded(palette, "PNG")) == [0, 0, 255]
    assert to_rgb(Image.new("RGBA", (1, 1), (9, 8, 7, 255)))[1] == []


def test_arrays():
    rgb = np.asarray(photo())
    for array in (rgb, rgb / 255, (rgb / 255).astype(np.float32), rgb.astype(np.uint16) * 257, rgb[::-1][::-1]):
        assert same(open_picture(array).image, photo())
    assert open_picture(rgb[..., :1]).image.size == open_picture(rgb[..., 0]).image.size == (64, 48)
    for array, words in (
        (rgb.transpose(2, 0, 1), "channels come last"), (rgb[None], "shape"), (np.zeros((0, 4)), "no pixels"),
        (rgb.astype(int), "ambiguous"), (rgb.astype(float), "0, 1"), (rgb / 255 - 0.1, "0, 1"), (rgb[0, 0], "shape"),
        (np.zeros((3, 3), complex), "ambiguous"), (np.array([["a"]]), "ambiguous"), (np.zeros((4, 4, 2)), "shape"),
    ):  # fmt: skip
        with pytest.raises(PictureError, match=words):
            open_picture(array)


# ------------------------------------------------------------------------------------------------------------ upright
STORED = {2: Image.Transpose(0), 3: Image.Transpose(3), 4: Image.Transpose(1), 5: Image.Transpose(5),
          6: Image.Transpose(2), 7: Image.Transpose(6), 8: Image.Transpose(4)}  # fmt: skip


def turned(kind: str, orientation: int) -> bytes:
    """Red, green, blue, white at top left, top right, bottom left, bottom right once EXIF is obeyed."""
    upright = Image.new("RGB", (64, 32), "white")
    for x, y, colour in ((0, 0, "red"), (32, 0, "lime"), (0, 16, "blue")):
        upright.paste(colour, (x, y, x + 32, y + 16))
    image, exif = upright.transpose(STORED[orientation]) if orientation in STORED else upright, Image.Exif()
    exif[274] = orientation
    if kind.startswith("TIFF"):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[274] = orientation
        return encoded(image, "TIFF", tiffinfo=tags, compression="tiff_lzw" if kind == "TIFF lzw" else None)
    return encoded(image, kind, exif=exif, **({"quality": 100} if kind != "PNG" else {}))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF lzw", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed_once(kind, orientation):
    data = turned(kind, orientation)
    corners = {(4, 4): (255, 0, 0), (59, 4): (0, 255, 0), (4, 27): (0, 0, 255), (59, 27): (255, 255, 255)}
    with Image.open(io.BytesIO(data)) as lazily:
        for source in (data, lazily):
            image = open_picture(source).image
            assert image.size == (64, 32)
            for at, colour in corners.items():
                assert image.getpixel(at) == pytest.approx(colour, abs=6)


def test_senseless_orientations_and_garbage_are_ignored():
    for value in (0, 9, 65535):
        exif = Image.Exif()
        exif[274] = value
        for kind in ("JPEG", "PNG"):
            assert open_picture(encoded(photo(), kind, exif=exif)).image.size == (64, 48)
    for garbage in (b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\x1b[31m<script>"):
        assert open_picture(encoded(photo(), "JPEG", exif=garbage)).image.size == (64, 48)


def test_heic_needs_its_extra_and_obeys_the_same_limits(monkeypatch):
    class Reader(ImageFile.ImageFile):
        format, side = "HEIF", 64

        def _open(self):
            self._size, self._mode, self.tile = (Reader.side, Reader.side), "RGB", []

        def load(self):
            self.im = Image.new("RGB", self.size, "red").im
            return super().load()

    monkeypatch.setitem(sys.modules, "pillow_heif", types.ModuleType("pillow_heif"))
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    for brand in (b"heic", b"mif1"):
        with pytest.raises(PictureError, match=r"pip install camlucida\[heic\]"):
            open_picture(b"\0\0\0\x18ftyp" + brand + bytes(12))
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", types.SimpleNamespace(HeifImageFile=Reader))
    assert open_picture(b"\0\0\0\x18ftypheic" + bytes(12)).image.getpixel((0, 0)) == (255, 0, 0)
    Reader.side = 60_000
    with pytest.raises(PictureError, match="over the limit"):
        open_picture(b"\0\0\0\x18ftypheic" + bytes(12))
