"""Any kind of pixels as 8-bit RGB: greyscale, palettes, alpha, CMYK, 16 bits, floats; Pillow pictures and arrays.

Arrays of other numbers of bands keep their numbers; what is shown of them is a picture, too.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from camlucida.errors import PictureError

_16_TO_8 = ((np.arange(65536) + 128) // 257).astype(np.uint8)  # 65535 = 257 · 255: both ends are kept


def to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Any Pillow mode as 8-bit RGB, and notes on what was done: alpha over white, 16 and 32 bits scaled to 8.

    Raises:
        PictureError: pixels are NaN or infinite.

    >>> to_rgb(Image.new("LA", (1, 1), (0, 0)))[0].getpixel((0, 0))
    (255, 255, 255)
    """
    if image.mode.startswith(("I", "F")):
        return _deep_to_rgb(image)
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        return converted or image, []
    if not image.has_transparency_data:
        return image.convert("RGB"), []
    clear = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    alpha = clear.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return clear.convert("RGB"), []
    white = Image.new("RGB", clear.size, "white")
    white.paste(clear, mask=alpha)
    return white, ["alpha laid over white"]


def from_array(array: NDArray[Any]) -> tuple[Image.Image, list[str]]:
    """An array (h w), (h w 1), (h w 3) or (h w 4) of uint8, uint16, bool or floats in [0, 1] as an 8-bit picture.

    Raises:
        PictureError: another shape or kind of number, or floats outside [0, 1].

    >>> from_array(np.ones((4, 6, 3)))[0].size
    (6, 4)
    """
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)):
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = "; channels come last: array.transpose(1, 2, 0)" if first else ""
        hint = hint or ("; several pictures are a list: list(array)" if array.ndim == 4 else "")
        hint = hint or ("; for bands, preprocess= takes as many means" if array.ndim == 3 else "")
        raise PictureError(f"an array of shape {array.shape} is not (h w), (h w 1), (h w 3) or (h w 4){hint}")
    pixels, notes = _array_to_8(array[:, :, 0] if array.shape[2:] == (1,) else array)
    return Image.fromarray(np.ascontiguousarray(pixels)), notes


def bands_of(array: NDArray[Any]) -> NDArray[np.float32]:
    """The numbers of an array ``h w c`` of any number of bands: integers over their largest value, floats as they are.

    Raises:
        PictureError: it has no three axes, or its numbers are ambiguous.

    >>> bands_of(np.full((1, 1, 13), 65535, np.uint16)).max()
    np.float32(1.0)
    """
    if array.ndim != 3 or 0 in array.shape:
        raise PictureError(f"an array of bands is (height, width, bands), with at least one of each; got {array.shape}")
    if array.dtype == np.bool_ or array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise PictureError(f"bands of {array.dtype} are ambiguous; give uint8, uint16, bool or floats")
    return array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)


def bands_shown(array: NDArray[Any]) -> tuple[Image.Image, list[str]]:
    """The first three bands of an array ``h w c`` (the first, of fewer) as one picture, from their lowest to highest.

    Raises:
        PictureError: as `bands_of`, and where numbers are NaN or infinite.

    >>> bands_shown(np.zeros((2, 3, 2)))[1]
    ['shown: band 0 of 2, from 0 to 0 stretched']
    """
    some = bands_of(array)[:, :, : 3 if array.shape[-1] > 2 else 1]
    low, high = _finite_range(some)
    ends = _finite_range(array[:, :, : some.shape[2]])
    pixels = _stretch(some if some.shape[2] == 3 else some[:, :, 0], low, high)
    names = "bands 0, 1, 2" if some.shape[2] == 3 else "band 0"
    note = f"shown: {names} of {array.shape[2]}, from {ends[0]:g} to {ends[1]:g} stretched"
    return Image.fromarray(pixels).convert("RGB"), [note]


def _array_to_8(array: NDArray[Any]) -> tuple[NDArray[np.uint8], list[str]]:
    if array.dtype == np.uint8:
        return array, []
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255), []
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return _16_TO_8[array], ["16-bit scaled to 8"]
    if array.dtype.kind != "f":
        raise PictureError(f"an array of {array.dtype} is ambiguous; give uint8, uint16, bool or floats in [0, 1]")
    low, high = _finite_range(array)
    if low < 0 or high > 1:
        raise PictureError(f"floats must lie in [0, 1]; these go from {low:g} to {high:g}")
    return _stretch(array, 0.0, 1.0), []


def _deep_to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """16 bits by 255 / 65535; 32 bits as they are where they fit 8, else as 16 bits, else by their own range."""
    values = np.asarray(image)
    low, high = _finite_range(values)
    sixteen = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    if image.mode == "F" and 0 <= low and high <= 1:
        pixels, note = _stretch(values, 0.0, 1.0), "floats in 0..1 scaled to 8 bits"
    elif image.mode != "F" and not sixteen and 0 <= low and high <= 255:
        pixels, note = values.astype(np.uint8), "32-bit numbers in 0..255 taken as 8-bit"
    elif image.mode != "F" and 0 <= low and high <= 65535:
        pixels, note = _16_TO_8[values], "16-bit scaled to 8"
    else:
        pixels, note = _stretch(values, low, high), f"values from {low:g} to {high:g} scaled to 8 bits"
    return Image.fromarray(pixels).convert("RGB"), [note]


def _finite_range(values: NDArray[Any]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise PictureError("pixels are NaN or infinite")
    return low, high


def _stretch(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """low..high → 0..255 in double precision, a few rows at a time so that memory stays that of the result."""
    result, gain = np.empty(values.shape, np.uint8), 255 / (high - low) if high > low else 0.0
    for top in range(0, len(values), 64):
        result[top : top + 64] = (values[top : top + 64].astype(np.float64) - low) * gain + 0.5
    return result
