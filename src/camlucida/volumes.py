"""Volumes and signals: what a file holds, what the model sees of it, and the way back."""

import os
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camlucida.errors import InputError
from camlucida.files import printable
from camlucida.images import Source, seam, stream
from camlucida.voxels import Grid, VoxelLimits, channels_first, npy, read

Voxels = NDArray[np.float32]
Window = tuple[float | int, float | int]

DEFAULT_LIMITS = VoxelLimits()
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


@dataclass(frozen=True)
class Reading:
    """What is done to a volume before the model sees it: all of it is `open_volume`'s, and explained there."""

    orientation: str = ""
    size: tuple[int, int, int] | None = None
    window: Window | None = None
    standardise: bool = False

    def __post_init__(self) -> None:
        if self.orientation and sorted(min(c, _OPPOSITE.get(c, "")) for c in self.orientation) != ["A", "I", "L"]:
            raise InputError(
                f"an orientation is three letters, one of R and L, of A and P, of S and I, as RAS; "
                f"got {self.orientation!r}."
            )
        if self.size is not None and (len(self.size) != 3 or min(self.size) < 1):
            raise InputError(f"the size of a volume is three numbers of voxels; got {self.size}.")
        if self.window and not self.window[0] < self.window[1]:
            raise InputError(f"a window goes from a lower to a higher intensity; got {self.window}.")


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume as its file holds it, ``c i j k``, with what is done to it before the model sees it."""

    grid: Grid
    name: str = "volume"
    notes: tuple[str, ...] = ()
    how: Reading = field(default_factory=Reading)

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels along the three axes of the file."""
        i, j, k = self.grid.data.shape[1:]
        return i, j, k

    @property
    def spacing(self) -> tuple[float, float, float]:
        """The size of a voxel along the three axes of the file, in millimetres where an affine is known."""
        x, y, z = (1.0,) * 3 if self.grid.affine is None else np.sqrt((self.grid.affine[:3, :3] ** 2).sum(0)).tolist()
        return x, y, z

    @property
    def order(self) -> tuple[int, ...]:
        """Which axis of the file each axis of the model's tensor is."""
        return turn(self.grid.codes, self.how.orientation)[0]

    @property
    def flips(self) -> tuple[int, ...]:
        """Which axes of the model's tensor run the other way than in the file."""
        return turn(self.grid.codes, self.how.orientation)[1]

    def seen(self) -> Voxels:
        """The voxels with the orientation and intensities that the model sees, ``c x y z``, not yet resampled."""
        values = turned(self.grid.data, (self.order, self.flips))
        if self.how.window is not None:
            low, high = self.how.window
            values = ((values - low) / (high - low)).clip(0, 1)
        if self.how.standardise:
            axes = (1, 2, 3)
            spread = values.std(axes, keepdims=True)
            values = (values - values.mean(axes, keepdims=True)) / np.where(spread > 0, spread, 1)
        return np.ascontiguousarray(values, np.float32)


@dataclass(frozen=True, eq=False)
class Signal:
    """A signal ``c n`` from a file, or a picture of many bands, ``c h w``: numbers as they are."""

    data: Voxels
    name: str = "signal"
    notes: tuple[str, ...] = ()


def turn(codes: str, wanted: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How axes that point to `codes` come to point to `wanted`: which axis each new one is, and which run backwards.

    >>> turn("LPS", "RAS"), turn("SAR", "RAS"), turn("RAS", "")
    (((0, 1, 2), (0, 1)), ((2, 1, 0), ()), ((0, 1, 2), ()))
    """
    if not wanted:
        return (0, 1, 2), ()
    order = tuple(next(a for a in range(3) if codes[a] in (letter, _OPPOSITE[letter])) for letter in wanted)
    return order, tuple(axis for axis, letter in enumerate(wanted) if codes[order[axis]] != letter)


def turned(data: NDArray[Any], how: tuple[tuple[int, ...], tuple[int, ...]]) -> NDArray[Any]:
    """The last three axes of an array in another order, some of them the other way round (`turn`)."""
    order, flips = how
    lead = data.ndim - 3
    moved = data.transpose(*range(lead), *(lead + axis for axis in order))
    return np.flip(moved, tuple(lead + axis for axis in flips))


# ------------------------------------------------------------------------------------------------------------ opening


def open_volume(
    source: Source,
    *,
    orientation: str = "",
    size: tuple[int, int, int] | None = None,
    window: Window | None = None,
    standardise: bool = False,
    limits: VoxelLimits = DEFAULT_LIMITS,
) -> Volume:
    """A volume from a NIfTI file (.nii, .nii.gz), a NumPy file (.npy) or an array, ``i j k`` or with channels first.

    Left alone it is as the file holds it: its own axes, voxels and intensities; a fourth axis of a NIfTI file becomes
    channels. ``orientation="RAS"`` turns and mirrors the axes, ``window=(low, high)`` takes these intensities to 0 and
    1 and clips the rest, ``standardise`` gives each channel mean 0 and standard deviation 1, and ``size`` resamples
    (mean of areas, as MONAI's Resize does), in that order. The map comes back on the file's own voxels.

    Raises:
        PictureError: the file cannot be read, is damaged, or is over the limits.
        InputError: a setting makes no sense for it.

    >>> open_volume(np.zeros((4, 5, 6)), window=(0, 100)).size
    (4, 5, 6)
    """
    how = Reading(orientation.upper(), size, window, standardise)
    label = printable(os.fsdecode(source)) if isinstance(source, str | os.PathLike) else "volume"
    with seam(label):
        if isinstance(source, np.ndarray):
            grid = Grid(channels_first(source))
        else:
            with stream(source, limits) as file:  # type: ignore[arg-type]
                grid = read(file, limits)
    if how.orientation and not grid.codes:
        raise InputError(f"{label} does not say how it is oriented: leave orientation={orientation!r} out.")
    data, notes = _filled(grid.data)
    return Volume(replace(grid, data=data), os.path.basename(label) or label, notes, how)


def open_array(source: Source, limits: VoxelLimits = DEFAULT_LIMITS) -> NDArray[Any]:
    """The array in a `.npy` file, without ever running code. Raises: PictureError."""
    with seam(printable(os.fsdecode(source)) if isinstance(source, str | os.PathLike) else "array"):
        with stream(source, limits) as file:  # type: ignore[arg-type]
            return npy(file, limits)


def _filled(data: Voxels) -> tuple[Voxels, tuple[str, ...]]:
    """Voxels that are no number become 0: one of them would make every score NaN."""
    wrong = int(data.size - np.isfinite(data).sum())
    if not wrong:
        return data, ()
    return np.nan_to_num(data, posinf=0.0, neginf=0.0), (f"{wrong:,} voxels are no numbers: taken as 0",)
