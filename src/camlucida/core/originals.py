"""Files that are no pictures: what they are taken for, and how a clip, a volume or a signal becomes the model's batch.

What a file is called says what it is, and what it holds must agree. A `.npy` file is what the model takes: a signal, a
picture or a volume; so is an animated picture, a clip only for a model of clips.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from camlucida.clips import Clip, open_video
from camlucida.core.inputs import Inputs
from camlucida.core.pictures import Pictures
from camlucida.core.scope import unwrap
from camlucida.errors import InputError
from camlucida.frame import IMAGENET, Preprocess
from camlucida.volumes import Reading, Signal, Volume, open_array, open_volume
from camlucida.voxels import Grid

VIDEOS = frozenset(".mp4 .m4v .mov .mkv .webm .avi".split())
VOLUMES = (".nii", ".nii.gz")
_ANIMATED = (".gif",)
_FRAMES = 16
Original = Clip | Volume | Signal


def opened(model: nn.Module, sources: Sequence[Any], axes: int | None, bands: int | None = None) -> list[Any]:
    """The sources, with clips, volumes and signals in the place of the files that hold such; the others as they are.

    ``axes`` is how many the model's first convolution takes, the batch's and the channels' among them; ``bands`` how
    many channels: an array of so many, and no picture's count, is taken as it is. Of a video 16 frames are taken, or as
    many as the model's configuration names; such a model (of transformers) takes them before the channels.

    Raises: PictureError, InputError where a file cannot be read or is not what the model takes.

    >>> opened(nn.Conv2d(3, 8, 3), ["cat.jpg"], 4)
    ['cat.jpg']
    """
    return [_opened(model, source, axes, bands) for source in sources]


def prepared(model: nn.Module, read: Sequence[Any], preprocess: Preprocess | None) -> tuple[Inputs, Pictures]:
    """The batch of what was read, and what its maps lie on. Raises: InputError where it makes no batch."""
    kinds = {type(one) for one in read}
    if len(kinds) > 1:
        raise InputError("clips, volumes, signals and pictures are no one batch: explain each kind by itself.")
    if kinds == {Clip}:
        return _clips(model, read, preprocess or IMAGENET)
    return _arrays(model, read)


def _opened(model: nn.Module, source: Any, axes: int | None, bands: int | None) -> Any:
    name = os.fsdecode(source).lower() if isinstance(source, str | os.PathLike) else ""
    if name.endswith(".npy"):
        return _array(source, axes, bands)
    if name.endswith(VOLUMES):
        return open_volume(source)
    moving = name.endswith(tuple(VIDEOS)) or (axes == 5 and name.endswith(_ANIMATED))
    if not moving:
        return source
    asked = getattr(getattr(unwrap(model), "config", None), "num_frames", None)
    return open_video(source, frames=asked or _FRAMES, frames_first=bool(asked))


def _array(source: Any, axes: int | None, bands: int | None) -> Any:
    """A `.npy` file as what the model takes; without a convolution to tell by, channels come first."""
    array, name = open_array(source), os.path.basename(os.fsdecode(source))
    if axes == 4:
        many = array.ndim == 3 and bands in (array.shape[0], array.shape[2]) and bands not in (1, 3)
        first = array if array.shape[0] == bands else np.moveaxis(array, -1, 0)
        return Signal(np.array(first, np.float32), name) if many else array
    space = array.ndim - 1 if axes is None else axes - 2
    if array.ndim not in (space, space + 1) or array.size == 0 or space not in (1, 3):
        wanted = {1: "a signal (n) or (channels, n)", 3: "a volume (d, h, w) or (channels, d, h, w)"}
        raise InputError(f"{name} holds an array {array.shape}, and not {wanted.get(space, 'what the model takes')}.")
    if space == 3:
        return open_volume(source)
    return Signal(np.array(array if array.ndim == 2 else array[None], np.float32), name)


def _clips(model: nn.Module, clips: Sequence[Clip], preprocess: Preprocess) -> tuple[Inputs, Pictures]:
    """Every frame is preprocessed as a picture is: ``b c t h w``."""
    made = [[preprocess(frame) for frame in clip.frames] for clip in clips]
    if len({len(frames) for frames in made}) > 1:
        raise InputError("clips of different numbers of frames make no batch: open them with the same frames=.")
    if len({clip.frames_first for clip in clips}) > 1:
        raise InputError("clips make one batch where frames_first= is the same for all of them.")
    batch = torch.stack([torch.stack([tensor for tensor, _ in frames], 1) for frames in made])
    pictures = Pictures(
        space=tuple(batch.shape[2:]),
        names=tuple(clip.name for clip in clips),
        frames=tuple(frames[0][1] for frames in made),
        notes=tuple("; ".join((_taken(clip), *clip.notes)) for clip in clips),
        originals=tuple(clips),
    )
    batch = _beside(model, batch)
    if clips[0].frames_first:
        return Inputs((batch.movedim(2, 1),), takes="frames first"), pictures
    return Inputs((batch,), takes="batch"), pictures


def _taken(clip: Clip) -> str:
    return f"{len(clip.frames)} of {clip.total} frames, {clip.numbers[0]} to {clip.numbers[-1]}"


def _arrays(model: nn.Module, read: Sequence[Volume | Signal]) -> tuple[Inputs, Pictures]:
    rows = [_tensor(one) for one in read]
    if len(sizes := dict.fromkeys("×".join(map(str, row.shape)) for row in rows)) > 1:
        raise InputError(f"files of different sizes ({', '.join(sizes)}) make no batch: explain each by itself.")
    batch = torch.stack(rows)
    volumes = tuple(one for one in read if isinstance(one, Volume))
    pictures = Pictures(
        space=tuple(batch.shape[2:]),
        names=tuple(one.name for one in read),
        tensor=None if volumes else batch.clone(),
        notes=tuple("; ".join((_untouched(one), *one.notes)).strip("; ") for one in read),
        originals=volumes,
    )
    return Inputs((_beside(model, batch),)), pictures


def _untouched(one: Volume | Signal) -> str:
    plain = isinstance(one, Signal) or not (one.how.window or one.how.standardise)
    return "intensities as in the file" if plain else ""


def _tensor(one: Volume | Signal) -> Tensor:
    if isinstance(one, Signal):
        return torch.from_numpy(one.data)
    x = torch.from_numpy(one.seen())
    return torch.nn.functional.adaptive_avg_pool3d(x[None], one.how.size)[0] if one.how.size else x


def _beside(model: nn.Module, batch: Tensor) -> Tensor:
    like = next((p for p in unwrap(model).parameters() if p.is_floating_point()), torch.empty(0))
    return batch.to(like.device, like.dtype)


# ---------------------------------------------------------------------------------------------------- kept on the disk


def kept(original: Clip | Volume) -> tuple[Tensor, dict[str, Any]]:
    """A clip or volume as an array and facts of JSON; `again` is the way back."""
    facts: dict[str, Any] = {"name": original.name, "notes": original.notes}
    if isinstance(original, Clip):
        frames = np.stack([np.asarray(frame) for frame in original.frames])
        when = {"numbers": original.numbers, "times": original.times, "total": original.total}
        return torch.from_numpy(frames), facts | when | {"frames_first": original.frames_first}
    grid = original.grid
    where = {"codes": grid.codes, "header": grid.header.hex(), "how": asdict(original.how)}
    affine = None if grid.affine is None else grid.affine.tolist()
    return torch.from_numpy(grid.data), facts | where | {"affine": affine}


def again(data: Tensor, facts: Mapping[str, Any]) -> Clip | Volume:
    """What `kept` put away."""
    array, told = data.numpy(), {"name": facts["name"], "notes": tuple(facts["notes"])}
    if "numbers" in facts:
        frames, when = tuple(map(Image.fromarray, array)), (tuple(facts["numbers"]), tuple(facts["times"]))
        return Clip(frames, *when, facts["total"], frames_first=facts["frames_first"], **told)
    affine = None if facts["affine"] is None else np.array(facts["affine"])
    how: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts["how"].items()}
    grid = Grid(array, affine, facts["codes"], bytes.fromhex(facts["header"]))
    return Volume(grid, how=Reading(**how), **told)
