"""Numbers from untrusted files: NIfTI with its place in the body, and NumPy's own `.npy`; and NIfTI written.

Sizes are checked from the header, against `VoxelLimits`, before any number is read.
"""

import gzip
import io
import logging
import math
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from camlucida.errors import CamlucidaError, OutputError, PictureError
from camlucida.files import looks_like
from camlucida.images import Limits

Out: TypeAlias = io.BufferedIOBase | IO[bytes]
_QUIET = logging.Logger("nifti")
_QUIET.addHandler(logging.NullHandler())
_FURTHEST = 16_000_000  # bytes before the first voxel of a NIfTI file; beyond, it is not worth reading


@dataclass(frozen=True)
class VoxelLimits(Limits):
    """How large an untrusted volume may be: voxels of all channels, and bytes of its file."""

    max_voxels: int = 200_000_000


@dataclass(frozen=True, eq=False)
class Grid:
    """Numbers ``c i j k`` and where they lie: `affine` takes voxels to millimetres.

    `codes` say what the axes point to, as "RAS"; they are empty where the file does not know. `header` is the file's.
    """

    data: NDArray[np.float32]
    affine: NDArray[np.float64] | None = None
    codes: str = ""
    header: bytes = b""


def read(file: io.BufferedIOBase, limits: VoxelLimits) -> Grid:
    """The volume in an open NIfTI file, packed or not, or `.npy` file. Raises: PictureError."""
    head = file.read(16)
    file.seek(0)
    if head.startswith(b"\x93NUMPY"):
        return Grid(channels_first(npy(file, limits)))
    if head.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=file) as inside:
            return _nifti(inside, limits)
    return _nifti(file, limits)


def channels_first(array: NDArray[Any]) -> NDArray[np.float32]:
    """A volume ``i j k`` or ``c i j k`` as the latter. Raises: PictureError for any other array."""
    if array.ndim not in (3, 4) or array.size == 0 or array.dtype.kind not in "biuf":
        raise PictureError(
            f"an array {array.shape} of {array.dtype} is no volume (i, j, k) of numbers, nor (channels, i, j, k)"
        )
    return np.array(array if array.ndim == 4 else array[None], np.float32, order="C")


def npy(file: io.BufferedIOBase, limits: VoxelLimits) -> NDArray[Any]:
    """The array in an open `.npy` file, without ever running code. Raises: PictureError."""
    form: Any = np.lib.format
    older = form.read_magic(file) == (1, 0)
    shape, fortran, kind = (form.read_array_header_1_0 if older else form.read_array_header_2_0)(file)
    if kind.kind not in "biuf":
        raise PictureError(f"holds {kind}, and not plain numbers")
    return _numbers(file, shape, kind, limits).reshape(shape, order="F" if fortran else "C")


def _nifti(file: Any, limits: VoxelLimits) -> Grid:
    nibabel = _nibabel(PictureError)
    raw = file.read(348)
    newer = raw[:4] in (b"\x1c\2\0\0", b"\0\0\2\x1c")
    raw += file.read(192 if newer else 0)
    if raw[4:7] != b"n+2" and raw[344:347] != b"n+1":
        raise PictureError(f"not a NIfTI or NumPy file that I can read ({looks_like(raw)})")
    header = (nibabel.Nifti2Header if newer else nibabel.Nifti1Header)(raw, check=False)
    header.check_fix(_QUIET)  # mends what nibabel mends, and raises what it raises, without a word on standard error
    shape, offset = header.get_data_shape(), int(header.get_data_offset())
    if not len(raw) <= offset <= _FURTHEST:
        raise PictureError(f"damaged: the voxels are said to begin at byte {offset:,}")
    file.read(offset - len(raw))  # a compressed file is read from one end to the other
    values = _numbers(file, shape, header.get_data_dtype(), limits).reshape(shape, order="F")
    slope, start = (v if v is not None and math.isfinite(v) else d for v, d in
                    zip(header.get_slope_inter(), (1.0, 0.0), strict=True))  # fmt: skip
    data = values.astype(np.float32) if (slope, start) == (1, 0) else (values * slope + start).astype(np.float32)
    known = bool(header["sform_code"]) or bool(header["qform_code"])
    affine = np.asarray(header.get_best_affine(), np.float64)
    codes = "".join(nibabel.aff2axcodes(affine)) if known else ""
    return Grid(_from_nifti(data), affine, codes, raw)


def _from_nifti(data: NDArray[np.float32]) -> NDArray[np.float32]:
    """``i j k``, time and further axes as channels first; axes of one at the end do not count."""
    axes = max([3, *(a + 1 for a, n in enumerate(data.shape) if n > 1)])
    if data.ndim < 3 or axes > 5:
        raise PictureError(f"holds {data.shape}, and not a volume")
    return np.ascontiguousarray(np.moveaxis(data.reshape(*data.shape[:3], -1, order="F"), -1, 0))


def _numbers(file: Any, shape: tuple[int, ...], kind: np.dtype[Any], limits: VoxelLimits) -> NDArray[Any]:
    count = math.prod(int(n) for n in shape)
    if count > limits.max_voxels or min(shape, default=0) < 1:
        told = "×".join(map(str, shape))
        raise PictureError(f"{told} is not between 1 and the limit of {limits.max_voxels / 1e6:g} M (max_voxels)")
    if kind.kind not in "biuf":
        raise PictureError(f"holds {kind}, and not plain numbers")
    data = file.read(count * kind.itemsize)
    if len(data) < count * kind.itemsize:
        raise PictureError(f"damaged: it ends after {len(data):,} of {count * kind.itemsize:,} bytes of numbers")
    return np.frombuffer(data, kind)


def _nibabel(problem: type[CamlucidaError]) -> Any:
    try:
        import nibabel
    except ImportError:
        raise problem("NIfTI needs: pip install camlucida[volume]") from None
    return nibabel


def write_nifti(values: NDArray[np.float32], grid: Grid, out: Out, packed: bool) -> None:
    """A map ``i j k`` as a NIfTI file in the place in the body that a grid has; in none, where it has none.

    Raises: OutputError where nibabel is missing.
    """
    nibabel, raw = _nibabel(OutputError), grid.header
    kind = nibabel.Nifti2Image if len(raw) > 348 else nibabel.Nifti1Image
    image = kind(values.astype(np.float32), grid.affine)
    if raw:
        _placed(image.header, kind.header_class(raw))
    image.header["cal_min"], image.header["cal_max"] = 0, 1
    data = image.to_bytes()
    out.write(gzip.compress(data, 6, mtime=0) if packed else data)


def _placed(header: Any, like: Any) -> None:
    """The geometry of another header, number by number, so that nothing is rounded on the way."""
    fields = ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d")
    for name in (*fields, "qoffset_x", "qoffset_y", "qoffset_z"):
        header[name] = like[name]
    header["pixdim"][:4] = like["pixdim"][:4]
    header.set_xyzt_units(xyz=like.get_xyzt_units()[0])
