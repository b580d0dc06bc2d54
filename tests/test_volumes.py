"""volumes.py and voxels.py: what a file holds, what the model sees of it, and safe refusal of all else."""

import gzip
import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import guest

from camlucida.errors import InputError, OutputError, PictureError
from camlucida.volumes import Reading, Volume, open_array, open_volume, turn, turned
from camlucida.voxels import Grid, VoxelLimits, write_nifti

LPS = np.array([[-2.0, 0, 0, 90], [0, -0.5, 0, 120], [0, 0, 5, -70], [0, 0, 0, 1]])
OBLIQUE = np.array([[0.1, -1.0, 0, 10], [0.02, 0.1, -5, 3], [1.5, 0, 0.1, -40], [0, 0, 0, 1]])


@pytest.fixture
def nibabel() -> Any:
    return guest("nibabel")


def stored(nibabel: Any, path: Path, data: np.ndarray, affine: np.ndarray | None = LPS, kind: str = "Nifti1") -> Path:
    getattr(nibabel, f"{kind}Image")(data, affine).to_filename(path)
    return path


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", ["Nifti1", "Nifti2"])
@pytest.mark.parametrize("affine", [LPS, OBLIQUE])
def test_nifti_is_read_as_nibabel_reads_it(
    nibabel: Any, tmp_path: Path, name: str, kind: str, affine: np.ndarray
) -> None:
    path = stored(nibabel, tmp_path / name, numbers(4, 5, 6), affine, kind)
    volume, theirs = open_volume(path), nibabel.load(path)
    np.testing.assert_array_equal(volume.grid.data[0], theirs.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(volume.grid.affine, theirs.affine)
    assert volume.grid.codes == "".join(nibabel.aff2axcodes(affine)) and volume.name == name
    np.testing.assert_allclose(volume.spacing, nibabel.affines.voxel_sizes(affine), rtol=1e-6)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float64, np.uint16])
def test_scaled_integers_and_either_byte_order_are_numbers(nibabel: Any, tmp_path: Path, kind: type) -> None:
    image = nibabel.Nifti1Image((numbers(4, 5, 6) * 50 + 90).astype(kind), LPS)
    image.header.set_slope_inter(0.5, -7)
    raw = image.to_bytes()
    swapped = nibabel.Nifti1Image(image.dataobj, LPS, image.header.as_byteswapped()).to_bytes()
    for data in (raw, swapped):
        theirs = nibabel.Nifti1Image.from_bytes(data).get_fdata(dtype=np.float32)
        np.testing.assert_allclose(open_volume(data).grid.data[0], theirs, rtol=1e-6)


def test_time_becomes_channels_and_axes_of_one_do_not_count(nibabel: Any, tmp_path: Path) -> None:
    data = numbers(4, 5, 6, 3)
    volume = open_volume(stored(nibabel, tmp_path / "a.nii", data))
    np.testing.assert_array_equal(volume.grid.data, np.moveaxis(data, -1, 0))
    assert open_volume(stored(nibabel, tmp_path / "b.nii", data[:, :, :, None, :1])).grid.data.shape == (1, 4, 5, 6)
    np.testing.assert_array_equal(
        open_volume(stored(nibabel, tmp_path / "c.nii", data[:, :, :, None])).grid.data[2], data[..., 2]
    )
    assert open_volume(stored(nibabel, tmp_path / "d.nii", data[:, :1, :1, 0])).size == (4, 1, 1)


def test_npy_and_arrays_are_volumes_with_channels_first(tmp_path: Path) -> None:
    data = numbers(3, 4, 5, 6)
    np.save(tmp_path / "a.npy", data)
    np.save(tmp_path / "f.npy", np.asfortranarray(data[0].astype(np.float64)))
    np.testing.assert_array_equal(open_volume(tmp_path / "a.npy").grid.data, data)
    np.testing.assert_array_equal(open_volume(tmp_path / "f.npy").grid.data, data[:1])
    volume = open_volume(data[0])
    assert volume.grid.affine is None and volume.spacing == (1, 1, 1) and volume.grid.data.flags.writeable
    assert open_volume(np.ones((2, 2, 2), bool)).grid.data.dtype == np.float32


def test_orientation_turns_and_mirrors_as_nibabel_does(nibabel: Any, tmp_path: Path) -> None:
    path = stored(nibabel, tmp_path / "a.nii", numbers(4, 5, 6), OBLIQUE)
    for wanted in ("RAS", "LPS", "SAR", "ipl"):
        volume, theirs = open_volume(path, orientation=wanted), nibabel.load(path)
        way = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(theirs.affine), nibabel.orientations.axcodes2ornt(tuple(wanted.upper()))
        )
        np.testing.assert_array_equal(volume.seen()[0], theirs.as_reoriented(way).get_fdata(dtype=np.float32))


def test_turning_is_undone_by_turning_back() -> None:
    data = numbers(4, 5, 6)
    for codes in ("RAS", "LPS", "SAR", "IPL", "PIR"):
        np.testing.assert_array_equal(turned(turned(data, turn(codes, "RAS")), turn("RAS", codes)), data)


def test_intensities_go_through_the_window_and_are_standardised() -> None:
    data = np.stack([numbers(4, 5, 6) * 100, np.full((4, 5, 6), 40.0)])
    np.testing.assert_allclose(open_volume(data).seen(), data)
    seen = open_volume(data, window=(-50, 50)).seen()
    assert seen.min() == 0 and seen.max() == 1 and seen[1] == pytest.approx(0.9)
    np.testing.assert_allclose(seen[0], ((data[0] + 50) / 100).clip(0, 1), rtol=1e-5)
    seen = open_volume(data, standardise=True).seen()
    assert seen[0].mean() == pytest.approx(0, abs=1e-5) and seen[0].std() == pytest.approx(1, rel=1e-5)
    assert (seen[1] == 0).all()


def test_voxels_that_are_no_numbers_become_zero_and_are_told() -> None:
    data = numbers(4, 5, 6)
    data[0, 0, 0], data[1, 1, 1], data[2, 2, 2] = np.nan, np.inf, -np.inf
    volume = open_volume(data)
    assert volume.notes == ("3 voxels are no numbers: taken as 0",)
    assert volume.grid.data[0, 0, 0, 0] == volume.grid.data[0, 1, 1, 1] == volume.grid.data[0, 2, 2, 2] == 0


def test_a_file_without_orientation_has_none_but_keeps_its_spacing(nibabel: Any, tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(numbers(4, 5, 6), None)
    image.header.set_zooms((1, 2, 3))
    image.to_filename(tmp_path / "a.nii")
    volume = open_volume(tmp_path / "a.nii")
    assert volume.grid.codes == "" and volume.spacing == (1, 2, 3)
    with pytest.raises(InputError, match="does not say how it is oriented"):
        open_volume(tmp_path / "a.nii", orientation="RAS")


@pytest.mark.parametrize(
    "setting, says",
    [
        ({"orientation": "RAR"}, "three letters"), ({"orientation": "XYZ"}, "three letters"),
        ({"orientation": "RA"}, "three letters"), ({"size": (4, 0, 4)}, "three numbers of voxels"),
        ({"window": (5, 5)}, "lower to a higher"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(setting: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_volume(numbers(4, 5, 6), **setting)


# --- files of strangers


def header(**changed: Any) -> bytes:
    """A NIfTI-1 header of a volume 4 × 5 × 6 of float32, and its voxels."""
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, *changed.get("dim", (3, 4, 5, 6, 1, 1, 1, 1)))
    struct.pack_into("<2h", head, 70, changed.get("kind", 16), changed.get("bits", 32))
    struct.pack_into("<8f", head, 76, *[1.0] * 8)
    struct.pack_into("<f", head, 108, changed.get("offset", 352.0))
    head[344:348] = changed.get("magic", b"n+1\0")
    return bytes(head) + numbers(4, 5, 6).tobytes()


def test_the_hand_made_file_is_good(nibabel: Any) -> None:
    np.testing.assert_array_equal(open_volume(header()).grid.data[0].ravel("F"), numbers(4, 5, 6).ravel())
    far = header(offset=400.0)
    np.testing.assert_array_equal(
        open_volume(far[:352] + bytes(48) + far[352:]).grid.data, open_volume(header()).grid.data
    )


@pytest.mark.parametrize(
    "data, says",
    [
        (b"", "empty"), (b"hello", "like text"), (header()[:300], "not a NIfTI"), (header()[:-1], "it ends after"),
        (header(magic=b"ni1\0"), "not a NIfTI"), (header(dim=(3, 30000, 30000, 30000, 1, 1, 1, 1)), "max_voxels"),
        (header(offset=1e30), "begin at byte"), (header(offset=100.0), "too low"),
        (header(dim=(2, 4, 5, 1, 1, 1, 1, 1)), "not a volume"), (header(kind=32, bits=64), "plain numbers"),
        (gzip.compress(header())[:200], "ended before"), (b"\x1f\x8b" + bytes(50), "compression"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_a_reason(nibabel: Any, data: bytes, says: str) -> None:
    with pytest.raises(PictureError, match=says):
        open_volume(data)


def test_a_bomb_is_not_unpacked(nibabel: Any) -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            found = super().read(size)
            Counting.taken += len(found)
            return found

    bomb = gzip.compress(header(dim=(3, 2000, 2000, 2000, 1, 1, 1, 1)) + bytes(200_000_000), 9)
    with pytest.raises(PictureError, match="max_voxels"):
        open_volume(bomb)
    with pytest.raises(PictureError, match="max_bytes"):
        open_volume(header(), limits=VoxelLimits(max_bytes=100))
    with pytest.raises(PictureError, match=r"limit of 0.0001 M"):
        open_volume(header(), limits=VoxelLimits(max_voxels=100))


def test_arrays_of_objects_and_odd_shapes_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "code.npy", np.array([{"a": 1}], object), allow_pickle=True)
    for read in (open_volume, open_array):
        with pytest.raises(PictureError, match="plain numbers"):
            read(tmp_path / "code.npy")
    np.save(tmp_path / "flat.npy", numbers(4, 5))
    assert open_array(tmp_path / "flat.npy").shape == (4, 5)
    with pytest.raises(PictureError, match=r"flat.npy: an array \(4, 5\)"):
        open_volume(tmp_path / "flat.npy")
    with pytest.raises(PictureError, match="max_voxels"):
        open_array(tmp_path / "flat.npy", VoxelLimits(max_voxels=5))
    with pytest.raises(PictureError, match=r"no such file"):
        open_volume(tmp_path / "none.nii")
    with pytest.raises(PictureError, match="complex64"):
        open_volume(np.zeros((2, 2, 2), np.complex64))


def test_without_nibabel_both_ways_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(PictureError, match=r"camlucida\[volume\]"):
        open_volume(header())
    with pytest.raises(OutputError, match=r"camlucida\[volume\]"):
        write_nifti(numbers(2, 2, 2), Grid(numbers(1, 2, 2, 2)), io.BytesIO(), False)


# --- and back


@pytest.mark.parametrize("affine", [LPS, OBLIQUE, None])
@pytest.mark.parametrize("kind", ["Nifti1", "Nifti2"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_map_is_written_into_the_place_it_came_from(
    nibabel: Any, tmp_path: Path, affine: np.ndarray | None, kind: str, packed: bool
) -> None:
    image = getattr(nibabel, f"{kind}Image")(numbers(4, 5, 6), affine)
    image.header.set_xyzt_units("mm")
    if affine is not None:
        image.set_qform(affine, 1)
    image.to_filename(tmp_path / "in.nii")
    volume, out = open_volume(tmp_path / "in.nii"), io.BytesIO()
    values = np.random.default_rng(1).random((4, 5, 6)).astype(np.float32)
    write_nifti(values, volume.grid, out, packed)
    data = gzip.decompress(out.getvalue()) if packed else out.getvalue()
    first, again = nibabel.load(tmp_path / "in.nii"), getattr(nibabel, f"{kind}Image").from_bytes(data)
    np.testing.assert_array_equal(np.asarray(again.dataobj), values)
    np.testing.assert_array_equal(again.affine, first.affine)
    for form in ("get_sform", "get_qform"):
        theirs, ours = (getattr(i, form)(coded=True) for i in (first, again))
        assert theirs[1] == ours[1] and (theirs[0] is None or np.array_equal(theirs[0], ours[0]))
    assert again.header.get_zooms() == first.header.get_zooms()
    assert again.header.get_xyzt_units()[0] == "mm" and again.get_data_dtype() == np.float32


def test_the_same_volume_is_the_same_file() -> None:
    guest("nibabel")
    outs = [io.BytesIO(), io.BytesIO()]
    for out in outs:
        write_nifti(numbers(4, 5, 6), Grid(numbers(1, 4, 5, 6)), out, True)
    assert outs[0].getvalue() == outs[1].getvalue()
    assert Volume(Grid(numbers(1, 4, 5, 6))).how == Reading()
