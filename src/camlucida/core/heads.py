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

from camlucida.core.capture import Tape, full
from camlucida.core.scope import named
from camlucida.types import Act, Layout, Weights

ByClass = Float[Tensor, "t b k"]


@dataclass(frozen=True)
class Head:
    """A recognised head: ``kind`` and its weights, one row a class (``k c``; ``k`` × places for ``flatten``)."""

    kind: Literal["gap", "flatten"]
    weight: Float[Tensor, "k w"]

    def gradient(self, by_class: ByClass, act: Act) -> Float[Tensor, "t b c *space"]:
        """The gradient at the activation, from ``∂y/∂logits``."""
        if self.kind == "flatten":
            rows = _rows_of(by_class, self.weight.to(by_class))
            return rows.reshape(*rows.shape[:2], *act.shape[1:])
        rows = self.channel_gradient(by_class, act)
        return rows.reshape(rows.shape + (1,) * (act.dim() - 2)).expand(rows.shape + act.shape[2:])

    def channel_gradient(self, by_class: ByClass, act: Act) -> Weights:
        """The gradient of a pooled head at any one place: it is the same at all of them."""
        return _rows_of(by_class, self.weight.to(by_class)) / act[0, 0].numel()


def _rows_of(by_class: ByClass, weight: Float[Tensor, "k w"]) -> Float[Tensor, "t b w"]:
    """``by_class @ weight``; where a target looks at one class only, that row is taken instead of multiplied for."""
    index = by_class.abs().argmax(2)
    if int((by_class != 0).sum(2).max()) > 1:
        return by_class @ weight
    factor = by_class.gather(2, index[..., None])
    rows = weight[index]
    return rows if bool((factor == 1).all()) else rows * factor


def recognise(net: nn.Module, tape: Tape, name: str, layout: Layout, act: Act) -> Head | None:
    """The linear head that follows a layer, proved on these very pictures; None means: ask autograd."""
    y = tape.output
    if not isinstance(y, Tensor) or y.dim() != 2:
        return None
    for head in _candidates(net, y.shape[1], act):
        along = _direction(y.detach())
        (grads,) = tape.gradients((full(y) * along[0]).sum(1)[None], [name], last=False)
        expected, found = head.gradient(along, act)[0], full(layout(grads[name]))
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


def _direction(logits: Float[Tensor, "b k"]) -> ByClass:
    """A direction of the logits that no head was made for; the same in every call."""
    steps = torch.arange(1, logits.numel() + 1, dtype=torch.float64).sqrt() * 2.399963
    return full(steps.cos().reshape(1, *logits.shape).to(logits))
