"""What one forward pass answers: the maps of every target, by every method, at every layer, while its graph lives.

Class targets are first brought to the logits: what they ask for is a direction there. From the logits two ways lead
back to a layer. Where the head has a closed form (`heads`) and many are asked for, the gradient is written down from
its weights; elsewhere autograd computes it, many directions at a time, in chunks that fit a memory budget.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
DEARER = 2  # a pass forward with a tangent, in passes back for one of many targets
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
    linear: bool = False  # whether the scores are linear in the logits


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
            leaf.gather(2, index[..., None])[..., 0], y, leaf.zero_().scatter_(2, index[..., None], 1.0), index, True
        )
    leaf.requires_grad_()
    scores = targets.class_scores(plain, leaf, index)
    (along,) = vjp(scores.sum(), torch.ones(1, device=y.device), [leaf])
    return Asked(scores.detach(), y, torch.zeros_like(leaf) if along is None else along[0], index)


@dataclass(frozen=True)
class Answers:
    """Maps ``t b *space`` by (layer, method); by layer the largest ``abs(G)``, ``t b``, and ``abs(A)``, ``b``.

    ``steepest`` is there where a gradient was taken; ``slopes`` gives the gradient ``t c *space`` of one picture where
    the scores are proved linear in the activation.
    """

    maps: dict[tuple[str, Method], Tensor]
    steepest: Mapping[str, Float[Tensor, "t b"]]
    largest: Mapping[str, Float[Tensor, " b"]]
    slopes: Mapping[str, Callable[[int], Tensor]]

    def blind(self) -> Iterator[str]:
        """The layers whose gradient is zero at every place, for every target; or the derivatives along all places."""
        yield from (name for name, steepest in self.steepest.items() if bool((steepest == 0).all()))
        forward = {n for n, m in self.maps if m.by_place and n not in self.steepest}
        yield from (n for n in forward if not any(bool(v.any()) for (at, _), v in self.maps.items() if at == n))


@dataclass(frozen=True)
class Evidence:
    """One forward pass and how to read its layers; ``net`` lends its weights to closed forms.

    ``wanted`` are the methods asked for at each layer; ``forward`` leaves out those that cost less asked by place.
    """

    tape: Tape
    layouts: Mapping[str, Layout]
    net: nn.Module
    asked: Asked
    wanted: Mapping[str, Sequence[Method]]
    forward: bool = False

    def answers(self) -> Answers:
        """The maps of all targets by all methods that read, at all their layers; those that ask come later.

        Raises: LayerError where the score does not depend on a layer; MethodError where a method needs a linear head.
        """
        acts = {n: full(self.layouts[n](self.tape.acts[n].detach())) for n in self.wanted}
        known = {n: self._head(n, a) for n, a in acts.items()}
        found, steepest = self._read(acts, known)
        for name, method in ((n, m) for n, ms in self.wanted.items() for m in ms if m.needs == "activation"):
            found[name, method] = method(acts[name]).expand(len(self.asked.along), *acts[name][:, 0].shape)
        return Answers(
            maps=found,
            steepest=steepest,
            largest={n: a.abs().flatten(1).amax(1) for n, a in acts.items()},
            slopes={n: self._slopes(head, acts[n]) for n, head in known.items() if head and self.asked.linear},
        )

    def _read(
        self, acts: Mapping[str, Act], known: Mapping[str, Head | None]
    ) -> tuple[dict[tuple[str, Method], Tensor], dict[str, Tensor]]:
        """Maps and steepest gradients of the methods that read one: closed forms first, the others in chunks."""
        found: dict[tuple[str, Method], list[Tensor]] = {}
        steepest: dict[str, list[Tensor]] = {}
        reading = {n: [m for m in ms if m.needs in ("gradient", "head")] for n, ms in self.wanted.items()}
        for name, head in known.items():
            _refuse_headless(name, head, reading[name])
            if head is not None and reading[name]:
                rows = head.rows(self.asked.along, acts[name])
                steepest[name] = [rows.abs().amax(2)]
                found |= {(name, m): [_closed(m, head, rows, acts[name])] for m in reading[name]}
        graph = [
            n for n, head in known.items() if head is None and reading[n] and not self._by_place(reading[n], acts[n])
        ]
        for grads in self._chunks(graph) if graph else ():
            for name in graph:
                grad = full(self.layouts[name](grads[name]))
                steepest.setdefault(name, []).append(grad.abs().flatten(1).amax(1)[None])
                for method in reading[name]:
                    found.setdefault((name, method), []).append(method(acts[name], grad)[None])
        return {k: torch.cat(v) for k, v in found.items()}, {k: torch.cat(v) for k, v in steepest.items()}

    def _by_place(self, methods: Sequence[Method], act: Act) -> bool:
        """Whether a pass forward for each place is less work than one back for each target."""
        fewer = DEARER * act[0, 0].numel() < len(self.asked.along)
        return self.forward and fewer and all(m.by_place for m in methods)

    def _slopes(self, head: Head, act: Act) -> Callable[[int], Tensor]:
        along = self.asked.along

        def slope(i: int) -> Tensor:
            one = act[i : i + 1]
            return head.spread(head.rows(along[:, i : i + 1], one), one)[:, 0]

        return slope

    def _head(self, name: str, act: Act) -> Head | None:
        """The closed form of what follows a layer, where one is proved and worth the proof."""
        needs = {m.needs for m in self.wanted[name]}
        worth = len(self.asked.along) >= WORTH and "gradient" in needs
        if not (needs & {"head", "model"} or worth) or self.asked.index is None:
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


def _refuse_headless(name: str, head: Head | None, methods: Sequence[Method]) -> None:
    needy = next((m for m in methods if m.needs == "head"), None)
    if needy and (head is None or head.kind != "gap"):
        raise MethodError(
            f"{needy.title} needs a global average pool and one linear layer right after {name!r}, and a class "
            "as target; this model does something else there. method='gradcam' is the same map without that need."
        )


def _closed(method: Method, head: Head, rows: Float[Tensor, "t b w"], act: Act) -> Float[Tensor, "t b *space"]:
    if head.kind == "gap" and method.at_gap is not None:
        return weigh_many(method.at_gap(rows, act), act)
    return torch.stack([method(act, head.spread(row[None], act)[0]) for row in rows])
