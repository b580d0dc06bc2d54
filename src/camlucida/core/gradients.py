"""Derivatives: beside `capture`, which holds the graph, the only file that asks autograd for anything."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import Node


def vjp(at: Tensor, along: Tensor, acts: Sequence[Tensor], keep: bool = False) -> list[Tensor | None]:
    """Vector-Jacobian products of ``at`` along many directions, ``t`` first, at least float32; None off the path.

    Half-precision gradients are scaled: up, so that small ones survive; where that overflows, not, then down.
    """
    if not at.requires_grad:
        return [None] * len(acts)
    scales = [1024.0, 1.0, 1 / 1024] if any(a.dtype == torch.float16 for a in acts) else [1.0]
    for scale in scales:
        last = scale == scales[-1]
        rows = _rows(at, (along * scale).to(at.dtype), acts, keep or not last)
        found = [None if g is None else full(g) / scale if scale != 1 else full(g) for g in rows]
        if last or all(bool(g.isfinite().all()) for g in found if g is not None):
            break
    return found


def bend(score: Float[Tensor, ""], act: Tensor, along: Tensor) -> Tensor:
    """``H · along``: the second derivatives of one number at an activation, along one direction of it.

    Zeros where the score is linear in the activation, or piecewise linear.
    """
    (slope,) = torch.autograd.grad(score, act, create_graph=True)
    if not slope.requires_grad:
        return torch.zeros_like(act)
    (found,) = torch.autograd.grad(slope, act, along.to(slope), allow_unused=True, retain_graph=True)
    return torch.zeros_like(act) if found is None else found


def jvp(answer: Callable[[Tensor], Tensor], at: Tensor, along: Tensor) -> Tensor:
    """How fast an answer changes along directions, row by row: one pass forward, with no graph.

    Raises: NotImplementedError where an operation on the way has no forward mode.
    """
    with forward_ad.dual_level():
        made = answer(forward_ad.make_dual(at, along.to(at)))
        tangent = forward_ad.unpack_dual(made).tangent
        return torch.zeros_like(made) if tangent is None else tangent.clone()


def steep(score: Float[Tensor, ""], act: Tensor) -> Tensor | None:
    """The gradient of one number at an activation, itself with a graph; None where it does not depend on it."""
    (found,) = torch.autograd.grad(score, act, create_graph=True, allow_unused=True)
    return found


def made_from(tensors: Sequence[Tensor], sources: Sequence[Tensor]) -> list[bool]:
    """Which of these tensors were computed from any of the sources, as the graph that was recorded has it.

    >>> a, b = (torch.ones(1, requires_grad=True) * 1 for _ in range(2))
    >>> made_from([a + b, b * 2, a], [a])
    [True, False, True]
    """
    known: dict[Node, bool] = {s.grad_fn: True for s in sources if s.grad_fn is not None}

    def below(node: Node) -> list[Node]:
        return [n for n, _ in node.next_functions if n is not None]

    waiting = [t.grad_fn for t in tensors if t.grad_fn is not None]
    while waiting:  # without recursion: graphs are deeper than Python's stack
        node = waiting[-1]
        if node in known:
            waiting.pop()
        elif unknown := [n for n in below(node) if n not in known]:
            waiting.extend(unknown)
        else:
            known[waiting.pop()] = any(known[n] for n in below(node))
    return [t.grad_fn is not None and known[t.grad_fn] for t in tensors]


def _rows(at: Tensor, along: Tensor, acts: Sequence[Tensor], keep: bool) -> list[Tensor | None]:
    """Batched, or direction by direction where a layer's backward cannot be batched."""
    if len(along) > 1:
        try:
            return list(torch.autograd.grad(at, acts, along, True, is_grads_batched=True, allow_unused=True))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            pass  # an operation without a batching rule (a custom autograd function): the loop below needs none
    rows = []
    for i, one in enumerate(along):
        rows.append(torch.autograd.grad(at, acts, one, keep or i + 1 < len(along), allow_unused=True))
    return [None if col[0] is None else torch.stack(col) for col in zip(*rows, strict=True)]


def full(tensor: Tensor) -> Tensor:
    """At least float32: half-precision activations and gradients are summed in full precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
