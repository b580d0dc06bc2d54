"""Every hostile picture is made here; only a good picture or a PictureError may come out, and no setting may change."""

import io
import os
import socket
import struct
import subprocess
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageFile

from camlucida import images
from camlucida.errors import PictureError
from camlucida.images import Limits


def shared_settings() -> tuple[object, ...]:
    return ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, [*warnings.filters], {**Image.OPEN}


def open_picture(source, **options) -> images.Picture:
    """`images.open_picture`, and nothing that other threads share is changed by it: neither Pillow nor the filters."""
    before = shared_settings()
    try:
        return images.open_picture(source, **options)
    finally:
        assert shared_settings() == before


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(width: int = 64, height: int = 48) -> Image.Image:
    """Smooth, so that lossy formats keep it, and different in every corner."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 64 + 96], -1).astype(np.uint8))


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.mode == b.mode and not ImageChops.difference(a, b).getbbox()


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\x01IDATx"


def gif_header(width: int, height: int, frame: tuple[int, int] = (1, 1)) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return screen + b"!\xfe\x03abc\x02de\0," + struct.pack("<4HBB", 0, 0, *frame, 0, 2) + b"\x02\x4c\x01\0;"


def webp_header(kind: bytes, body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 100) + b"WEBP" + kind + struct.pack("<I", 40) + body + bytes(40)


BMP = encoded(photo(), "BMP")
REFUSED = {
    "empty": (b"", "empty"),
    "one byte": (b"P", "not a picture"),
    "html": (b"\n<!DOCTYPE html><html></html>", "HTML"),
    "signature only": (b"\x89PNG\r\n\x1a\n", "damaged"),
    "jpeg signature only": (b"\xff\xd8\xff", "damaged"),
    "png bomb": (png_header(60_000, 60_000), "60,000 × 60,000 is over the limit of 50 Mpx"),
    "png for which Pillow warns": (png_header(10_000, 9_500), "over the limit of 50 Mpx"),
    "png too long": (png_header(200_000, 1), "100,000 pixels a side"),
    "gif screen bomb": (gif_header(65_535, 65_535), "65,535 × 65,535 is over"),
    "gif frame bomb": (gif_header(8, 8, (9_999, 9_999)), "9,999 × 9,999 is over"),
    "webp bomb": (webp_header(b"VP8X", bytes(4) + b"\xff\x3f\0\xff\x3f\0"), "16,384 × 16,384 is over"),
    "webp lossless bomb": (webp_header(b"VP8L", b"\x2f\xff\xff\xff\x0f"), "16,384 × 16,384 is over"),
    "webp lossy bomb": (webp_header(b"VP8 ", b"\0\0\0\x9d\x01\x2a\xff\x3f\xff\x3f"), "16,383 × 16,383 is over"),
    "bmp bomb": (BMP[:18] + struct.pack("<ii", 60_000, 60_000) + BMP[26:], "60,000 × 60,000"),
    "ppm bomb": (b"P6 60000 60000 255\n", "60,000 × 60,000"),
} | {
    f"truncated {kind}": (encoded(photo(), kind)[:-120], "damaged")
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_picture_is_refused_with_its_reason(name, tmp_path):
    data, words = REFUSED[name]
    path = tmp_path / "cat.jpg"
    path.write_bytes(data)
    for source in (data, path, str(path), io.BytesIO(data)):
        with pytest.raises(PictureError, match=words) as caught:
            open_picture(source)
        assert str(caught.value).isprintable()
    with pytest.raises(PictureError, match=r"cat\.jpg: "):
        open_picture(path)


def test_a_flipped_bit_in_a_png_is_seen():
    data = encoded(photo(), "PNG")
    for at in range(33, len(data), 97):
        with pytest.raises(PictureError, match="damaged"):
            open_picture(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])


def test_a_renamed_eps_never_starts_ghostscript(tmp_path, monkeypatch):
    marker, gs, path = tmp_path / "marker", tmp_path / "gs", tmp_path / "eps_as.jpg"
    gs.write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    subprocess.run(["gs"], check=True)
    assert marker.exists()  # the trap works
    marker.unlink()
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n")
    with Image.open(path) as eps:
        for source in (path, eps):
            with pytest.raises(PictureError, match="EPS"):
                open_picture(source)
    assert not marker.exists()


def test_folders_pipes_sockets_devices_and_missing_files_are_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    cases = {".": "folder", "pipe.jpg": "a pipe", "socket.jpg": "socket, not", os.devnull: "a device",
             "loop.jpg": "link", "missing.jpg": "no such file", "missing\0.jpg": "null", "a" * 300: "long"}  # fmt: skip
    with socket.socket(socket.AF_UNIX) as server, monkeypatch.context() as patch:
        server.bind("socket.jpg")
        patch.setattr("builtins.open", lambda *_, **__: pytest.fail("opened"))
        for name, words in cases.items():
            with pytest.raises(PictureError, match=words):
                open_picture(name)
    (tmp_path / "plain").touch()
    with monkeypatch.context() as patch, pytest.raises(PictureError, match="a pipe"):
        patch.setattr("os.stat", lambda _: os.lstat("plain"))  # a pipe put in place of the file after the first look
        open_picture(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("fault", [
    OSError("x"), ValueError("x"), SyntaxError("x"), TypeError("x"), NotImplementedError("x"), OverflowError("x"),
    MemoryError(), struct.error("x"), zlib.error("x"), EOFError("x"), Image.DecompressionBombError("x"), KeyError("x"),
    RecursionError("x"), AttributeError("x"), IndexError("x"), UserWarning("x"), StopIteration(), KeyboardInterrupt(),
])  # fmt: skip
def test_whatever_a_decoder_raises_becomes_a_picture_error_and_ctrl_c_passes(fault, monkeypatch):
    def fail(*_, **__):
        raise fault

    data, expected = encoded(photo(), "PNG"), PictureError if isinstance(fault, Exception) else KeyboardInterrupt
    for place, name in ((Image.Image, "convert"), (ImageFile.ImageFile, "load"), (ImageFile.ImageFile, "__init__")):
        with monkeypatch.context() as patch, pytest.raises(expected):
            patch.setattr(place, name, fail)
            open_picture(data)


def test_limits_are_the_callers():
    data = encoded(photo(), "PNG")
    for limits in (Limits(max_pixels=1000), Limits(max_side=60), Limits(max_bytes=100)):
        for source in (data, io.BytesIO(data), *((photo(), np.asarray(photo())) if limits.max_bytes > 100 else ())):
            with pytest.raises(PictureError, match="over the limit"):
                open_picture(source, limits=limits)
    # a picture at which Image.open would warn gets as far as its pixels, which are missing, where the caller allows it
    with pytest.raises(PictureError, match=r"damaged \((?!.*bomb)"):
        open_picture(png_header(10_000, 9_500), limits=Limits(max_pixels=10**8))


SMALL = {kind: encoded(photo(16, 12), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")}
STARTS = [b"", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"P6", b"Pf", b"P2 ", b"RIFF0000WEBPVP8X"]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([*SMALL, "raw"]), st.data())
def test_only_picture_errors_escape(kind, data):
    if kind == "raw":
        blob = data.draw(st.sampled_from(STARTS)) + data.draw(st.binary(max_size=200))
    else:
        blob = bytearray(SMALL[kind])
        for _ in range(data.draw(st.integers(1, 4))):
            blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
        blob = blob[: data.draw(st.integers(1, len(blob)))]
    for allow in (False, True):
        try:
            picture = open_picture(bytes(blob), allow_damaged=allow)
        except PictureError:
            continue
        assert picture.image.mode == "RGB" and np.asarray(picture.image).size


def tiff_that_begins_with_its_directory(image: Image.Image) -> bytes:
    w, h = image.size
    tags = [(256, 3, 1, w), (257, 3, 1, h), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 200),
            (277, 3, 1, 1), (278, 3, 1, h), (279, 4, 1, w * h)]  # fmt: skip
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return (b"II*\0" + struct.pack("<I", 8) + ifd).ljust(200, b"\0") + image.convert("L").tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "GIF", "BMP", "TIFF", "PPM"])
def test_the_readable_part_of_a_cut_file_is_kept_when_asked(kind):
    whole = photo(160, 120) if kind != "PNG" else Image.effect_noise((160, 120), 60).convert("RGB")
    options = {"GIF": {"interlace": False}, "progressive": {"progressive": True}}.get(kind, {})
    data = encoded(whole, "JPEG" if kind == "progressive" else kind, **options)
    data = tiff_that_begins_with_its_directory(whole) if kind == "TIFF" else data
    cut = data[: int(len(data) * 0.7)]
    with pytest.raises(PictureError, match=r"damaged.*allow_damaged=True"):
        open_picture(cut)
    picture = open_picture(cut, allow_damaged=True)
    assert picture.notes[0].startswith("damaged: ") and picture.image.size == whole.size
    rows = slice(80, None) if kind == "BMP" else slice(40)  # BMP begins at the bottom
    difference = np.asarray(picture.image).astype(int) - np.asarray(open_picture(data).image)
    assert abs(difference)[rows].mean() < 8


def test_nothing_readable_is_refused_even_when_damage_is_allowed():
    for kind, mark, more in (("JPEG", b"\xff\xda", 4), ("PNG", b"IDAT", 4), ("GIF", b",\0\0", 11), ("WEBP", b"VP8", 9)):
        data = encoded(photo(), kind)
        with pytest.raises(PictureError, match="damaged"):
            open_picture(data[: data.index(mark) + more], allow_damaged=True)


def test_damage_allowed_in_one_thread_is_not_allowed_in_another():
    cut, refused = encoded(photo(320, 240), "JPEG")[:3000], []

    def strict():
        for _ in range(60):
            with pytest.raises(PictureError):
                images.open_picture(cut)
            refused.append(1)

    threads = [threading.Thread(target=strict) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        images.open_picture(cut, allow_damaged=True)
    for thread in threads:
        thread.join()
    assert len(refused) == 120


def test_the_extension_says_nothing_and_names_are_safe_to_print(tmp_path):
    names = {name: name for name in ("cat.JPEG", "cat.jpg", "cat", "cat.eps", "日本.png")}
    names |= {"a\nb\x1b[31m.png": r"a\nb\x1b[31m.png", "a\udcff.png": r"a\udcff.png", "a\u202egnp": r"a\u202egnp"}
    for name, shown in names.items():
        (tmp_path / name).write_bytes(encoded(photo(), "PNG"))
        picture = open_picture(tmp_path / name)
        assert (picture.name, picture.notes) == (shown, ()) and same(picture.image, photo())
        with pytest.raises(PictureError) as caught:
            open_picture(tmp_path / ("missing" + name))
        assert str(caught.value).isprintable()


def test_files_and_pictures_in_memory_are_left_as_they_are(tmp_path):
    data, path = encoded(photo(), "PNG"), tmp_path / "cat.png"
    written = io.BytesIO()
    written.write(data)  # left at its end, as after save()
    path.write_bytes(data)
    with open(path, "rb") as file, open(path, encoding="latin-1") as text, Image.open(path) as lazily:
        for source in (written, file, lazily, photo(), np.asarray(photo())):
            picture = open_picture(source)
            assert picture.name == "picture" and same(picture.image, photo())
            picture.image.paste("red", (0, 0, 64, 48))
            assert same(open_picture(source).image, photo())
        for nonsense in (text, None, 7, [data]):
            with pytest.raises((PictureError, TypeError)):
                open_picture(nonsense)


FRAMES = {kind: "first of 3 frames" for kind in ("WEBP", "PNG", "AVIF")}
FRAMES |= {"GIF": "animated: first frame", "TIFF": "several pages: first page", "MPO": "main picture"}


@pytest.mark.parametrize("kind", FRAMES)
def test_the_first_frame_is_used_and_said(kind):
    red, *others = (Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue"))
    picture = open_picture(encoded(red, kind, save_all=True, append_images=others))
    assert FRAMES[kind] in picture.notes[0]
    assert picture.image.getpixel((9, 9)) == pytest.approx((255, 0, 0), abs=4)
    assert open_picture(encoded(red, "JPEG" if kind == "MPO" else kind)).notes == ()


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_the_cost_of_an_animation_is_that_of_its_first_frame(kind, tmp_path, monkeypatch):
    class Counting(io.FileIO):
        read_so_far = 0

        def readinto(self, buffer):
            Counting.read_so_far += (count := super().readinto(buffer))
            return count

    def cost(frames: int) -> int:
        pictures = [Image.effect_noise((90, 90), 20 + i % 50) for i in range(frames)]
        path, Counting.read_so_far = tmp_path / "many", 0
        path.write_bytes(encoded(pictures[0], kind, save_all=True, append_images=pictures[1:]))
        with monkeypatch.context() as patch:
            patch.setattr("builtins.open", lambda *args, opener: io.BufferedReader(Counting(*args, opener=opener)))
            assert open_picture(path).notes
        return Counting.read_so_far

    assert cost(300) <= 1.2 * cost(30)
