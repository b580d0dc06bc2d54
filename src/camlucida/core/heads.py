"""Closed forms: a head that is a global average (or a flatten, or a 1×1 convolution) and one linear map.

Such a head is recognised from what one forward pass did, not from its names: the linear module's input *was* the mean
(or the flattening) of the activation, and its output *was* the logits. Then the gradient of any target is written
down from the head's weights, ``G = ∂y/∂logits · W``, with no backward pass through the net, for a thousand classes
in one product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from camlucida.core.capture import Call, full
from camlucida.core.scope import named
from camlucida.types import Act, Weights


@dataclass(frozen=True)
class Head:
    """A recognised head: ``kind`` and its weights, one row a class (``k c``; flattened places for ``flatten``)."""

    kind: Literal["gap", "flatten"]
    weight: Float[Tensor, "k w"]

    def gradient(self, by_class: Float[Tensor, "t b k"], act: Act) -> Float[Tensor, "t b c *space"]:
        """The gradient at the activation, from ``∂y/∂logits``."""
        rows = by_class @ self.weight.to(by_class)
        if self.kind == "flatten":
            return rows.reshape(*rows.shape[:2], *act.shape[1:])
        return _everywhere(rows / act[0, 0].numel(), act)

    def channel_gradient(self, by_class: Float[Tensor, "t b k"], act: Act) -> Weights | None:
        """The gradient at any one place, where it is the same at all of them."""
        if self.kind == "flatten":
            return None
        return by_class @ self.weight.to(by_class) / act[0, 0].numel()


def _everywhere(rows: Weights, act: Act) -> Float[Tensor, "t b c *space"]:
    return rows.reshape(rows.shape + (1,) * (act.dim() - 2)).expand(rows.shape + act.shape[2:])


def candidates(model: nn.Module) -> list[str]:
    """The modules that may be such a head's linear map: the last linear layer and the last 1×1 convolution."""
    modules = named(model)
    linear = [n for n, m in modules.items() if isinstance(m, nn.Linear)]
    conv = [n for n, m in modules.items() if _is_pointwise(m)]
    return [*linear[-1:], *conv[-1:]]


def _is_pointwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and module.groups == 1
        and set(module.kernel_size) == {1}
        and set(module.stride) == {1}
        and not any(module.padding if isinstance(module.padding, tuple) else ())
    )


def recognise(act: Act, output: object, calls: Sequence[Call]) -> Head | None:
    """The head that turned ``act`` into ``output``, if it is one of these; None means: ask autograd."""
    if not isinstance(output, Tensor) or output.dim() != 2:
        return None
    with torch.no_grad():
        linear = (c for c in calls if isinstance(c.module, nn.Linear) or _is_pointwise(c.module))
        found = (_head(act, output, call) for call in linear)
        return next((head for head in found if head is not None), None)


def _head(act: Act, output: Tensor, call: Call) -> Head | None:
    pooled = full(act.detach()).flatten(2).mean(2)
    if isinstance(call.module, nn.Linear):
        if _same(call.made, output) and _same(call.given, pooled):
            return _proven(Head("gap", _rows(call)), pooled, output, call)
        if _same(call.made, output) and _same(call.given, act.flatten(1)):
            return _proven(Head("flatten", _rows(call)), act.flatten(1), output, call)
    elif _same(call.given, act):
        return _proven(Head("gap", _rows(call)), pooled, output, call)
    return None


def _rows(call: Call) -> Float[Tensor, "k w"]:
    return call.module.weight.detach().flatten(1)  # type: ignore[operator]


def _proven(head: Head, pooled: Tensor, output: Tensor, call: Call) -> Head | None:
    """The head, if its weights alone give the model's output: an adapter or a ReLU on the way would show."""
    bias = call.module.bias
    logits = nn.functional.linear(full(pooled), full(head.weight), None if bias is None else full(bias))  # type: ignore[arg-type]
    return head if _same(logits, output) else None


def _same(one: object, two: object) -> bool:
    """Equal but for rounding, judged by the coarser of the two precisions."""
    if one is two:
        return True
    if not (isinstance(one, Tensor) and isinstance(two, Tensor) and one.shape == two.shape):
        return False
    slack = max(torch.finfo(t.dtype).eps for t in (one, two)) ** 0.5 / 4
    a, b = full(one.detach()), full(two.detach())
    return bool((a - b).abs().amax() <= slack * b.abs().amax())
