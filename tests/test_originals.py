"""core/originals.py, pictures.py and shown.py: from files of every kind to the right picture, and back to the disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import guest
from PIL import Image
from torch import Tensor, nn

import camlucida as cl
from camlucida.clips import open_video, write_gif, write_video
from camlucida.core import shown
from camlucida.core.originals import opened
from camlucida.core.pictures import Pictures
from camlucida.errors import CamlucidaError, InputError, OutputError
from camlucida.frame import Frame, Preprocess
from camlucida.volumes import Volume, open_volume

LOOK = Preprocess((32, 32), mean=(0.0,) * 3, std=(1.0,) * 3, crop=1.0)
LPS = np.array([[-2.0, 0, 0, 90], [0, -0.5, 0, 120], [0, 0, 5, -70], [0, 0, 0, 1]])
OBLIQUE = np.array([[0.1, -1.0, 0, 10], [0.02, 0.1, -5, 3], [1.5, 0, 0.1, -40], [0, 0, 0, 1]])


class Bright(nn.Module):
    """Its map is the first channel itself, for inputs of any number of axes: where it is bright is the evidence."""

    def __init__(self, axes: int, channels: int = 1) -> None:
        super().__init__()
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        self.features = nn.Sequential(kind(channels, 2, 1, bias=False), nn.ReLU())
        self.fc = nn.Linear(2, 2)
        with torch.no_grad():
            self.features[0].weight.zero_()
            self.features[0].weight[0, 0] = 1
            self.fc.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
            self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).flatten(2).mean(2))


def lump(*shape: int, at: tuple[int, ...]) -> np.ndarray:
    """A bright voxel at a place of its own, in the dark, with a fainter neighbour that tells the directions."""
    data = np.zeros(shape, np.float32)
    data[at] = 1.0
    data[tuple(a + 1 for a in at)] = 0.5
    return data


def scan(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    nibabel = guest("nibabel")
    nibabel.Nifti1Image(data, affine).to_filename(path)
    return path


def ball(count: int = 20, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    """A bright ball that goes from left to right: frame k has it at x = 4 + 3 k."""
    frames = []
    for k in range(count):
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        pixels[20:26, 3 * k + 1 : 3 * k + 8] = 255
        frames.append(Image.fromarray(pixels))
    return frames


def film(path: Path, **how: Any) -> Path:
    with path.open("wb") as out:
        (write_gif if path.suffix == ".gif" else write_video)(ball(**how), 10.0, out)
    return path


# --- volumes


@pytest.mark.parametrize("affine", [LPS, OBLIQUE, np.diag([1.0, 1, 5, 1])])
@pytest.mark.parametrize("orientation", ["", "RAS", "LPS", "SAR"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_the_heat_map_is_written_onto_the_scan_whatever_the_model_saw(
    tmp_path: Path, affine: np.ndarray, orientation: str, suffix: str
) -> None:
    nibabel = guest("nibabel")
    data = lump(6, 7, 8, at=(1, 4, 5))
    path = scan(tmp_path / f"in{suffix}", data, affine)
    volume = open_volume(path, orientation=orientation)
    e = cl.explain(Bright(3), volume, target=0, layer="features")
    if orientation:
        assert not np.array_equal(e.map[0].numpy(), data) or nibabel.aff2axcodes(affine) == tuple(orientation)
    np.testing.assert_allclose(e.heatmap(), data, atol=1e-6)
    e.save(tmp_path / f"out{suffix}")
    again, first = nibabel.load(tmp_path / f"out{suffix}"), nibabel.load(path)
    np.testing.assert_allclose(np.asarray(again.dataobj), data, atol=1e-6)
    np.testing.assert_array_equal(again.affine, first.affine)
    assert again.header.get_zooms() == first.header.get_zooms()


def test_a_volume_that_was_resampled_comes_back_on_its_own_voxels(tmp_path: Path) -> None:
    path = scan(tmp_path / "in.nii", lump(12, 14, 16, at=(2, 8, 10)), LPS)
    e = cl.explain(Bright(3), open_volume(path, orientation="SAR", size=(8, 7, 6)), target=0, layer="features")
    assert e.map.shape == (1, 8, 7, 6) and e.heatmap().shape == (12, 14, 16) == e.seen().shape
    peak = np.unravel_index(int(e.heatmap().argmax()), e.heatmap().shape)
    assert all(abs(p - t) <= 2 for p, t in zip(peak, (2, 8, 10), strict=True))


def test_a_path_is_read_as_it_is_and_told(tmp_path: Path) -> None:
    path = scan(tmp_path / "head.nii.gz", lump(6, 7, 8, at=(1, 4, 5)), LPS)
    e = cl.explain(Bright(3), path, target=0, layer="features")
    assert e.pictures.names == ("head.nii.gz",) and "intensities as in the file" in e.summary()["notes"]
    np.testing.assert_array_equal(e.map[0], lump(6, 7, 8, at=(1, 4, 5)) / (6 * 7 * 8))
    two = cl.explain(Bright(3), [str(path), path], target=0, layer="features")
    assert len(two) == 2 and two[1].pictures.originals[0].name == "head.nii.gz"


def test_the_planes_show_the_patient_as_radiologists_look(tmp_path: Path) -> None:
    """Whatever the axes of the file are, the same body gives the same picture."""
    body = lump(9, 10, 11, at=(2, 6, 3))  # i to the left, j to the back, k up
    ways = {"LPS": body, "RAS": body[::-1, ::-1], "SAR": body[::-1, ::-1].transpose(2, 1, 0)}
    made = []
    for codes, data in ways.items():
        axes = np.zeros((4, 4))
        for a, letter in enumerate(codes):
            axes["RLAPSI".index(letter) // 2, a] = 1 if letter in "RAS" else -1
        axes[3, 3] = 1
        e = cl.explain(Bright(3), scan(tmp_path / f"{codes}.nii", data.copy(), axes), target=0, layer="features")
        asked = shown._Asked(e, 0, False, None)
        assert asked.solid.ends == (("S", "I"), ("A", "P"), ("R", "L"))
        at = tuple(int(v) for v in np.unravel_index(asked.solid.voxels.argmax(), asked.solid.voxels.shape))
        assert at == (10 - 3, 6, 2)  # slices from the top, rows from the front, columns from the right
        np.testing.assert_allclose(asked.turned(asked.heat), asked.solid.voxels, atol=1e-6)
        numbers = [asked.solid.number(axis, k) for axis, k in enumerate(at)]
        assert sorted(numbers) == sorted(int(v) for v in np.unravel_index(data.argmax(), data.shape))
        made.append(np.asarray(e.overlay(show="planes", title=" ")))
    sizes = {m.shape for m in made}
    assert len(sizes) == 1


def test_spacing_goes_with_its_axis(tmp_path: Path) -> None:
    e = cl.explain(Bright(3), scan(tmp_path / "in.nii", lump(6, 7, 8, at=(1, 4, 5)), OBLIQUE), target=0)
    solid = shown._Asked(e, 0, False, None).solid
    sizes = np.sqrt((OBLIQUE[:3, :3] ** 2).sum(0))
    np.testing.assert_allclose(solid.spacing, [sizes[0], sizes[2], sizes[1]], rtol=1e-6)  # up, back, left


# --- clips


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_the_evidence_follows_the_ball_on_the_video_s_own_pixels(tmp_path: Path, name: str) -> None:
    if name.endswith("mp4"):
        guest("av")
    e = cl.explain(Bright(3, 3), film(tmp_path / name), target=0, layer="features", preprocess=LOOK)
    assert e.map.shape == (1, 16, 32, 32) and e.heatmap().shape == (16, 48, 64) == e.seen().shape
    clip = e.pictures.originals[0]
    columns = torch.arange(64.0)
    seen = 0
    for k, number in enumerate(clip.numbers):  # type: ignore[union-attr]
        heat = e.heatmap()[k]
        at = 3 * number + 4
        if 12 < at < 52:  # a centre crop of 48 × 48 is what the model sees
            assert float((heat.sum(0) * columns).sum() / heat.sum()) == pytest.approx(at, abs=1), number
            seen += 1
    assert seen > 8 and not e.seen()[:, :, :8].any() and not e.seen()[:, :, 56:].any() and e.seen()[:, :, 9:55].all()


def test_frames_are_preprocessed_one_by_one(tmp_path: Path) -> None:
    clip = open_video(ball(), frames=4)
    e = cl.explain(Bright(3, 3), clip, target=0, layer="features", preprocess=LOOK)
    for k, frame in enumerate(clip.frames):
        assert torch.allclose(e.map[0, k] * 4 * 32 * 32, LOOK(frame)[0][0], atol=1e-5)
    assert "4 of 20 frames, 2 to 17" in e.summary()["notes"]


def test_models_that_take_frames_first_get_them_so() -> None:
    class Turned(nn.Module):
        config: Any = None

        def __init__(self) -> None:
            super().__init__()
            self.inner = Bright(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[1:3] == (4, 3)
            return self.inner(x.movedim(1, 2))

    straight = cl.explain(Bright(3, 3), open_video(ball(), frames=4), target=0, layer="features", preprocess=LOOK)
    clip = open_video(ball(), frames=4, frames_first=True)
    e = cl.explain(Turned(), clip, target=0, layer="inner.features", preprocess=LOOK)
    assert torch.allclose(e.heatmap(), straight.heatmap(), atol=1e-6)


def test_a_configuration_says_how_many_frames_and_in_which_order(tmp_path: Path) -> None:
    net = Bright(3, 3)
    net.config = type("Config", (), {"num_frames": 8})()  # type: ignore[assignment]
    [clip] = opened(net, [film(tmp_path / "a.gif")], 5)
    assert len(clip.frames) == 8 and clip.frames_first
    [clip] = opened(Bright(3, 3), [tmp_path / "a.gif"], 5)
    assert len(clip.frames) == 16 and not clip.frames_first
    assert opened(Bright(2, 3), [tmp_path / "a.gif"], 4) == [tmp_path / "a.gif"]  # a picture to a model of pictures


def test_a_film_of_the_overlays_is_saved_in_time(tmp_path: Path) -> None:
    e = cl.explain(Bright(3, 3), open_video(ball(), frames=10, rate=10.0), target=0, preprocess=LOOK)
    e.save(tmp_path / "out.gif")
    again = open_video(tmp_path / "out.gif", frames=10)
    assert again.total == 10 and again.rate == pytest.approx(5) and again.frames[0].size == (64, 48)
    for k in (3, 6):
        laid = np.asarray(shown.film(e, 0)[0][k], int)
        assert np.abs(laid - np.asarray(again.frames[k], int)).mean() < 12
    with pytest.raises(OutputError, match="holds the map of a volume"):
        e.save(tmp_path / "out.nii")
    guest("av")
    e.save(tmp_path / "out.mp4")
    assert open_video(tmp_path / "out.mp4", frames=10).rate == pytest.approx(5)


# --- what is shown of tensors


@pytest.mark.parametrize("channels, kind", [(1, "planes"), (3, "frames"), (4, "planes")])
def test_a_tensor_of_three_axes_is_a_clip_where_it_has_three_channels(channels: int, kind: str) -> None:
    x = torch.rand(2, channels, 5, 24, 32)
    e = cl.explain(Bright(3, channels), x, target=0, layer="features")
    apart = {} if kind == "planes" else {"apart": True}
    for i in range(2):
        same = e.panel(i, show=kind, **apart)
        assert np.array_equal(np.asarray(e.panel(i)), np.asarray(same))
    for show in ("slices", "planes", "frames"):
        assert e.overlay(1, show=show).width > 50 and e.panel(1, show=show, signed=True).width > 50
    with pytest.raises(InputError, match=r"show='slice'.*'slices'"):
        e.overlay(show="slice")


def test_a_signal_is_a_strip_of_its_own(tmp_path: Path) -> None:
    x = torch.zeros(2, 3, 60)
    x[0, 0, 20], x[1, 0, 45] = 1, 1
    e = cl.explain(Bright(1, 3), x, target=0, layer="features")
    one, two = (np.asarray(e.overlay(i), int) for i in range(2))
    left = shown.view.strip(np.zeros((3, 60)), np.zeros(60), bare=True).width
    assert one.shape == two.shape and one.shape[1] == left
    columns = [np.flatnonzero(np.ptp(m[30, 100:-5], -1) > 30).mean() for m in (one, two)]
    assert (columns[1] - columns[0]) / (one.shape[1] - 100) == pytest.approx(25 / 60, abs=0.03)
    assert e.panel(1).height > e.overlay(1).height
    e.save(tmp_path / "a.png", 1)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(e.overlay(1)))
    with pytest.raises(OutputError, match="clip or a volume"):
        e.save(tmp_path / "a.gif")
    with pytest.raises(OutputError, match="map of a volume"):
        e.save(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_every_kind_shows_itself_in_a_notebook_and_says_why_it_is_blank(axes: int) -> None:
    x = torch.rand(2, 1, *[9] * axes)
    x[1] = 0
    e = cl.explain(Bright(axes), x, target=0, layer="features")
    assert e.statuses == ("ok", "no evidence")
    png, html = e._repr_png_(), e._repr_html_()
    assert png is not None and png[:4] == b"\x89PNG" and html is not None and html.count("<img") == 2
    assert np.any(np.asarray(e.panel(1)) != np.asarray(e.panel(1, note="")))
    assert np.array_equal(np.asarray(e.panel(0)), np.asarray(e.panel(0, note="")))
    against = cl.explain(Bright(axes), x, target=1, layer="features")
    assert against.statuses[0] == "all-negative"
    assert np.any(np.asarray(against.panel(0, signed=True)) != np.asarray(against.panel(0)))
    assert np.array_equal(np.asarray(against.panel(0, signed=True)), np.asarray(against.panel(0, signed=True, note="")))


def test_four_axes_have_no_picture() -> None:
    e = cl.explain(Bright(1), torch.rand(1, 1, 16), target=0, layer="features")
    deep = type(e)(**{**vars(e), "pictures": Pictures((2, 2, 2, 2), ("x",), tensor=torch.rand(1, 1, 2, 2, 2, 2))})
    assert deep._repr_png_() is None and deep._repr_html_() is None


# --- on the disk, and refused


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_clips_and_volumes_are_stored_with_the_explanation(tmp_path: Path, suffix: str) -> None:
    path = scan(tmp_path / "in.nii.gz", lump(6, 7, 8, at=(1, 4, 5)), OBLIQUE)
    volume = open_volume(path, orientation="RAS", size=(5, 6, 7), window=(0.0, 2.0), standardise=True)
    found = [
        cl.explain(Bright(3), volume, target=0, layer="features"),
        cl.explain(Bright(3, 3), open_video(ball(), frames=4, frames_first=False), target=0, preprocess=LOOK),
    ]
    for e in found:
        e.save(tmp_path / f"e.{suffix}")
        again = cl.load_explanation(tmp_path / f"e.{suffix}")
        assert np.array_equal(np.asarray(again.panel()), np.asarray(e.panel()))
        assert torch.equal(again.heatmap(), e.heatmap())
        one, two = e.pictures.originals[0], again.pictures.originals[0]
        if isinstance(one, Volume):
            assert isinstance(two, Volume) and two.how == one.how and two.grid.header == one.grid.header
            again.save(tmp_path / "again.nii")
            e.save(tmp_path / "first.nii")
            assert (tmp_path / "again.nii").read_bytes() == (tmp_path / "first.nii").read_bytes()
        else:
            assert vars(one).keys() == vars(two).keys() and one.times == two.times  # type: ignore[union-attr]


def test_a_npy_file_is_what_the_model_takes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "s.npy", rng.random((1, 40)))
    np.save(tmp_path / "t.npy", rng.random(40))
    np.save(tmp_path / "v.npy", rng.random((5, 6, 7)))
    np.save(tmp_path / "p.npy", rng.integers(0, 255, (9, 8, 3), dtype=np.uint8))
    e = cl.explain(Bright(1), [tmp_path / "s.npy", str(tmp_path / "t.npy")], target=0, layer="features")
    assert e.heatmap().shape == (40,) and e.pictures.names == ("s.npy", "t.npy")
    assert cl.explain(Bright(3), tmp_path / "v.npy", target=0, layer="features").heatmap().shape == (5, 6, 7)
    assert cl.explain(Bright(2, 3), tmp_path / "p.npy", target=0, preprocess=LOOK).heatmap().shape == (9, 8)
    with pytest.raises(InputError, match=r"v.npy holds an array \(5, 6, 7\), and not a signal"):
        cl.explain(Bright(1), tmp_path / "v.npy")
    with pytest.raises(InputError, match=r"s.npy holds an array \(1, 40\), and not a volume"):
        cl.explain(Bright(3), tmp_path / "s.npy")


def test_an_array_of_as_many_bands_as_the_model_takes_is_taken_as_it_is(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).random((6, 9, 8))
    np.save(tmp_path / "first.npy", bands)
    np.save(tmp_path / "last.npy", np.moveaxis(bands, 0, -1))
    ready = cl.explain(Bright(2, 6), torch.from_numpy(bands).float()[None], target=0, layer="features")
    for name in ("first.npy", "last.npy"):
        e = cl.explain(Bright(2, 6), tmp_path / name, target=0, layer="features")
        assert torch.equal(e.map, ready.map) and e.pictures.names == (name,) and "as in the file" in e.pictures.notes[0]
        assert e.panel().size[0] > 8
    look = cl.Preprocess((18, 16), (0.5,) * 6, (0.25,) * 6)  # who says how bands are scaled, has them scaled
    scaled = cl.explain(Bright(2, 6), tmp_path / "last.npy", target=0, layer="features", preprocess=look)
    assert tuple(scaled.map.shape) == (1, 18, 16)
    with pytest.raises(CamlucidaError):
        cl.explain(Bright(2, 5), tmp_path / "first.npy", target=0)


def test_what_makes_no_batch_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((5, 6, 7)))
    np.save(tmp_path / "b.npy", np.ones((5, 6, 8)))
    with pytest.raises(InputError, match="1×5×6×7, 1×5×6×8"):
        cl.explain(Bright(3), [tmp_path / "a.npy", tmp_path / "b.npy"])
    with pytest.raises(InputError, match="each kind by itself"):
        cl.explain(Bright(3), [tmp_path / "a.npy", open_video(ball())])
    with pytest.raises(InputError, match="each kind by itself"):
        cl.explain(Bright(3), [open_volume(np.ones((5, 6, 7))), Image.new("RGB", (4, 4))])
    with pytest.raises(InputError, match="same frames="):
        cl.explain(Bright(3, 3), [open_video(ball(), frames=4), open_video(ball(), frames=5)])
    with pytest.raises(InputError, match="frames_first="):
        one, two = (open_video(ball(), frames=4, frames_first=first) for first in (True, False))
        cl.explain(Bright(3, 3), [one, two])


def test_pictures_lie_as_they_did() -> None:
    """The 2-D way through `Pictures.lay` is that of `maps.lay`, and a slice keeps what belongs to it."""
    frame = Frame(20, 10, (5.0, 0.0, 15.0, 10.0))
    held = Pictures((4, 4), ("a", "b"), frames=(frame, Frame.whole(8, 8)))
    heat, seen = held.lay(torch.ones(4, 4), 0)
    assert heat.shape == (10, 20) and seen[:, 5:15].all() and not seen[:, :5].any() and heat[~seen].abs().sum() == 0
    assert held[1:].lay(torch.ones(4, 4), 0)[0].shape == (8, 8)
