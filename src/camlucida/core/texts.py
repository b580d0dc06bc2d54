"""Where text takes part: a sequence that it reached is no grid of a picture's places, however its length may fit.

A two-tower model runs a text tower beside the picture's, and a vision-language model puts the picture's tokens among
the words. Both give sequences that could be taken for grids. Which ones the text reached, the graph tells.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from camlucida.core.capture import Call, Inputs
from camlucida.core.gradients import made_from
from camlucida.core.structure import tensors


def reached(calls: Sequence[Call], inputs: Inputs) -> list[bool]:
    """Which of the noted calls gave something that a text among the inputs takes part in.

    What a module makes of a text is where it begins. A convolution that it steers still gives a grid, and does not
    count.
    """
    shapes = texts(inputs)
    begins = [c.feature for c in calls if c.feature is not None and _reads(c.given, shapes)] if shapes else []
    if not begins:
        return [False] * len(calls)
    nothing = torch.empty(0)
    found = made_from([nothing if c.feature is None else c.feature for c in calls], begins)
    return [f and not isinstance(c.module, nn.Conv2d | nn.Conv3d) for f, c in zip(found, calls, strict=True)]


def texts(inputs: Inputs) -> set[torch.Size]:
    """The shapes of the texts among the inputs: rows of whole numbers, ``n length``.

    >>> texts(Inputs((torch.zeros(1, 3, 8, 8), torch.ones(2, 5, dtype=torch.long))))
    {torch.Size([2, 5])}
    """
    return {v.shape for v in tensors([list(inputs.args), dict(inputs.kwargs)]) if _is_text(v)}


def _is_text(value: Tensor) -> bool:
    return value.dim() == 2 and value.dtype in (torch.int64, torch.int32)


def _reads(given: Tensor | None, shapes: set[torch.Size]) -> bool:
    """Whether a module was handed a text: the very numbers may be others by then, but not a mere count of places."""
    if given is None or given.shape not in shapes or not _is_text(given):
        return False
    return given.shape[1] < 2 or not bool((given.diff(dim=1) == 1).all())
