"""Closed forms: a head that is a global average (or a flatten, or a 1×1 convolution) and one linear map.

Such a head is recognised by what it does, not by names: a linear module's weights are tried as the head's, and one
backward pass through the tail along a generic direction of the logits must give just the gradient they predict, at
every place of every picture. Then the gradient of any target is written down from the weights, ``G = ∂y/∂logits · W``,
for a thousand classes in one product.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from camlucida.core import targets
from camlucida.core.capture import Tape, full
from camlucida.core.scope import named
from camlucida.errors import TargetError
from camlucida.types import Act, Layout

Along = Float[Tensor, "t b k"]


@dataclass(frozen=True)
class Head:
    """A recognised head: ``kind`` and its weights, one row a class (``k c``; ``k`` × places for ``flatten``)."""

    kind: Literal["gap", "flatten"]
    weight: Float[Tensor, "k w"]

    def rows(self, along: Along, act: Act) -> Float[Tensor, "t b w"]:
        """The gradient along directions of the logits: of a pooled head at any one place, else at all, flattened."""
        rows = _rows_of(along, self.weight.to(along))
        return rows / act[0, 0].numel() if self.kind == "gap" else rows

    def spread(self, rows: Float[Tensor, "t b w"], act: Act) -> Float[Tensor, "t b c *space"]:
        """The gradient of that at every place of the activation."""
        if self.kind == "flatten":
            return rows.reshape(*rows.shape[:2], *act.shape[1:])
        return rows.reshape(rows.shape + (1,) * (act.dim() - 2)).expand(rows.shape + act.shape[2:])


def _rows_of(along: Along, weight: Float[Tensor, "k w"]) -> Float[Tensor, "t b w"]:
    """``along @ weight``; where a target looks at one class only, that row is taken instead of multiplied for."""
    index = along.abs().argmax(2)
    if int((along != 0).sum(2).max()) > 1:
        return along @ weight
    factor = along.gather(2, index[..., None])
    rows = weight[index]
    return rows if bool((factor == 1).all()) else rows * factor


def recognise(net: nn.Module, tape: Tape, name: str, layout: Layout, act: Act) -> Head | None:
    """The linear head that follows a layer, proved on these very pictures; None means: ask autograd."""
    try:
        y = targets.logits(tape.output)  # a dictionary or a tuple that holds them as well as a tensor
    except TargetError:
        return None
    for head in _candidates(net, y.shape[1], act):
        along = _direction(y.detach())
        expected = head.spread(head.rows(along, act), act)[0]
        found = full(layout(tape.gradients(y, along, [name], last=False)[name][0]))
        slack = max(torch.finfo(t.dtype).eps for t in (y, tape.acts[name])) ** 0.5 / 4
        if bool((expected - found).abs().amax() <= slack * expected.abs().amax()):
            return head
    return None


def _candidates(net: nn.Module, classes: int, act: Act) -> Iterator[Head]:
    """Heads that the net's linear modules could be, by the shape of their weights; the last module first."""
    for module in reversed(named(net).values()):
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            weight = module.weight.detach().flatten(1)
            if weight.shape == (classes, act.shape[1]):
                yield Head("gap", weight)
            if weight.shape == (classes, act[0].numel()) and act[0, 0].numel() > 1:
                yield Head("flatten", weight)


def _direction(logits: Float[Tensor, "b k"]) -> Along:
    """A direction of the logits that no head was made for; the same in every call."""
    steps = torch.arange(1, logits.numel() + 1, dtype=torch.float64).sqrt() * 2.399963
    return full(steps.cos().reshape(1, *logits.shape).to(logits))
