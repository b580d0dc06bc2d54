"""Masks over places, of any number of axes, and pictures shown through them: made a few rows at a time.

Most are products of one line an axis, which is what keeps them cheap: `outer` makes them, `spread` applies one matrix
an axis.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from camlucida.errors import MethodError

Rows = Float[Tensor, "n *space"]
Lines = Float[Tensor, "_ _"]


def spread(values: Rows, matrices: Sequence[Lines]) -> Float[Tensor, "n *new"]:
    """Each axis of space times its own matrix.

    >>> spread(torch.tensor([[1.0, 2.0]]), [torch.tensor([[1.0, 1.0], [0.0, 3.0]])]).tolist()
    [[3.0, 6.0]]
    """
    for axis, matrix in enumerate(matrices, start=1):
        values = torch.movedim(torch.tensordot(values, matrix, ([axis], [1])), -1, axis)
    return values


def outer(lines: Sequence[Float[Tensor, "n _"]]) -> Rows:
    """``n`` products over space of one line an axis each.

    >>> outer([torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 3.0]])]).tolist()
    [[[2.0, 3.0], [0.0, 0.0]]]
    """
    made = lines[0]
    for line in lines[1:]:
        made = made.unsqueeze(-1) * line.reshape(len(line), *(1,) * (made.dim() - 1), -1)
    return made


def near(count: int, reach: int, like: Tensor) -> Lines:
    """Each cell's weights of an axis, falling linearly to zero at ``reach``: one hot for 1; ¼, ½, ¼ for 2.

    >>> near(3, 2, torch.zeros(1)).tolist()
    [[0.5, 0.25, 0.0], [0.25, 0.5, 0.25], [0.0, 0.25, 0.5]]
    """
    at = torch.arange(count, dtype=like.dtype, device=like.device)
    return (reach - (at[:, None] - at).abs()).clamp(min=0) / reach**2


def gaussian(count: int, width: int, sigma: float, like: Tensor) -> Lines:
    """A Gaussian blur of one axis, cut at ``width`` cells; at the ends over the cells that are there.

    >>> gaussian(3, 3, 1e9, torch.zeros(1))[0].tolist()
    [0.5, 0.5, 0.0]
    """
    at = torch.arange(count, dtype=like.dtype, device=like.device)
    apart = (at[:, None] - at).abs()
    kernel = (-((apart / sigma) ** 2) / 2).exp() * (apart <= width // 2)
    return kernel / kernel.sum(1, keepdim=True)


def unit(maps: Rows) -> Rows:
    """Each map from its least to its largest value, 0 to 1; a constant one has nothing to show and is zeros.

    >>> unit(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])).tolist()
    [[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]]
    """
    flat = maps.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    some = high > low
    return torch.where(some, (flat - low) / torch.where(some, high - low, 1), 0).reshape(maps.shape)


def show(x: Float[Tensor, "ch *space"], masks: Rows, fill: float | Tensor) -> Float[Tensor, "n ch *space"]:
    """``x ⊙ m + fill ⊙ (1 − m)``: a picture seen through each mask.

    >>> show(torch.tensor([[4.0, 2.0]]), torch.tensor([[1.0, 0.5]]), 0.0).tolist()
    [[[4.0, 1.0]]]
    """
    seen = masks.unsqueeze(1)
    shown = x * seen
    return shown if isinstance(fill, float) and fill == 0 else shown + (1 - seen) * fill


def same_axes(act: Tensor, x: Tensor, title: str) -> None:
    """Raise MethodError where the layer's axes of space are not those of the picture, so that no mask fits."""
    if act.dim() != x.dim():
        raise MethodError(
            f"{title} lays the layer's {act.dim() - 1} axes of space over the picture's {x.dim() - 1}: "
            "ask for a layer that has as many, or for method='ablationcam', which needs no picture."
        )


def within(value: int | float, least: int | float, most: int | float, name: str, title: str) -> None:
    """Raise MethodError where an option is out of its range."""
    if not least <= value <= most:
        upto = f" to {most:g}" if most < 1e9 else " or more"
        raise MethodError(f"{title}: {name} is {least:g}{upto}; got {value:g}.")
