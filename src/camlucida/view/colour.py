"""Numbers to colours: a table of 256 colours for each map, and one pass over the pixels.

The tables are matplotlib's, to the byte, kept as rows of ``colormaps.png`` (see ``scripts/make_colormaps.py``).
"""

from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camlucida.errors import InputError, did_you_mean

TABLES = "colormaps.png"
NAMES = (
    "viridis",
    "inferno",
    "magma",
    "plasma",
    "cividis",
    "turbo",
    "jet",
    "hot",
    "gray",
    "coolwarm",
    "RdBu_r",
    "seismic",
    "bwr",
)
DIVERGING = frozenset({"coolwarm", "RdBu_r", "seismic", "bwr"})

# turbo keeps the reading that this field is used to (blue is cold, red is hot) and that photos need (evidence differs
# in hue, which a dark fur or a bright sky cannot imitate as they can the dark and bright ends of viridis or inferno),
# without the false edges that jet draws in its cyan and yellow.
POSITIVE = "turbo"
SIGNED = "RdBu_r"
UNSEEN = (128, 128, 128)

_STRIP = 1 << 15  # pixels coloured at a time, so that the scratch arrays stay in the processor's cache

Heat = NDArray[np.floating[Any]]
Colours = NDArray[np.uint8]


def names() -> tuple[str, ...]:
    """The colour maps there are, in the order of their tables.

    >>> "turbo" in names()
    True
    """
    return NAMES


@lru_cache(maxsize=1)
def _tables() -> Colours:
    with files(__package__).joinpath(TABLES).open("rb") as file, Image.open(file) as picture:
        rows = np.array(picture.convert("RGB"))
    rows.flags.writeable = False  # every table is a view of this array, and so is read-only too
    return rows


@lru_cache(maxsize=len(NAMES))
def table(name: str) -> Colours:
    """The 256 colours of the map `name`, lowest value first, as a read-only uint8 array ``(256, 3)`` of R, G, B.

    Raises `InputError` for a name that does not exist.

    >>> table("gray")[[0, 255]].tolist()
    [[0, 0, 0], [255, 255, 255]]
    """
    if name not in NAMES:
        raise InputError(f"There is no colour map {name!r}.{did_you_mean(name, NAMES)}")
    rows: Colours = _tables()[NAMES.index(name)]
    return rows


@lru_cache(maxsize=len(NAMES))
def signed_table(name: str) -> Colours:
    """The map `name` with an exact middle: read-only uint8 ``(255, 3)``, row ``127 + k`` for ``k / 127`` in −1 … 1.

    A table of 256 has no middle, so its two middle rows give way to one for 0. In a diverging map that row is a
    pure grey, since 0 must lean to neither side. Raises `InputError` for a name that does not exist.

    >>> signed_table("bwr")[[0, 127, 254]].tolist()
    [[0, 0, 255], [254, 254, 254], [255, 0, 0]]
    """
    colours = table(name)
    middle = colours[127:129].mean(axis=0)
    zero = np.full(3, middle.mean()) if name in DIVERGING else middle
    rows = np.concatenate([colours[:127], zero.round().astype(np.uint8)[None], colours[129:]])
    rows.flags.writeable = False
    return rows


def scale(name: str | None = None, signed: bool = False) -> Colours:
    """The colours that `paint` uses, lowest value first: uint8 ``(256, 3)``, or ``(255, 3)`` with 0 in the middle.

    `name` None is turbo, or RdBu_r for signed values.

    >>> scale().shape, scale(signed=True).shape
    ((256, 3), (255, 3))
    """
    return signed_table(name or SIGNED) if signed else table(name or POSITIVE)


def paint(values: Heat, name: str | None = None, signed: bool = False) -> Colours:
    """Colours for `values`: float ``(h, w)`` in [0, 1], or in [−1, 1] when `signed`, to uint8 ``(h, w, 3)``.

    The row is ``round(255 · v)`` of the table, or ``127 + round(127 · v)`` when `signed`, so that 0 is exactly
    neutral. Values beyond the range are clipped; NaN, which stands for "the model never saw this", becomes the
    mid-grey `UNSEEN`. Raises `InputError` for an unknown name or for values that are not ``(h, w)``.

    >>> paint(np.array([[0.0, 1.0, np.nan]]), "gray").tolist()
    [[[0, 0, 0], [255, 255, 255], [128, 128, 128]]]
    """
    values = plane(values)
    rows = np.concatenate([scale(name, signed), np.array([UNSEEN], np.uint8)])
    low, half = (-1, 127) if signed else (0, 255)
    colours = np.empty((*values.shape, 3), np.uint8)
    step = max(1, _STRIP // values.shape[1])
    for top in range(0, len(values), step):
        strip = values[top : top + step]
        inside = np.fmin(np.fmax(strip, low), 1)  # fmax, unlike clip, takes NaN to a number too
        index = (inside * half + (0.5 - half * low)).astype(np.intp)
        index[np.isnan(strip)] = len(rows) - 1
        np.take(rows, index, axis=0, out=colours[top : top + step], mode="clip")
    return colours


def plane(values: Heat) -> Heat:
    """`values` as a float array of two axes, or `InputError`; half precision, too coarse for 255 steps, is widened."""
    array = np.asarray(values)
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"A heat map to be shown has two axes (height, width) and pixels, not shape {array.shape}.")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
