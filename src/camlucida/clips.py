"""Clips from untrusted video files: which frames are taken is a stated rule, and each is an upright RGB picture.

GIF, WebP and animated PNG are read and GIF written by Pillow; all other videos need PyAV (``camlucida[video]``).
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from types import ModuleType
from typing import IO, Any, TypeAlias

import numpy as np
from PIL import Image

from camlucida.errors import InputError, OutputError, PictureError
from camlucida.files import looks_like, printable
from camlucida.images import Limits, Source, check_size, open_header, seam, stream

Rule: TypeAlias = Callable[[int], list[int]]
Out: TypeAlias = io.BufferedIOBase | IO[bytes]

_KINDS = {b"\x1a\x45\xdf\xa3": "matroska", b"RIFF": "avi", b"GIF8": "gif"}
_GIF_RATE = 10.0  # frames a second of a GIF that does not say


@dataclass(frozen=True)
class ClipLimits(Limits):
    """How large an untrusted video may be: frames that are gone through, pixels of all that are kept, and its bytes."""

    max_bytes: int = 4_000_000_000
    max_frames: int = 20_000
    max_kept: int = 200_000_000


DEFAULT_LIMITS = ClipLimits()


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a video as upright RGB pictures of one size, which of its frames they are, and when each is shown.

    ``numbers`` count from 0 among the ``total`` frames of the file, ``times`` are in seconds. ``frames_first``: the
    model takes ``b t c h w``.
    """

    frames: tuple[Image.Image, ...]
    numbers: tuple[int, ...]
    times: tuple[float, ...]
    total: int
    name: str = "clip"
    notes: tuple[str, ...] = ()
    frames_first: bool = False

    @property
    def rate(self) -> float:
        """How many of these frames are shown a second, so that the clip lasts as long as it did."""
        took = self.times[-1] - self.times[0]
        return (len(self.times) - 1) / took if took > 0 else _GIF_RATE


def evenly(total: int, frames: int, every: int | None = None) -> list[int]:
    """Which of ``total`` frames are taken: the middles of ``frames`` equal parts; or one in ``every``, from the middle.

    A video of fewer frames than parts repeats some. Raises: InputError where it is too short for ``every``.

    >>> evenly(100, 4), evenly(100, 4, every=2), evenly(2, 4)
    ([12, 37, 62, 87], [46, 48, 50, 52], [0, 0, 1, 1])
    """
    if every is None:
        return [(2 * k + 1) * total // (2 * frames) for k in range(frames)]
    span = (frames - 1) * every + 1
    if span > total:
        raise InputError(f"{frames} frames, one in {every}, are {span} frames of video: this one has {total}.")
    return [(total - span) // 2 + k * every for k in range(frames)]


def open_video(
    source: Source | Sequence[Image.Image],
    *,
    frames: int = 16,
    every: int | None = None,
    rate: float = 25.0,
    frames_first: bool = False,
    limits: ClipLimits = DEFAULT_LIMITS,
) -> Clip:
    """As many frames of a video as a model takes: from a file (MP4, MOV, WebM, MKV, AVI, GIF), an array or pictures.

    They are the middles of as many equal parts of the video, or with ``every=2`` every second frame around its middle
    (`evenly`). An array is ``t h w 3`` of uint8; it and a list of pictures are played at ``rate`` frames a second.
    ``frames_first`` is for models that take ``b t c h w``, as those of transformers, and not ``b c t h w``.

    Raises:
        PictureError: the file cannot be read, is damaged, over the limits, or needs PyAV.
        InputError: the video is too short for ``every``, or a number makes no sense.

    >>> open_video(np.zeros((10, 4, 6, 3), np.uint8), frames=5).numbers
    (1, 3, 5, 7, 9)
    """
    if frames < 1 or (every is not None and every < 1) or not rate > 0:
        raise InputError(f"frames and every are at least 1, rate above 0; got {frames}, {every} and {rate}.")
    label = printable(os.fsdecode(source)) if isinstance(source, str | os.PathLike) else "clip"

    def rule(total: int) -> list[int]:
        return evenly(total, frames, every)

    with seam(label):
        if isinstance(source, np.ndarray | list | tuple):
            clip = _held(source, rule, rate)
        else:
            with stream(source, limits) as file:  # type: ignore[arg-type]
                clip = _moving(file, rule, limits) if _animated(file) else _decoded(file, rule, limits)
    few = ("fewer frames than the model takes: some are shown again",) if clip.total < frames else ()
    return replace(clip, name=os.path.basename(label) or label, notes=few, frames_first=frames_first)


# ------------------------------------------------------------------------------------------------------------ reading


def _held(source: Any, rule: Rule, rate: float) -> Clip:
    if isinstance(source, np.ndarray):
        if source.ndim != 4 or source.shape[3] != 3 or source.dtype != np.uint8 or 0 in source.shape:
            raise PictureError(f"an array {source.shape} of {source.dtype} is no video (t, h, w, 3) of uint8")
        source = [Image.fromarray(frame) for frame in source]
    if not source or len({picture.size for picture in source}) > 1:
        raise PictureError("a clip is of one picture at least, and all of one size")
    chosen = rule(len(source))
    frames = tuple(source[k].convert("RGB") for k in chosen)
    return Clip(frames, tuple(chosen), tuple(k / rate for k in chosen), len(source))


def _animated(file: io.BufferedIOBase) -> bool:
    head = file.read(16)
    file.seek(0)
    return head.startswith((b"GIF8", b"\x89PNG")) or head[8:12] == b"WEBP"


def _moving(file: io.BufferedIOBase, rule: Rule, limits: ClipLimits) -> Clip:
    """The frames of an animated picture, by Pillow."""
    image, _ = open_header(file, limits)
    total = int(getattr(image, "n_frames", 1))
    _check_count(total, limits)
    chosen = rule(total)
    _check_kept(len(set(chosen)), image.size, limits)
    kept, spans = dict[int, Image.Image](), list[float]()
    for k in range(total):
        image.seek(k)
        image.load()
        spans.append(float(image.info.get("duration") or 1000 / _GIF_RATE) / 1000)
        if k in chosen:
            kept[k] = image.convert("RGB")
    starts = [0.0, *accumulate(spans)]
    return Clip(tuple(kept[k] for k in chosen), tuple(chosen), tuple(starts[k] for k in chosen), total)


def _decoded(file: io.BufferedIOBase, rule: Rule, limits: ClipLimits) -> Clip:
    """The frames of a video, by PyAV, which gets no name and no other kind of file than the one that it is."""
    kind, faults = _kind(file), _av().error.FFmpegError
    try:
        return _sought(file, kind, rule, limits)
    except faults as fault:
        raise PictureError(f"damaged ({str(fault.strerror).lower()})") from fault


def _sought(file: io.BufferedIOBase, kind: str, rule: Rule, limits: ClipLimits) -> Clip:
    total = _count(file, kind, limits)
    kept, ended = _take(file, kind, rule(total), limits)
    if ended is not None and ended < total:  # not every packet is a frame: now their number is known
        if ended < 1:
            raise PictureError("damaged: no frame of the video can be read")
        total = ended
        kept, _ = _take(file, kind, rule(total), limits)
    chosen = rule(total)
    if missing := set(chosen) - kept.keys():
        raise PictureError(f"damaged: frame {min(missing)} of {total} cannot be read")
    times = tuple(kept[k][1] for k in chosen)
    return Clip(tuple(kept[k][0] for k in chosen), tuple(chosen), times, total)


def _kind(file: io.BufferedIOBase) -> str:
    head = file.read(512)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return "mov"
    found = next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), None)
    if found is None or (found == "avi" and head[8:12] != b"AVI "):
        raise PictureError(f"not a video I can read ({looks_like(head)})")
    return found


def _opened(file: io.BufferedIOBase, kind: str) -> Any:
    file.seek(0)
    container = _av().open(file, "r", format=kind, metadata_errors="ignore")
    if not container.streams.video:
        raise PictureError("holds no video")
    return container


def _count(file: io.BufferedIOBase, kind: str, limits: ClipLimits) -> int:
    """How many packets of video there are, nearly always as many as frames; nothing is decoded for it."""
    total = 0
    with _opened(file, kind) as container:
        for packet in container.demux(container.streams.video[0]):
            total += packet.size > 0
            _check_count(total, limits)
    if not total:
        raise PictureError("damaged: the video has no frames")
    return total


def _take(
    file: io.BufferedIOBase, kind: str, chosen: list[int], limits: ClipLimits
) -> tuple[dict[int, tuple[Image.Image, float]], int | None]:
    """The frames of these numbers with their times; and how many there are, where the video ended before the last."""
    kept = dict[int, tuple[Image.Image, float]]()
    number = -1
    with _opened(file, kind) as container:
        video = container.streams.video[0]
        check_size((video.width, video.height), limits)
        _check_kept(len(set(chosen)), (video.width, video.height), limits)
        for number, frame in enumerate(_frames(container, video)):
            if number in chosen:
                check_size((frame.width, frame.height), limits)
                kept[number] = _upright(frame), _time(frame, number, video)
            if number >= max(chosen):
                return kept, None
    return kept, number + 1


def _frames(container: Any, video: Any) -> Iterator[Any]:
    """Frames as far as they can be decoded: what comes before a fault counts."""
    try:
        yield from container.decode(video)
    except _av().error.InvalidDataError:
        return


def _upright(frame: Any) -> Image.Image:
    """A phone notes how it was held: what is shown is turned by it."""
    turn = int(getattr(frame, "rotation", 0)) % 360
    picture: Image.Image = frame.to_image().convert("RGB")
    return picture.rotate(turn, expand=True) if turn else picture


def _time(frame: Any, number: int, video: Any) -> float:
    return float(frame.time) if frame.time is not None else number / float(video.average_rate or _GIF_RATE)


def _check_count(total: int, limits: ClipLimits) -> None:
    if total > limits.max_frames:
        raise PictureError(f"more frames than the limit of {limits.max_frames:,} (max_frames): cut the video first")


def _check_kept(count: int, size: tuple[int, int], limits: ClipLimits) -> None:
    if count * size[0] * size[1] > limits.max_kept:
        told = f"{count} frames of {size[0]} × {size[1]} pixels"
        raise PictureError(f"{told} are over the limit of {limits.max_kept / 1e6:g} Mpx together (max_kept)")


def _av() -> ModuleType:
    try:
        import av
    except ImportError:
        raise PictureError("this video needs: pip install camlucida[video]") from None
    return av


# ------------------------------------------------------------------------------------------------------------ writing


def write_gif(frames: Sequence[Image.Image], rate: float, out: Out) -> None:
    """An endless GIF. Its clock counts hundredths of a second, so the rate is rounded to that."""
    hundredths = max(2, round(100 / rate))  # browsers take less than 2 for 10
    first, *others = frames
    file: Any = out
    first.save(file, "GIF", save_all=True, append_images=others, duration=10 * hundredths, loop=0, disposal=1)


def write_video(frames: Sequence[Image.Image], rate: float, out: Out) -> None:
    """An MP4 file of H.264 that every player shows; a side of an odd number of pixels gets one more, its last again.

    Raises: OutputError where PyAV is missing.
    """
    try:
        import av
    except ImportError:
        raise OutputError("writing MP4 needs: pip install camlucida[video]; .gif needs nothing") from None
    with av.open(out, "w", format="mp4") as container:
        kind = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        video: Any = container.add_stream(kind, rate=Fraction(rate).limit_denominator(1001))
        wide, high = frames[0].size
        video.width, video.height, video.pix_fmt = wide + wide % 2, high + high % 2, "yuv420p"
        for picture in frames:
            pixels = np.pad(np.asarray(picture), ((0, high % 2), (0, wide % 2), (0, 0)), mode="edge")
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
