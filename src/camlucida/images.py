"""Safe opening of untrusted pictures: whatever comes in, an upright 8-bit RGB picture or a `PictureError` comes out.

Nothing here touches a setting that other threads share: neither Pillow's globals nor the warning filters. That is why
Pillow's reader classes are called directly. `PIL.Image.open` runs its own bomb check, which can only be quietened for
the whole process; here sizes are checked from the header, against `Limits`, before any pixel is decoded.
"""

import io
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from camlucida.errors import PictureError
from camlucida.files import looks_like, printable
from camlucida.pixels import bands_shown as bands_shown
from camlucida.pixels import from_array, to_rgb

# BytesIO is an IO[bytes] to a static checker but not to one that looks at the object: it has neither mode nor name
_File: TypeAlias = io.BufferedIOBase | IO[bytes]
Source: TypeAlias = str | os.PathLike[str] | bytes | _File | Image.Image | NDArray[Any]
"""What `open_picture` takes."""

ENDINGS = frozenset(".jpg .jpeg .jpe .jfif .png .gif .webp .bmp .tif .tiff .ppm .pgm .pbm .avif .heic .heif".split())
"""What a file in a folder must end in to be taken for a picture; a file named by itself may end in anything."""

_Reader: TypeAlias = Callable[[Any, str], ImageFile.ImageFile]


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Not needed, and garbage in the metadata makes it warn."""


# The list of formats *is* the defence: EPS starts Ghostscript, PSD and FITS have a long record of holes. JPEG's own
# class is used and not Pillow's factory, which looks for further pictures behind the first and may warn about them.
_PLUGINS = ("Png", "Gif", "WebP", "Bmp", "Tiff", "Ppm", "Avif")
_READERS: dict[str, _Reader] = {"JPEG": _Jpeg} | {
    name.upper(): getattr(import_module(f"PIL.{name}ImagePlugin"), f"{name}ImageFile") for name in _PLUGINS
}
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_T = Image.Transpose
_TURN = {2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM, 5: _T.TRANSPOSE}
_TURN |= {6: _T.ROTATE_270, 7: _T.TRANSVERSE, 8: _T.ROTATE_90}  # EXIF orientation → what undoes it


@dataclass(frozen=True)
class Limits:
    """How large an untrusted picture may be: pixels, bytes of its file, pixels of its longer side."""

    max_pixels: int = 50_000_000
    max_bytes: int = 512_000_000
    max_side: int = 100_000


@dataclass(frozen=True)
class Picture:
    """An upright 8-bit RGB picture, a label to show (control characters escaped), and what the user should know."""

    image: Image.Image
    name: str
    notes: tuple[str, ...] = ()


DEFAULT_LIMITS = Limits()


def open_picture(source: Source, *, limits: Limits = DEFAULT_LIMITS, allow_damaged: bool = False) -> Picture:
    """Open any picture, from anywhere, as upright 8-bit RGB; the first frame of many, alpha laid over white.

    ``source`` is a path, the bytes of a file, a binary file, a PIL picture (left as it is) or an array (h w), (h w 1),
    (h w 3), (h w 4) of uint8, uint16, bool or floats in [0, 1]. Colour profiles are not applied, as in training.
    ``allow_damaged`` takes what can be read of a JPEG, PNG, GIF, BMP, TIFF or PPM file and notes the damage. JPEG has
    no checksum: a flipped bit inside one can go unseen.

    Raises:
        PictureError: the picture cannot be read, is damaged, or is over the limits.

    >>> picture = open_picture(np.full((2, 3), 65535, dtype=np.uint16))
    >>> picture.image.size, picture.image.getpixel((0, 0)), picture.notes
    ((3, 2), (255, 255, 255), ('16-bit scaled to 8',))
    """
    label = printable(os.fsdecode(source)) if isinstance(source, str | os.PathLike) else "picture"
    with seam(label):
        if isinstance(source, Image.Image | np.ndarray):
            image, notes = _from_memory(source, limits)
        else:
            with stream(source, limits) as file:
                image, notes = _decode(file, limits, allow_damaged)
        turn = _TURN.get(_orientation(image))
        image, how = to_rgb(image)
        if notes and notes[0].startswith("damaged") and image.getcolors(1):
            raise PictureError("damaged, and nothing of the picture can be read")
        return Picture(
            image if turn is None else image.transpose(turn), os.path.basename(label) or label, (*notes, *how)
        )


@contextmanager
def seam(label: str) -> Iterator[None]:
    """Whatever a decoder raises becomes one PictureError; decoders raise nearly everything."""
    try:
        yield
    except Exception as fault:
        raise PictureError(f"{label}: {_reason(fault)}") from fault


def _reason(fault: Exception) -> str:
    if isinstance(fault, PictureError):
        return str(fault)
    if isinstance(fault, MemoryError):
        return "not enough memory to decode it"
    if isinstance(fault, OSError) and fault.strerror:
        return "no such file" if isinstance(fault, FileNotFoundError) else fault.strerror.lower()
    return printable(str(fault)) or type(fault).__name__


@contextmanager
def stream(source: str | os.PathLike[str] | bytes | _File, limits: Limits) -> Iterator[io.BufferedIOBase]:
    """An open file to read from, which is a file indeed and not larger than the limit. Raises: PictureError."""
    if isinstance(source, str | os.PathLike):
        _check_file(os.stat(source), limits)  # before opening: to open a pipe already lets its writer go on
        with open(source, "rb", opener=lambda path, flags: os.open(path, flags | _NO_WAIT)) as file:
            _check_file(os.fstat(file.fileno()), limits)  # and again: it may have been replaced in between
            yield file
    else:
        data = source if isinstance(source, bytes) else _read_all(source, limits)
        _check_bytes(len(data), limits)
        yield io.BytesIO(data)


def _check_file(info: os.stat_result, limits: Limits) -> None:
    if (kind := stat.S_IFMT(info.st_mode)) != stat.S_IFREG:
        raise PictureError(f"is {_KINDS.get(kind, 'a device')}, not a file")
    _check_bytes(info.st_size, limits)


def _check_bytes(count: int, limits: Limits) -> None:
    if count > limits.max_bytes:
        raise PictureError(f"{count:,} bytes is over the limit of {limits.max_bytes / 1e6:g} MB (max_bytes)")


def _read_all(file: _File, limits: Limits) -> bytes:
    if not hasattr(file, "read"):
        raise PictureError(f"{type(file).__name__} is not a path, bytes, binary file, PIL picture or array")
    if file.seekable():  # a buffer just written stands at its end
        file.seek(0)
    if isinstance(data := file.read(limits.max_bytes + 1), bytes):
        return data
    raise PictureError("the file was opened as text; open it with mode 'rb'")


def _from_memory(source: Image.Image | NDArray[Any], limits: Limits) -> tuple[Image.Image, list[str]]:
    if isinstance(source, Image.Image):
        check_size(source.size, limits)
        if getattr(source, "tile", None) and source.format not in (*_READERS, "MPO"):
            raise PictureError(f"{source.format} pictures are not decoded here; call load() on it first")
        source.load()  # before its orientation is asked for: a TIFF turns while loading
        return source, []
    if source.ndim > 1:
        check_size((source.shape[1], source.shape[0]), limits)
    return from_array(source)


def _decode(stream: io.BufferedIOBase, limits: Limits, allow_damaged: bool) -> tuple[Image.Image, list[str]]:
    image, reader = open_header(stream, limits)
    notes = _frames(image)
    try:
        if image.format == "PNG":  # Pillow checks no sums of pixel data unless asked, and asking uses the reader up
            image.verify()
            image = reader(_rewound(stream), "")
        image.load()
    except Exception as fault:
        if not allow_damaged:
            raise PictureError(f"damaged ({_reason(fault)}); allow_damaged=True takes what can be read") from fault
        return _salvage(stream, reader), [f"damaged: {_reason(fault)}", *notes]
    return image, notes


def _rewound(stream: io.BufferedIOBase) -> io.BufferedIOBase:
    stream.seek(0)
    return stream


def _salvage(stream: io.BufferedIOBase, reader: _Reader) -> Image.Image:
    """What can be read of a damaged file, without Pillow's process-wide LOAD_TRUNCATED_IMAGES."""
    if reader is _Jpeg:
        stream = io.BytesIO(_rewound(stream).read() + b"\xff\xd9")  # an end mark: the decoder hands out what it has
    image = reader(_rewound(stream), "")
    try:
        image.load()
    except Exception:
        image.tile = []  # nothing left to decode: rows decoded before the fault stay, the others are blank
        image.load()  # formats that decode in one piece (WebP, AVIF, HEIC) fail again here
    return image


def open_header(stream: io.BufferedIOBase, limits: Limits) -> tuple[ImageFile.ImageFile, _Reader]:
    """A picture of which nothing but the header was read, and what reads it. Raises: PictureError."""
    head, fault = stream.read(512), None
    for name, reader in _candidates(head):
        try:
            if name in _EARLY:
                check_size(_EARLY[name](_rewound(stream)), limits)
            # no file name: with one, Pillow maps the file into memory, and a file cut meanwhile kills the process
            image = reader(_rewound(stream), "")
            check_size(image.size, limits)
            return image, reader
        except PictureError:
            raise
        except Exception as error:
            fault = error
    raise PictureError(f"damaged ({_reason(fault)})" if fault else f"not a picture I can read ({looks_like(head)})")


def _candidates(head: bytes) -> Iterator[tuple[str, _Reader]]:
    for name, reader in _READERS.items():
        accept = Image.OPEN[name][1]
        answer = accept is not None and len(head) > 1 and accept(head[:16])
        if answer and not isinstance(answer, str):  # a text says that this Pillow was built without the format
            yield name, reader
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF:
        try:
            from pillow_heif.as_plugin import HeifImageFile
        except ImportError:
            raise PictureError("HEIC needs: pip install camlucida[heic]") from None
        yield "HEIF", HeifImageFile


def _webp_size(stream: io.BufferedIOBase) -> tuple[int, int]:
    head = stream.read(30).ljust(30, b"\0")
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    wide, high = struct.unpack("<HH", head[26:30])
    return wide & 0x3FFF or 1, high & 0x3FFF or 1


def _gif_size(stream: io.BufferedIOBase) -> tuple[int, int]:
    """The screen's size, widened by the first frame where that reaches beyond it."""
    width, height, flags = struct.unpack("<HHB", stream.read(13)[6:11])
    stream.seek(13 + (3 << (flags & 7) + 1) * (flags >> 7))
    while (mark := stream.read(1)) not in (b"", b";"):
        if mark == b",":
            left, top, wide, high = struct.unpack("<4H", stream.read(8))
            return max(width, left + wide), max(height, top + high)
        if mark == b"!":
            stream.seek(1, 1)
            while (count := stream.read(1)) > b"\0":
                stream.seek(count[0], 1)
    return width, height


_EARLY = {"GIF": _gif_size, "WEBP": _webp_size}  # their readers warn or allocate before they tell a size


def check_size(size: tuple[int, int], limits: Limits) -> None:
    """Raises: PictureError where a picture (width, height) is over the limits."""
    width, height = size
    if width * height > limits.max_pixels:
        raise PictureError(f"{width:,} × {height:,} is over the limit of {limits.max_pixels / 1e6:g} Mpx (max_pixels)")
    if max(size) > limits.max_side:
        raise PictureError(f"{width:,} × {height:,} is over the limit of {limits.max_side:,} pixels a side (max_side)")
    if min(size) < 1:
        raise PictureError(f"{width} × {height} has no pixels")


def _frames(image: ImageFile.ImageFile) -> list[str]:
    """A note if there is more than one picture; never counted, since counting walks through a whole GIF or TIFF."""
    many = False
    with suppress(Exception):  # a second frame that is broken is no reason to refuse the first
        many = bool(getattr(image, "is_animated", False))
    if image.format in ("PNG", "WEBP", "AVIF") and many:
        return [f"first of {getattr(image, 'n_frames', 0)} frames"]
    kind = {"GIF": "animated: first frame", "TIFF": "several pages: first page"}.get(str(image.format))
    return [kind or "several pictures in the file: main picture"] if many or "mp" in image.info else []


def _orientation(image: Image.Image) -> int:
    with suppress(Exception):  # garbage in the metadata says nothing about the pixels
        return int(image.getexif().get(0x0112, 1))  # a TIFF has none left: Pillow turns it while loading
    return 1
