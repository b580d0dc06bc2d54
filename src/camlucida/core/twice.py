"""Attention that can be differentiated twice: fused attention has a first derivative only.

A function mode of this thread, seen by no other, computes it in the open, ``softmax(q kᵀ · scale + mask) v``: the same
numbers within rounding.
"""

import math
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


@final
class InTheOpen(TorchFunctionMode):
    """Inside, this thread's attention runs in plain operations.

    >>> q = torch.rand(1, 2, 3, 4, requires_grad=True)
    >>> with InTheOpen():
    ...     made = F.scaled_dot_product_attention(q, q, q).sum()
    >>> (slope,) = torch.autograd.grad(made, q, create_graph=True)
    >>> torch.autograd.grad(slope.square().sum(), q)[0].shape
    torch.Size([1, 2, 3, 4])
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attended(*args, **given)
        if func is F.multi_head_attention_forward and not given.get("need_weights", True):
            return func(*args, **{**given, "need_weights": True})[0], None  # asked for its weights, it is in the open
        return func(*args, **given)


def _attended(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any) -> Tensor:
    said = dict(zip(("attn_mask", "dropout_p", "is_causal"), rest, strict=False)) | more
    if said.get("enable_gqa"):
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scale = said.get("scale")
    bias = _bias(said, query, key)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    probs = (scores if bias is None else scores + bias).softmax(-1)
    return F.dropout(probs, said.get("dropout_p", 0.0)) @ value


def _bias(said: dict[str, Any], query: Tensor, key: Tensor) -> Tensor | None:
    """What is added to the scores: a mask's numbers, or minus infinity where it (or the causal order) says no."""
    mask = said.get("attn_mask")
    if said.get("is_causal"):
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, -torch.inf)
