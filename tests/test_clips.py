"""clips.py: the frames that the rule names, upright, in time; and safe refusal of all else."""

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import guest
from PIL import Image

from camlucida.clips import ClipLimits, evenly, open_video, write_gif, write_video
from camlucida.errors import InputError, OutputError, PictureError


def numbered(count: int = 20, size: tuple[int, int] = (96, 64)) -> list[Image.Image]:
    """Frames with a white bar at the left that grows by 4 pixels each: their numbers can be read back."""
    frames = []
    for k in range(count):
        pixels = np.full((size[1], size[0], 3), 20, np.uint8)
        pixels[:, : 4 * (k + 1)] = 235
        frames.append(Image.fromarray(pixels))
    return frames


def read(picture: Image.Image) -> int:
    return round((np.asarray(picture.convert("L"), int).mean(0) > 128).sum() / 4) - 1


def file(write: Callable[[Sequence[Image.Image], float, Any], None], rate: float = 10.0, **how: Any) -> bytes:
    out = io.BytesIO()
    write(numbered(**how), rate, out)
    return out.getvalue()


@pytest.fixture(scope="module")
def mp4() -> bytes:
    guest("av")
    return file(write_video)


def test_the_rule_is_the_middles_of_equal_parts_or_a_stride_around_the_middle() -> None:
    assert evenly(100, 4) == [12, 37, 62, 87] and evenly(16, 16) == list(range(16)) and evenly(3, 1) == [1]
    assert evenly(2, 4) == [0, 0, 1, 1] and evenly(100, 4, every=2) == [46, 48, 50, 52]
    assert evenly(7, 4, every=2) == [0, 2, 4, 6] and evenly(9, 3, every=1) == [3, 4, 5]
    with pytest.raises(InputError, match="are 7 frames of video: this one has 6"):
        evenly(6, 4, every=2)


@pytest.mark.parametrize("frames, every", [(4, None), (20, None), (5, 3), (40, None)])
@pytest.mark.parametrize("kind", ["mp4", "gif", "list", "array"])
def test_the_frames_are_those_that_the_rule_names(kind: str, frames: int, every: int | None, mp4: bytes) -> None:
    sources: dict[str, Any] = {"mp4": mp4, "gif": file(write_gif), "list": numbered()}
    sources["array"] = np.stack([np.asarray(frame) for frame in numbered()])
    clip = open_video(sources[kind], frames=frames, every=every, rate=10.0)
    assert [read(frame) for frame in clip.frames] == list(clip.numbers) == evenly(20, frames, every)
    assert clip.total == 20 and clip.frames[0].size == (96, 64)
    np.testing.assert_allclose(clip.times, np.array(clip.numbers) / 10, atol=1e-6)
    assert bool(clip.notes) == (frames > 20)


def test_a_clip_lasts_as_long_as_its_video(mp4: bytes) -> None:
    assert open_video(mp4, frames=20).rate == pytest.approx(10)
    assert open_video(mp4, frames=5).rate == pytest.approx(2.5) and open_video(mp4, frames=1).rate > 0
    again = io.BytesIO()
    write_video(open_video(mp4, frames=5).frames, 2.5, again)
    assert open_video(again.getvalue(), frames=5).rate == pytest.approx(2.5, rel=0.01)


@pytest.mark.parametrize("size", [(96, 64), (97, 65), (85, 3)])
def test_every_size_is_written(size: tuple[int, int], mp4: bytes) -> None:
    made = open_video(file(write_video, size=size), frames=3).frames
    assert made[0].size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert [read(frame) for frame in made] == [3, 10, 16]


def test_a_gif_is_endless_and_in_time() -> None:
    with Image.open(io.BytesIO(file(write_gif, rate=25.0))) as image:
        assert image.info["loop"] == 0 and image.info["duration"] == 40 and image.n_frames == 20  # type: ignore[attr-defined]


def test_a_phone_s_turn_is_undone(mp4: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    av = guest("av")
    upright = numbered()[7].rotate(-90, expand=True)

    class Turned:
        """A frame as a phone stores it, lying, with the note how it was held."""

        width, height, time, rotation = 96, 64, 0.0, -90

        def to_image(self) -> Image.Image:
            return numbered()[7]

    from camlucida.clips import _upright

    assert np.array_equal(np.asarray(_upright(Turned())), np.asarray(upright)) and _upright(Turned()).size == (64, 96)
    assert hasattr(av.VideoFrame, "rotation")


@pytest.mark.parametrize(
    "data, says",
    [
        (b"", "empty"), (b"#EXTM3U\nfile:///etc/passwd\n", "looks like text"), (b"ffconcat", "looks like text"),
        (b"RIFF\0\0\0\0WAVE" + bytes(400), "not a video"), (b"\0\0\0\x18ftypmp42" + bytes(400), "damaged"),
        (b"\x1a\x45\xdf\xa3" + bytes(400), "damaged"), (b"GIF89a" + bytes(5), "no pixels"),
    ],
)  # fmt: skip
def test_what_is_no_video_is_refused_with_a_reason(data: bytes, says: str, mp4: bytes) -> None:
    with pytest.raises(PictureError, match=says):
        open_video(data)


def test_a_truncated_video_is_refused(mp4: bytes) -> None:
    with pytest.raises(PictureError, match="damaged"):
        open_video(mp4[: len(mp4) // 2])


def test_limits_hold_before_frames_are_kept(mp4: bytes, tmp_path: Path) -> None:
    for data in (mp4, file(write_gif)):
        with pytest.raises(PictureError, match="max_frames"):
            open_video(data, limits=ClipLimits(max_frames=19))
        with pytest.raises(PictureError, match="max_kept"):
            open_video(data, frames=8, limits=ClipLimits(max_kept=7 * 96 * 64))
        with pytest.raises(PictureError, match="max_pixels"):
            open_video(data, limits=ClipLimits(max_pixels=1000))
        with pytest.raises(PictureError, match="max_bytes"):
            open_video(data, limits=ClipLimits(max_bytes=100))
        assert open_video(data, frames=8, limits=ClipLimits(max_kept=8 * 96 * 64)).total == 20
    with pytest.raises(PictureError, match="is a folder"):
        open_video(tmp_path)


def test_numbers_and_arrays_that_make_no_sense_are_refused() -> None:
    for wrong in ({"frames": 0}, {"every": 0}, {"rate": 0.0}):
        with pytest.raises(InputError, match="at least 1"):
            open_video(numbered(), **wrong)
    for source in (np.zeros((4, 5, 6)), np.zeros((4, 5, 6, 3)), np.zeros((0, 5, 6, 3), np.uint8)):
        with pytest.raises(PictureError, match="is no video"):
            open_video(source)
    with pytest.raises(PictureError, match="all of one size"):
        open_video([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))])


def test_without_pyav_both_ways_say_what_to_install(mp4: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(PictureError, match=r"camlucida\[video\]"):
        open_video(mp4)
    with pytest.raises(OutputError, match=r"camlucida\[video\]"):
        write_video(numbered(), 10.0, io.BytesIO())
    assert open_video(file(write_gif)).total == 20
