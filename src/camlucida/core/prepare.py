"""From what the user holds (a path, pictures, a tensor, the model's own arguments) to what the model is called with."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from camlucida.core.capture import Inputs
from camlucida.core.explanation import Pictures
from camlucida.core.scope import unwrap
from camlucida.errors import InputError
from camlucida.frame import IMAGENET, Preprocess


def prepare(model: nn.Module, x: Any, preprocess: Preprocess | None = None) -> tuple[Inputs, Pictures]:
    """The model's inputs and the pictures behind them, from any of the forms a user has.

    A tensor is a ready batch ``b c *space``; a tuple holds the model's positional arguments, a mapping its keyword
    arguments. A path, PIL picture, array or encoded bytes, or a list of them, is opened and preprocessed.

    Raises: InputError (PictureError for a file) that says what was wrong with what was given.
    """
    if isinstance(x, Inputs | Tensor | tuple) or isinstance(x, Mapping):
        inputs = _ready(x)
        _check_axes(model, inputs.x)
        shown = inputs.x.detach().clone()  # the caller may use the same memory for the next batch
        return inputs, Pictures(tuple(shown.shape[2:]), _numbered(len(shown)), tensor=shown)
    sources = list(x) if isinstance(x, Sequence) and not isinstance(x, str | bytes) else [x]
    if not sources:
        raise InputError("no picture was given: the list is empty.")
    return _from_pictures(model, sources, preprocess or IMAGENET)


def _ready(x: Any) -> Inputs:
    if isinstance(x, Inputs):
        inputs = x
    elif isinstance(x, Mapping):
        inputs = Inputs((), dict(x))
    else:
        inputs = Inputs(x if isinstance(x, tuple) else (x,))
    if isinstance(x, Tensor) and not x.is_floating_point():
        raise InputError(
            f"a tensor of {x.dtype} is no input that a gradient could be taken at: hand over preprocessed floats, "
            "or the picture itself (path, PIL picture or array), which will be preprocessed."
        )
    if inputs.x.dim() < 3 or len(inputs.x) == 0:
        raise InputError(
            f"a batch of inputs has shape (b, c, …) with at least one of each; got {tuple(inputs.x.shape)}"
            + (": add the batch axis with x[None]." if inputs.x.dim() == 2 else ".")
        )
    return inputs


def _check_axes(model: nn.Module, x: Tensor) -> None:
    """One picture without its batch axis is told from the first convolution. Raises: InputError."""
    kinds: dict[type, int] = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
    first = next((kinds[type(m)] for m in unwrap(model).modules() if type(m) in kinds), None)
    if first is not None and x.dim() == first - 1:
        raise InputError(
            f"this model takes a batch, with {first} axes; got {tuple(x.shape)}: add the batch axis with x[None]."
        )


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"picture {i}" for i in range(count)) if count > 1 else ("picture",)


def _from_pictures(model: nn.Module, sources: Sequence[Any], preprocess: Preprocess) -> tuple[Inputs, Pictures]:
    from camlucida.images import Picture, open_picture

    opened = [s if isinstance(s, Picture) else open_picture(s) for s in sources]
    made = [preprocess(p.image) for p in opened]
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


Source = str | PathLike[str] | bytes | Tensor | tuple[Any, ...] | Mapping[str, Any] | Sequence[Any]
