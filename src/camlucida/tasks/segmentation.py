"""Regions as targets: a class over a mask, a box, a point, or where the model itself sees it.

The output is a score for each class and place, ``b k *space``, of whatever size: a mask, box or point is given in the
pixels of the picture as it was handed over, and each place of the output counts by the share of it that is covered.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from camlucida.core.layers import Place, Survey
from camlucida.core.layouts import has_space
from camlucida.core.outputs import ends_in_sigmoid, fields, told
from camlucida.core.scores import probable, refuse_missing, scoring, spoken
from camlucida.core.settle import Settled, Subjects
from camlucida.core.targets import as_target, classes
from camlucida.errors import AbsentError, TargetError
from camlucida.tasks.cover import Cover
from camlucida.types import Output, Scores, Target

Dense = Float[Tensor, "b k *space"]
_BACKGROUND = ("background", "bg", "unlabeled", "unlabelled", "void")


def region(
    index: Any = None,
    *,
    mask: Any = None,
    box: Any = None,
    point: Any = None,
    score: str = "logit",
    reduce: str = "mean",
) -> "Region":
    """A class over a part of the picture: ``Σ_p w_p y_k(p) / Σ_p w_p``, by sum ``Σ_p w_p y_k(p)``. [vinogradova2020]

    The part is a ``mask`` (``height width``, or one for each picture of the batch), a ``box`` (left, top, right,
    bottom), a ``point`` (x, y), all in pixels of the picture handed over; or, without any of them, where the model
    itself sees the class. ``index`` is a class, its label, or None: the class seen at most places of the part; without
    a part, other than one labelled background if there is any.
    ``score`` is what is read at each place, by any of `SCORES`. The pixels stay those of the undisturbed answer while
    a method asks about other versions of the picture.

    Raises: TargetError where a class does not exist, or is seen nowhere; InputError where the part lies outside.

    >>> y = torch.zeros(1, 2, 4, 4)
    >>> y[0, 1, :2, :2] = 3.0  # class 1 wins in a quarter of the picture
    >>> y[0, 1, 2:] = -1.0
    >>> region(1)(y).tolist(), str(region(1))
    ([3.0], 'class 1 where it is seen')
    """
    scoring(score)
    given = [name for name, v in (("mask", mask), ("box", box), ("point", point)) if v is not None]
    if len(given) > 1:
        raise TargetError(f"a region is one of mask=, box= and point=; got {' and '.join(given)}.")
    if reduce not in ("mean", "sum"):
        raise TargetError(f"reduce is 'mean' or 'sum'; got {reduce!r}.")
    if index is not None and not isinstance(index, str):
        index, *more = classes(index).indices
        if more:
            raise TargetError("a region is of one class: several are sweep(model, x, targets=[region(3), region(7)]).")
    part = Cover.of(mask, box, point) if given else None
    return Region(index, part, score, reduce)


@dataclass(frozen=True, eq=False)
class Region:
    """A class over a part of each picture: see `region`."""

    index: int | str | None
    part: Cover | None
    score: str
    reduce: str
    subjects: Subjects | None = None
    steady = True

    def __call__(self, output: Output) -> Scores:
        y = dense(output)
        k, weights = self._meant(y)
        return _over(y, k, weights, self.score, self.reduce)

    def over(self, subjects: Subjects) -> "Region":
        """As `Task`."""
        index = self.index
        if isinstance(index, str):
            index = as_target(index, subjects.labels).indices[0]  # type: ignore[attr-defined]
        if self.part is not None:
            self.part.check(subjects.pictures)
        return replace(self, index=index, subjects=subjects)

    def settle(self, output: Output) -> Settled:
        """As `Task`."""
        y = dense(output)
        k, weights = self._meant(y)
        rows: list[Target] = [_Row(int(k[i]), weights[i], self.score, self.reduce) for i in range(len(y))]
        sure = _over(_held(y), k, weights, "logit", "mean")
        return Settled(tuple(rows), k, sure, (self._where,) * len(y))

    def place(self, seen: Survey) -> Place:
        """As `Task`: the end of the encoder."""
        return bottleneck(seen)

    def reach(self) -> tuple[float, ...] | None:
        """As `Task`: a segmenter's answer covers what it was given."""
        return None

    def __str__(self) -> str:
        but = " but background" if self._background and self.part is None else ""
        what = f"the commonest class{but}" if self.index is None else f"class {self.index}"
        return f"{what} {self._where}{spoken(self.score)}{', summed' * (self.reduce == 'sum')}"

    @property
    def _where(self) -> str:
        return "where it is seen" if self.part is None else str(self.part)

    def _meant(self, y: Dense) -> tuple[Int[Tensor, " b"], Float[Tensor, "b *space"]]:
        """The class of each picture, and how much each place of the output counts."""
        self._check_axes(y)
        seen = y.argmax(1) if y.shape[1] > 1 else (_held(y)[:, 0] <= 0.5).long()  # of one, 0 is there and 1 is not
        part = self._covered(y)
        if self.index is None:
            beyond = self._background if self.part is None else ()
            k = torch.stack([_commonest(s, w, y.shape[1], beyond) for s, w in zip(seen, part, strict=True)])
        else:
            refuse_missing([int(self.index)], y.shape[1])
            k = torch.full((len(y),), int(self.index), device=y.device)
        if self.part is not None:
            return k, part
        own = (seen == k.reshape(-1, *(1,) * (seen.dim() - 1))).to(y)
        self._refuse_unseen(k, own, seen, y.shape[1])
        return k, own

    @property
    def _background(self) -> list[int]:
        labels = self.subjects.labels if self.subjects else ()
        return [k for k, label in enumerate(labels) if label.strip("_ ").casefold() in _BACKGROUND]

    def _check_axes(self, y: Dense) -> None:
        space = self.subjects.pictures.space if self.subjects else y.shape[2:]
        if y.dim() - 2 != len(space):
            raise TargetError(
                f"the answer {tuple(y.shape)} is to have an axis of classes before its {len(space)} axes of space: "
                "put it there with output=, as output=lambda y: y[:, None] for a model of one class that leaves it out."
            )

    def _covered(self, y: Dense) -> Float[Tensor, "b *space"]:
        if self.part is None:
            return torch.ones_like(y[:, 0])
        if self.subjects is None:
            raise TargetError("a region of a picture is explained by explain() or sweep(), which know the picture.")
        return self.part.shares(self.subjects.pictures, y.shape[2:]).to(y)

    def _refuse_unseen(self, k: Tensor, own: Tensor, seen: Tensor, classes: int) -> None:
        for i in range(len(own)):
            if not own[i].any():
                there = ", ".join(str(int(c)) for c in seen[i].unique() if int(c) < classes) or "none"
                raise AbsentError(
                    f"class {int(k[i])} is seen nowhere in picture {i} (its classes: {there}): say where to look for "
                    "it, with mask=, box= or point=, or explain a class that is there."
                )


@dataclass(frozen=True, eq=False)
class _Row:
    """The target of one picture, its class and its places held."""

    index: int
    weights: Float[Tensor, "*space"]
    score: str
    reduce: str

    def __call__(self, output: Output) -> Scores:
        y = dense(output)
        k = torch.full((len(y),), self.index, device=y.device)
        return _over(y, k, self.weights.expand(len(y), *self.weights.shape), self.score, self.reduce)


def _held(y: Dense) -> Dense:
    """How probable the model holds each class to be at each place."""
    y = y if ends_in_sigmoid(y) else probable(y) if y.shape[1] > 1 else y.float().sigmoid()
    return y.detach()


def _commonest(
    seen: Int[Tensor, "*space"], weights: Float[Tensor, "*space"], classes: int, beyond: Sequence[int]
) -> Int[Tensor, ""]:
    """The class of most weight, those ``beyond`` only where there is no other."""
    counts = torch.zeros(max(classes, 2), dtype=torch.float64, device=seen.device)
    counts.index_add_(0, seen.flatten(), weights.flatten().double())
    counts, rest = counts[:classes], counts[:classes].clone()
    rest[[k for k in beyond if k < classes]] = 0
    return (rest if rest.any() else counts).argmax()


def _over(
    y: Dense, k: Int[Tensor, " b"], weights: Float[Tensor, "b *space"], score: str, reduce: str
) -> Float[Tensor, " b"]:
    """The score of each picture's class at every place, weighed and summed."""
    places = y.flatten(2).transpose(1, 2)
    b, n, classes = places.shape
    each = scoring(score)(places.reshape(b * n, classes), k.repeat_interleave(n)).reshape(b, n)
    flat = weights.flatten(1)
    total = (each * flat).sum(1)
    return total / flat.sum(1) if reduce == "mean" else total


def dense(output: Output) -> Dense:
    """The scores of each class and place in whatever a segmenter returns, ``b k *space``.

    Raises: TargetError where there are none, or several that could be meant.

    >>> dense({"out": torch.zeros(1, 21, 8, 8), "aux": torch.zeros(1, 21, 8, 8)}).shape
    torch.Size([1, 21, 8, 8])
    """
    if isinstance(output, Tensor):
        found = [output]
    elif (masks := masked(output)) is not None:
        found = [masks]
    else:
        held = fields(output)
        found = [held[name] for name in ("out", "logits") if isinstance(held.get(name), Tensor)][:1]
        found = found or [v for v in held.values() if isinstance(v, Tensor) and v.dim() >= 4 and v.is_floating_point()]
    if len(found) == 1 and found[0].dim() >= 3 and found[0].is_floating_point():
        y = found[0]
        return y.float() if y.dtype in (torch.float16, torch.bfloat16) else y
    raise TargetError(
        f"a region needs one score for each class and place, (b, k, height, width); the model returns {told(output)}: "
        "say which part is meant with output=, a key, a place or a function."
    )


_MASKS = (("class_queries_logits", "masks_queries_logits"), ("pred_logits", "pred_masks"))


def masked(output: Output) -> Dense | None:
    """What MaskFormer and its heirs answer, classes ``b q k+1`` and masks ``b q *space``: ``log Σ_q p_q(k) σ(m_q)``."""
    held = fields(output)
    y, masks = next(((held.get(a), held.get(b)) for a, b in _MASKS if a in held), (None, None))
    if not isinstance(y, Tensor) or not isinstance(masks, Tensor) or y.dim() != 3 or masks.shape[:2] != y.shape[:2]:
        return None
    seen = torch.einsum("bqk,bq...->bk...", y.float().softmax(2)[..., :-1], masks.float().sigmoid())
    return seen.clamp(min=torch.finfo(seen.dtype).tiny).log()


def bottleneck(seen: Survey) -> Place:
    """The widest of the outermost modules with the coarsest grid, the last one of them.

    The last places of a segmenter, as wide as it has classes, are the answer itself, whose map is the region again.
    Here, at the end of its encoder, a place has seen the picture around it, and there is most room for what it saw.

    Raises: LayerError where there is no place at all.
    """
    times = Counter(p.name for p in seen.all)
    live = [p for p in seen.all if p.share and has_space(p.grid) and times[p.name] == 1]
    pooled = _pooled(seen)
    early = [p for p in live if _width(p) != _answer(live) and p.grid not in pooled]
    blocks = _blocks(seen)
    early = [p for p in early if blocks.isdisjoint(_above(p.name))] or early
    if not early:
        return seen.choice
    least = min(math.prod(p.grid) for p in early)
    coarse = {p.name: p for p in early if math.prod(p.grid) == least}
    outer = [p for p in coarse.values() if not any(p.name.startswith(f"{q}.") for q in coarse)]
    return [p for p in outer if _width(p) == max(map(_width, outer))][-1]


def _answer(live: Sequence[Place]) -> int | None:
    """How wide the last place is, unless it is a container that gives what was made long before it."""
    last = live[-1] if live else None
    within = [p for p in live[:-1] if last and p.name.startswith(f"{last.name}.")]
    return _width(last) if last and (not within or within[-1].shape == last.shape) else None


def _pooled(seen: Survey) -> set[tuple[int, ...]]:
    """Grids that a pool to a given size made first, as in a pyramid of them: coarse, but no end of an encoder."""
    first = {place.grid: place for place in reversed(seen.all)}
    return {grid for grid, place in first.items() if place.kind.startswith("Adaptive")}


def _blocks(seen: Survey) -> set[str]:
    """The names of places that are one of a row of blocks: numbered, with another of their kind beside them."""
    kinds = {p.name: (p.name.rpartition(".")[0], p.kind) for p in seen.all}
    many = Counter(kinds.values())
    return {name for name, kind in kinds.items() if many[kind] > 1 and name.rpartition(".")[2].isdigit()}


def _above(name: str) -> list[str]:
    """The names of what a layer lies in."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _width(place: Place) -> int:
    return place.layout(torch.empty(place.shape, device="meta")).shape[1]
