"""From what the user holds (a path, pictures, a tensor, the model's own arguments) to what the model is called with."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from camlucida.core import originals
from camlucida.core.capture import Inputs
from camlucida.core.explanation import Pictures
from camlucida.core.inputs import check_sizes
from camlucida.core.scope import unwrap
from camlucida.errors import InputError
from camlucida.frame import IMAGENET, Frame, Preprocess


def prepare(model: nn.Module, x: Any, preprocess: Preprocess | None = None) -> tuple[Inputs, Pictures]:
    """The model's inputs and the pictures behind them, from any of the forms a user has.

    A tensor is a ready batch ``b c *space``, a list of tensors one without the batch axis; a tuple holds the model's
    positional arguments, a mapping its keyword arguments, `Inputs` both. A path, PIL picture, array or encoded bytes,
    or a list of them, is opened and preprocessed; so are videos, volumes and `.npy` files (`core.originals`).

    Raises: InputError (PictureError for a file) that says what was wrong with what was given.
    """
    if says_tensors(x) and not isinstance(x, list):
        return _from_tensors(model, _ready(x))
    sources = list(x) if isinstance(x, Sequence) and not isinstance(x, str | bytes) else [x]
    if not sources:
        raise InputError("no picture was given: the list is empty.")
    if says_tensors(sources):
        return _from_tensors(model, Inputs((_joined(model, sources),)))
    sources = originals.opened(model, sources, *_taken(model, preprocess))
    if any(isinstance(s, originals.Original) for s in sources):
        return originals.prepared(model, sources, preprocess)
    return _from_pictures(model, sources, preprocess or IMAGENET)


def opened(model: nn.Module, source: Any, preprocess: Preprocess | None = None) -> Any:
    """A file as what this model takes it for: a picture, clip, volume or signal, with its ``name`` and ``notes``.

    Raises: PictureError, InputError.
    """
    from camlucida.images import open_picture

    held = originals.opened(model, [source], *_taken(model, preprocess))[0]
    return held if isinstance(held, originals.Original) else open_picture(held)


def says_tensors(x: Any) -> bool:
    """Whether what a user holds is what a model is called with, rather than pictures yet to be opened."""
    if isinstance(x, list):
        return any(isinstance(v, Tensor) for v in x)
    return isinstance(x, Inputs | Tensor | tuple) or isinstance(x, Mapping)


def _ready(x: Any) -> Inputs:
    if isinstance(x, Tensor):
        _refuse_whole_numbers(x)
    if isinstance(x, Mapping):
        return Inputs((), dict(x))
    return x if isinstance(x, Inputs) else Inputs(x if isinstance(x, tuple) else (x,))


def _refuse_whole_numbers(x: Tensor) -> None:
    if not x.is_floating_point():
        raise InputError(
            f"a tensor of {x.dtype} is no input that a gradient could be taken at: hand over preprocessed floats, "
            "or the picture itself (path, PIL picture or array), which will be preprocessed."
        )


def _joined(model: nn.Module, rows: Sequence[Any]) -> Tensor:
    """A batch from a list of tensors without the batch axis."""
    strangers = [v for v in rows if not isinstance(v, Tensor)]
    if strangers:
        raise InputError(
            f"a list is of tensors or of pictures, not of both: this one holds a {type(strangers[0]).__name__}, too."
        )
    for v in rows:
        _refuse_whole_numbers(v)
    axes = first_convolution(model)[0]
    if rows[0].dim() == axes:
        raise InputError(
            f"each tensor of the list has {axes} axes, as a batch has: make one batch of them with torch.cat, or for a "
            "model that takes a list hand over its arguments as a tuple, (the_list,)."
        )
    check_sizes(rows)
    return torch.stack(list(rows))


def _from_tensors(model: nn.Module, given: Inputs) -> tuple[Inputs, Pictures]:
    axes, channels = first_convolution(model)
    inputs = given.settled(axes, channels)
    x = inputs.x
    _check_axes(x, axes)
    shown = x.detach().clone()  # the caller may use the same memory for the next batch
    told = "; ".join(filter(None, (_chosen(given, inputs, axes), _bands_shown(x))))
    notes = (told,) * len(x) if told else ()
    return inputs, Pictures(tuple(x.shape[2:]), _numbered(len(x)), tensor=shown, notes=notes)


def _chosen(given: Inputs, inputs: Inputs, axes: int | None) -> str:
    """What to say where the picture was chosen among several inputs that have space, or its axes were told apart."""
    rivals = inputs.rivals(axes) if given.mapped is None else ()
    told = f"of {len(rivals) + 1} inputs with space the map lies on the largest, {inputs.spoken}" if rivals else ""
    frames = "frames before channels" if inputs.takes == "frames first" and given.takes is None else ""
    return "; ".join(filter(None, (told, frames)))


def _bands_shown(x: Tensor) -> str:
    """Which channels `Pictures.image` shows, where they are not all."""
    if x.dim() != 4 or x.shape[1] in (1, 3):
        return ""
    return f"shown: {'channel 0' if x.shape[1] == 2 else 'channels 0, 1, 2'} of {x.shape[1]}"


def first_convolution(model: nn.Module) -> tuple[int | None, int | None]:
    """How many axes the first convolution takes, the batch's among them, and how many channels."""
    kinds: dict[type, int] = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
    first = next((m for m in unwrap(model).modules() if type(m) in kinds), None)
    return (None, None) if first is None else (kinds[type(first)], int(first.in_channels))  # type: ignore[arg-type]


def _taken(model: nn.Module, preprocess: Preprocess | None) -> tuple[int | None, int | None]:
    """As `first_convolution`; no channels where ``preprocess`` scales them one by one."""
    axes, channels = first_convolution(model)
    scaled = preprocess is not None and preprocess.channels == channels
    return axes, None if scaled else channels


def _check_axes(x: Tensor, axes: int | None) -> None:
    """One picture without its batch axis is told from the first convolution. Raises: InputError."""
    if axes is not None and x.dim() == axes - 1:
        raise InputError(
            f"this model takes a batch, with {axes} axes; got {tuple(x.shape)}: add the batch axis with x[None]."
        )
    if x.dim() < 3 or x.numel() == 0:
        raise InputError(
            f"a batch of inputs has shape (b, c, …) with at least one of each; got {tuple(x.shape)}"
            + (": add the batch axis with x[None]." if x.dim() == 2 else ".")
        )


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"picture {i}" for i in range(count)) if count > 1 else ("picture",)


def _from_pictures(model: nn.Module, sources: Sequence[Any], preprocess: Preprocess) -> tuple[Inputs, Pictures]:
    from camlucida.images import Picture, bands_shown, open_picture

    made: list[tuple[Tensor, Frame]] = []
    opened: list[Picture] = []
    for source in sources:
        if reads_bands(source, preprocess):
            made.append(preprocess.bands(source))
            image, notes = bands_shown(source)
            opened.append(Picture(image, "picture", tuple(notes)))
            continue
        opened.append(source if isinstance(source, Picture) else open_picture(source))
        made.append(preprocess(opened[-1].image))
    like = next((p for p in unwrap(model).parameters() if p.is_floating_point()), torch.empty(0))
    batch = torch.stack([tensor for tensor, _ in made]).to(like.device, like.dtype)
    pictures = Pictures(
        space=tuple(batch.shape[2:]),
        names=tuple(p.name for p in opened),
        frames=tuple(frame for _, frame in made),
        images=tuple(p.image for p in opened),
        notes=tuple("; ".join(p.notes) for p in opened),
    )
    return Inputs((batch,)), pictures


def reads_bands(source: Any, preprocess: Preprocess) -> bool:
    """Whether it is to be read band by band: where there are statistics for what is no grey or RGB picture."""
    return isinstance(source, np.ndarray) and preprocess.channels not in (1, 3)


Source = str | PathLike[str] | bytes | Tensor | tuple[Any, ...] | Mapping[str, Any] | Sequence[Any]
