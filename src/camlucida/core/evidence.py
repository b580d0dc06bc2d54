"""What one forward pass answers: the maps of every target, by every method, at every layer, while its graph lives.

Two ways lead to the same gradient. Where the head has a closed form (`heads`), it is written down from the weights;
elsewhere autograd computes it, many targets at a time, in chunks that fit a memory budget.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from camlucida.core import heads
from camlucida.core.capture import Tape, full, vjp
from camlucida.core.heads import Head
from camlucida.core.layouts import Layout
from camlucida.core.targets import ClassTarget
from camlucida.errors import MethodError
from camlucida.methods.gradient import at_gap_map
from camlucida.registry import Method
from camlucida.types import Act, Target

GRADIENT_BYTES = 2**28  # the gradients of many targets are taken in chunks of at most this size


@dataclass(frozen=True)
class Answers:
    """Maps ``t b *space`` by (layer, method); by layer, which gradients were zero throughout, ``t b``."""

    maps: Mapping[tuple[str, str], Tensor]
    zero: Mapping[str, Bool[Tensor, "t b"]]


def answers(
    tape: Tape,
    layouts: Mapping[str, Layout],
    scores: Float[Tensor, "t b"],
    asked: Sequence[Target],
    methods: Sequence[Method],
    closed: bool = True,
) -> Answers:
    """The maps of all targets by all methods at all layers that the tape holds; ``closed=False`` asks autograd only.

    Raises: LayerError where the score does not depend on a layer; MethodError where a method needs a linear head.
    """
    acts = {n: full(layout(tape.acts[n].detach())) for n, layout in layouts.items()}
    plain = closed and all(isinstance(t, ClassTarget) for t in asked)  # other targets may look past the logits
    known = {n: heads.recognise(a, tape.output, tape.calls) if plain else None for n, a in acts.items()}
    found: dict[tuple[str, str], list[Tensor]] = {(n, m.name): [] for n in acts for m in methods}
    zero: dict[str, list[Tensor]] = {n: [] for n in acts}
    graph = [n for n, head in known.items() if head is None]
    _refuse_headless(graph, methods)
    by_class = _by_class(tape.output, asked) if len(graph) < len(acts) else None
    for name, head in known.items():
        if head is not None and by_class is not None:
            zero[name].append((by_class == 0).all(2))
            for method in methods:
                found[name, method.name].append(_closed(method, head, by_class, acts[name]))
    for grads in _chunks(tape, graph, scores) if graph else ():
        for name in graph:
            grad = full(layouts[name](grads[name]))
            zero[name].append((grad == 0).flatten(1).all(1)[None])
            for method in methods:
                found[name, method.name].append(method(acts[name], grad)[None])
    return Answers({k: torch.cat(v) for k, v in found.items()}, {k: torch.cat(v) for k, v in zero.items()})


def _refuse_headless(names: Sequence[str], methods: Sequence[Method]) -> None:
    needy = [m for m in methods if m.needs == "head"]
    if names and needy:
        raise MethodError(
            f"{needy[0].title} needs a global average pool and one linear layer right after {names[0]!r}, and a class "
            "as target; this model does something else there. method='gradcam' is the same map without that need."
        )


def _by_class(output: Tensor, asked: Sequence[Target]) -> Float[Tensor, "t b k"]:
    """``∂(score of each target)/∂logits``: all that a linear head needs to know of a target."""
    leaf = full(output.detach()).requires_grad_()
    grads = vjp(torch.stack([t(leaf) for t in asked]).sum(1), [leaf], keep=False)[0]
    return torch.zeros(len(asked), *leaf.shape).to(leaf) if grads is None else grads


def _closed(method: Method, head: Head, by_class: Float[Tensor, "t b k"], act: Act) -> Float[Tensor, "t b *space"]:
    channel = head.channel_gradient(by_class, act)
    if channel is not None and method.at_gap is not None:
        return at_gap_map(method.at_gap(channel, act), act)
    return torch.stack([method(act, head.gradient(row[None], act)[0]) for row in by_class])


def _chunks(tape: Tape, names: Sequence[str], scores: Float[Tensor, "t b"]) -> Iterator[Mapping[str, Tensor]]:
    """Gradients target by target, computed many at a time: as many as fit the budget, halved when memory runs out."""
    each = sum(tape.acts[n].numel() * tape.acts[n].element_size() for n in names)
    size, start = max(1, min(len(scores), GRADIENT_BYTES // each)), 0
    while start < len(scores):
        try:
            grads = tape.gradients(scores[start : start + size], names, last=start + size >= len(scores))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = math.ceil(size / 2)
            continue
        yield from grads
        start += size
