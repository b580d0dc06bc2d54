"""What one forward pass answers: the maps of every target, by every method, at every layer, while its graph lives.

Two ways lead to the same gradient. Where the head has a closed form (`heads`) and many are asked for, it is written
down from the weights; elsewhere autograd computes it, many targets at a time, in chunks that fit a memory budget.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from camlucida.core import heads
from camlucida.core.capture import Tape, full, vjp
from camlucida.core.heads import Head
from camlucida.core.targets import ClassTarget, class_scores
from camlucida.errors import MethodError
from camlucida.methods.gradient import at_gap_map
from camlucida.registry import Method
from camlucida.types import Act, Layout, Target

GRADIENT_BYTES = 2**28  # the gradients of many targets are taken in chunks of at most this size
WORTH = 4  # from so many targets on it pays to prove a closed form, which costs one backward pass of the tail


@dataclass(frozen=True)
class Answers:
    """Maps ``t b *space`` by (layer, method); by layer, which gradients were zero throughout, ``t b``."""

    maps: Mapping[tuple[str, Method], Tensor]
    zero: Mapping[str, Bool[Tensor, "t b"]]


@dataclass(frozen=True)
class Evidence:
    """One forward pass and how to read its layers; ``net`` lends its weights to closed forms, if ``closed``."""

    tape: Tape
    layouts: Mapping[str, Layout]
    net: nn.Module
    closed: bool = True

    def answers(self, scores: Float[Tensor, "t b"], asked: Sequence[Target], methods: Sequence[Method]) -> Answers:
        """The maps of all targets by all methods at all layers.

        Raises: LayerError where the score does not depend on a layer; MethodError where a method needs a linear head.
        """
        acts = {n: full(layout(self.tape.acts[n].detach())) for n, layout in self.layouts.items()}
        known = {n: self._head(n, a, asked, methods) for n, a in acts.items()}
        _refuse_headless(known, methods)
        found: dict[tuple[str, Method], list[Tensor]] = {(n, m): [] for n in acts for m in methods}
        zero: dict[str, list[Tensor]] = {n: [] for n in acts}
        by_class = _by_class(self.tape.output, asked) if any(known.values()) else None  # type: ignore[arg-type]
        for name, head in known.items():
            if head is not None and by_class is not None:
                zero[name].append(_closed_zero(head, by_class, acts[name]))
                for method in methods:
                    found[name, method].append(_closed(method, head, by_class, acts[name]))
        graph = [n for n, head in known.items() if head is None]
        for grads in _chunks(self.tape, graph, scores) if graph else ():
            for name in graph:
                grad = full(self.layouts[name](grads[name]))
                zero[name].append((grad == 0).flatten(1).all(1)[None])
                for method in methods:
                    found[name, method].append(method(acts[name], grad)[None])
        return Answers({k: torch.cat(v) for k, v in found.items()}, {k: torch.cat(v) for k, v in zero.items()})

    def _head(self, name: str, act: Act, asked: Sequence[Target], methods: Sequence[Method]) -> Head | None:
        """The closed form of what follows a layer, where one is proved and worth the proof."""
        wanted = any(m.needs == "head" for m in methods) or (self.closed and len(asked) >= WORTH)
        plain = all(isinstance(t, ClassTarget) for t in asked)  # other targets may look past the logits
        return heads.recognise(self.net, self.tape, name, self.layouts[name], act) if wanted and plain else None


def _refuse_headless(known: Mapping[str, Head | None], methods: Sequence[Method]) -> None:
    needy = [m for m in methods if m.needs == "head"]
    names = [n for n, head in known.items() if head is None or head.kind != "gap"]
    if names and needy:
        raise MethodError(
            f"{needy[0].title} needs a global average pool and one linear layer right after {names[0]!r}, and a class "
            "as target; this model does something else there. method='gradcam' is the same map without that need."
        )


def _by_class(output: Tensor, asked: Sequence[ClassTarget]) -> heads.ByClass:
    """``∂(score of each target)/∂logits``: all that a linear head needs to know of a target."""
    leaf = full(output.detach()).repeat(len(asked), 1, 1).requires_grad_()
    grads = vjp(class_scores(asked, leaf).sum()[None], [leaf], keep=False)[0]
    return torch.zeros_like(leaf) if grads is None else grads[0]


def _closed_zero(head: Head, by_class: heads.ByClass, act: Act) -> Bool[Tensor, "t b"]:
    rows = head.channel_gradient(by_class, act) if head.kind == "gap" else head.gradient(by_class, act).flatten(2)
    return (rows == 0).all(2)


def _closed(method: Method, head: Head, by_class: heads.ByClass, act: Act) -> Float[Tensor, "t b *space"]:
    if head.kind == "gap" and method.at_gap is not None:
        return at_gap_map(method.at_gap(head.channel_gradient(by_class, act), act), act)
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
