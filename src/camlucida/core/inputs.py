"""What a model is called with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from camlucida.errors import InputError


@dataclass(frozen=True)
class Inputs:
    """What the model is called with; the largest floating tensor with space is the picture.

    >>> import torch
    >>> Inputs((torch.zeros(1, 3, 8, 8),)).x.shape
    torch.Size([1, 3, 8, 8])
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def x(self) -> Tensor:
        """The picture tensor, ``b c *space``. Raises: InputError where there is none."""
        given = [v for v in (*self.args, *self.kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point()]
        if given:
            return max(given, key=lambda v: (v.dim() >= 3, v.numel()))  # masks and flags are smaller than pictures
        raise InputError(
            "no floating-point tensor among the inputs: hand over a batch of pictures (b, c, height, width)."
        )

    def map(self, change: Any) -> "Inputs":
        """The same inputs with ``change`` applied to every tensor at the top level."""

        def each(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        return Inputs(tuple(map(each, self.args)), {k: each(v) for k, v in self.kwargs.items()})

    def row(self, i: int) -> "Inputs":
        """The inputs of picture ``i`` alone, as a batch of one; what is no batch stays as it is."""
        count = len(self.x)
        return self.map(lambda v: v[i : i + 1] if v.dim() and len(v) == count else v)

    def showing(self, x: Tensor) -> "Inputs":
        """The inputs of one picture with others in its place, ``n c *space``; what came with it is repeated for each.

        >>> import torch
        >>> Inputs((torch.zeros(1, 3, 8, 8), torch.ones(1, 2))).showing(torch.zeros(4, 3, 8, 8)).args[1].shape
        torch.Size([4, 2])
        """
        picture = self.x

        def each(v: Tensor) -> Tensor:
            if v is picture:
                return x.to(v)
            return v.expand(len(x), *v.shape[1:]) if v.dim() and len(v) == 1 else v

        return self.map(each)
