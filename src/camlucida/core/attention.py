"""Attention of any transformer, as probabilities with gradients: found while the model runs, nothing patched.

Fused attention never makes its probabilities, so a function mode of this thread, seen by no other, computes those that
are asked for in the open: ``softmax(q kᵀ · scale + mask)``, then their product with ``v``: the same numbers within
rounding. Attention written out by its author is told by a softmax over a product of all tokens with all. Recording
begins at the first attention asked for; those before it stay as they are.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from camlucida.core.gradients import full
from camlucida.core.structure import tensors

_SAID = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
_MHA = F.multi_head_attention_forward
_CALL = nn.Module._call_impl.__code__

# The mode sees a call of this function as one and nothing inside it; a copy that does not hand itself over again lets
# the attention inside reach the mode.
_OPEN_MHA = FunctionType(
    _MHA.__code__, {**vars(F), "has_torch_function": lambda *_: False}, _MHA.__name__, _MHA.__defaults__
)
_OPEN_MHA.__kwdefaults__ = _MHA.__kwdefaults__


@dataclass
class Block:
    """One attention of all tokens to all, as the model made it."""

    probs: Tensor
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    made: Tensor | None = None


def _running() -> tuple[nn.Module, ...]:
    """The modules whose forward is running in this thread, innermost first."""
    found, frame = [], sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_code is _CALL:
            found.append(frame.f_locals["self"])
        frame = frame.f_back
    return tuple(found)


@final
class Lens(TorchFunctionMode):
    """Watches one thread's forward pass of one picture; attention number ``first`` and later is made explicit."""

    def __init__(self, fits: Callable[[int], bool], first: int, graph: bool = True) -> None:
        super().__init__()
        self.fits, self.first, self.graph, self.live = fits, first, graph, True
        self.tokens = 0  # as many as the first attention was of
        self.blocks: list[Block] = []
        self.inside: list[tuple[nn.Module, ...]] = []  # for each attention of all to all
        self.odd: list[tuple[int, str]] = []  # other attention, with the number of those before it
        self._products: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._waiting: Block | None = None  # for its values

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        step = _STEPS.get(func) if self.live else None
        return step(self, func, args, kwargs or {}) if step else func(*args, **(kwargs or {}))

    def _takes(self, shape: Sequence[int], asking: int, answering: int) -> bool:
        """Whether an attention is of all tokens to all; it is counted, or noted as odd."""
        rows = math.prod(shape[:-3]) if len(shape) > 3 else 1
        if rows == 1 and asking == answering == (self.tokens or asking) and self.fits(asking):
            self.tokens = asking
            self.inside.append(_running())
            return True
        windows = f"within {rows} windows of {asking} tokens" if rows > 1 else f"among {asking} tokens"
        kind = windows if asking == answering else f"from {asking} tokens to {answering} others"
        self.odd.append((len(self.inside), kind))
        return False

    @property
    def _asked(self) -> bool:
        return len(self.inside) > self.first

    def _record(self, probs: Tensor) -> Tensor:
        """Gradients are taken at this tensor; where nothing was recorded before, recording begins with it."""
        torch.set_grad_enabled(self.graph)
        return probs.detach().requires_grad_() if self.graph and not probs.requires_grad else probs

    def fused(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        said = dict(zip(_SAID, args, strict=False)) | kwargs
        query, key, value = said["query"], said["key"], said["value"]
        if not (self._takes(query.shape, query.shape[-2], key.shape[-2]) and self._asked):
            return func(*args, **kwargs)  # type: ignore[no-any-return]
        if said.get("enable_gqa"):
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
        probs = self._record(_probabilities(query, key, said).to(value.dtype))
        drop = said.get("dropout_p", 0.0)
        made: Tensor = (F.dropout(probs, drop) if drop else probs) @ value
        self.blocks.append(Block(probs, query, key, value, made))
        return made

    def mha(self, _func: Any, args: Any, kwargs: Any) -> Any:
        """`nn.MultiheadAttention`: what runs inside is watched, too."""
        with self:  # a mode is off while it handles a call
            return _OPEN_MHA(*args, **kwargs)

    def softmax(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """Attention written out, where the softmax is over a product of tokens with tokens."""
        probs: Tensor = func(*args, **kwargs)
        dim, pair = kwargs.get("dim", args[1] if len(args) > 1 else None), tuple(probs.shape[-2:])
        if probs.dim() < 3 or dim not in (-1, probs.dim() - 1) or pair not in self._products:
            return probs
        query, key = self._products.pop(pair)
        self._products.clear()
        if not (self._takes(probs.shape, *pair) and self._asked):
            return probs
        self._waiting = Block(self._record(probs), query, key)
        self.blocks.append(self._waiting)
        return self._waiting.probs.clone()  # what follows may write in place: on the copy

    def product(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """Products of tokens with tokens before a softmax, and of its probabilities with the values after it."""
        made: Tensor = func(*args, **kwargs)
        left, right = tensors([args, kwargs])[-2:]
        waits = self._waiting
        if waits and left.shape == waits.probs.shape:
            waits.value, waits.made, self._waiting = right, made, None
        elif min(left.dim(), right.dim()) >= 3:  # a product with a weight is none of tokens with tokens
            self._products[tuple(made.shape[-2:])] = (left, right if func is torch.einsum else right.mT)
        return made


_STEPS: dict[Any, Callable[..., Any]] = {F.scaled_dot_product_attention: Lens.fused, _MHA: Lens.mha}
_STEPS |= dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax), Lens.softmax)
_STEPS |= dict.fromkeys(
    (torch.matmul, torch.bmm, torch.baddbmm, torch.einsum, Tensor.matmul, Tensor.bmm, Tensor.baddbmm,
     Tensor.__matmul__),
    Lens.product,
)  # fmt: skip


def _probabilities(query: Tensor, key: Tensor, said: dict[str, Any]) -> Tensor:
    """``softmax(q kᵀ · scale + mask)``, at least in float32; a token that may look nowhere looks nowhere."""
    scale, mask = said.get("scale"), said.get("attn_mask")
    scores = full(query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale))
    if said.get("is_causal"):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return scores.softmax(-1)
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    nowhere = (scores == -math.inf).all(-1, keepdim=True)
    return scores.masked_fill(nowhere, 0.0).softmax(-1).masked_fill(nowhere, 0.0)
