"""What one forward pass answers: the maps of every target, by every method, at every layer, while its graph lives.

Class targets are first brought to the logits: what they ask for is a direction there. From the logits two ways lead
back to a layer. Where the head has a closed form (`heads`) and many are asked for, the gradient is written down from
its weights; elsewhere autograd computes it, many directions at a time, in chunks that fit a memory budget.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from camlucida.core import heads, targets
from camlucida.core.capture import Tape, full, vjp
from camlucida.core.heads import Head
from camlucida.core.targets import ClassTarget
from camlucida.errors import MethodError
from camlucida.maps import weigh_many
from camlucida.registry import Method
from camlucida.types import Act, Layout, Target

GRADIENT_BYTES = 2**28  # the gradients of many targets are taken in chunks of at most this size
WORTH = 4  # from so many targets on it pays to prove a closed form, which costs one backward pass of the tail


@dataclass(frozen=True)
class Asked:
    """Targets put to one output: their scores ``t b``, and the directions ``along`` which to go back from ``at``.

    For class targets ``at`` is the logits, and ``index`` ``t b`` the classes; else it is the scores themselves.
    """

    scores: Float[Tensor, "t b"]
    at: Tensor
    along: Tensor
    index: Int[Tensor, "t b"] | None = None


def put(asked: Sequence[Target], output: Any, count: int) -> Asked:
    """Put targets to a model's output. Raises: TargetError where one does not fit it."""
    plain = [t for t in asked if isinstance(t, ClassTarget)]
    if len(plain) < len(asked):  # a target of one's own may look past the logits
        scores = targets.scores(asked, output, count)
        return Asked(scores.detach(), scores.sum(1), torch.eye(len(asked), device=scores.device))
    y = targets.logits(output, count)
    index = targets.picks(plain, y.detach())
    leaf = full(y.detach()).repeat(len(plain), 1, 1)
    if all(t.score == "logit" for t in plain):  # a logit's direction is its own axis
        return Asked(
            leaf.gather(2, index[..., None])[..., 0], y, leaf.zero_().scatter_(2, index[..., None], 1.0), index
        )
    leaf.requires_grad_()
    scores = targets.class_scores(plain, leaf, index)
    (along,) = vjp(scores.sum(), torch.ones(1, device=y.device), [leaf])
    return Asked(scores.detach(), y, torch.zeros_like(leaf) if along is None else along[0], index)


@dataclass(frozen=True)
class Answers:
    """Maps ``t b *space`` by (layer, method); by layer the largest ``abs(G)``, ``t b``, and ``abs(A)``, ``b``."""

    maps: Mapping[tuple[str, Method], Tensor]
    steepest: Mapping[str, Float[Tensor, "t b"]]
    largest: Mapping[str, Float[Tensor, " b"]]


@dataclass(frozen=True)
class Evidence:
    """One forward pass and how to read its layers; ``net`` lends its weights to closed forms."""

    tape: Tape
    layouts: Mapping[str, Layout]
    net: nn.Module
    asked: Asked

    def answers(self, methods: Sequence[Method]) -> Answers:
        """The maps of all targets by all methods at all layers.

        Raises: LayerError where the score does not depend on a layer; MethodError where a method needs a linear head.
        """
        acts = {n: full(layout(self.tape.acts[n].detach())) for n, layout in self.layouts.items()}
        known = {n: self._head(n, a, methods) for n, a in acts.items()}
        _refuse_headless(known, methods)
        found: dict[tuple[str, Method], list[Tensor]] = {(n, m): [] for n in acts for m in methods}
        steepest: dict[str, list[Tensor]] = {n: [] for n in acts}
        for name, head in known.items():
            if head is not None:
                rows = head.rows(self.asked.along, acts[name])
                steepest[name].append(rows.abs().amax(2))
                for method in methods:
                    found[name, method].append(_closed(method, head, rows, acts[name]))
        graph = [n for n, head in known.items() if head is None]
        for grads in self._chunks(graph) if graph else ():
            for name in graph:
                grad = full(self.layouts[name](grads[name]))
                steepest[name].append(grad.abs().flatten(1).amax(1)[None])
                for method in methods:
                    found[name, method].append(method(acts[name], grad)[None])
        return Answers(
            maps={k: torch.cat(v) for k, v in found.items()},
            steepest={k: torch.cat(v) for k, v in steepest.items()},
            largest={n: a.abs().flatten(1).amax(1) for n, a in acts.items()},
        )

    def _head(self, name: str, act: Act, methods: Sequence[Method]) -> Head | None:
        """The closed form of what follows a layer, where one is proved and worth the proof."""
        wanted = any(m.needs == "head" for m in methods) or len(self.asked.along) >= WORTH
        if not wanted or self.asked.index is None:
            return None
        return heads.recognise(self.net, self.tape, name, self.layouts[name], act)

    def _chunks(self, names: Sequence[str]) -> Iterator[Mapping[str, Tensor]]:
        """Gradients target by target, computed many at a time: as many as fit, halved when memory runs out."""
        acts, along = self.tape.acts, self.asked.along
        each = sum(acts[n].numel() * acts[n].element_size() for n in names)
        size, start = max(1, min(len(along), GRADIENT_BYTES // each)), 0
        while start < len(along):
            some, last = along[start : start + size], start + size >= len(along)
            try:
                grads = self.tape.gradients(self.asked.at, some, names, last)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = math.ceil(size / 2)
                continue
            yield from ({n: g[i] for n, g in grads.items()} for i in range(len(some)))
            start += size


def _refuse_headless(known: Mapping[str, Head | None], methods: Sequence[Method]) -> None:
    needy = [m for m in methods if m.needs == "head"]
    names = [n for n, head in known.items() if head is None or head.kind != "gap"]
    if names and needy:
        raise MethodError(
            f"{needy[0].title} needs a global average pool and one linear layer right after {names[0]!r}, and a class "
            "as target; this model does something else there. method='gradcam' is the same map without that need."
        )


def _closed(method: Method, head: Head, rows: Float[Tensor, "t b w"], act: Act) -> Float[Tensor, "t b *space"]:
    if head.kind == "gap" and method.at_gap is not None:
        return weigh_many(method.at_gap(rows, act), act)
    return torch.stack([method(act, head.spread(row[None], act)[0]) for row in rows])
