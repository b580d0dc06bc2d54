"""Detections as targets: one box and its class, chosen once from the undisturbed picture and looked for ever after."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from camlucida.core.layers import Place, Survey
from camlucida.core.pictures import Pictures
from camlucida.core.settle import Settled, Subjects
from camlucida.core.targets import as_target, classes
from camlucida.errors import AbsentError, InputError, TargetError
from camlucida.tasks.boxes import Beside, Found, overlap, read, suppressed
from camlucida.tasks.cover import ends
from camlucida.types import Output, Scores, Target

_SAME = 0.5  # boxes of one class that overlap so much are of one thing


def detection(
    index: Any = 0,
    *,
    label: Any = None,
    box: Any = None,
    least: float = 0.05,
    same: float = _SAME,
    nothing: bool | None = None,
) -> "Detection":
    """One detection: ``max_m p_m(k) · IoU(b_m, b)``, where box ``b`` and class ``k`` are those that the undisturbed
    picture has. [petsiuk2021]

    ``index`` counts the detections of a picture, 0 the surest; of one class where ``label`` (an index or a name) is
    given; where a ``box`` (left, top, right, bottom) is given, in pixels of the picture, it is the detection that
    overlaps it most. What the model is less sure of than ``least`` is no detection. A prediction of the disturbed
    picture counts where it overlaps ``b`` by ``same`` or more; the overlap itself takes no part in the gradient, which
    is that of ``p(k)``. ``nothing`` says whether the last of a DETR's logits means no object, where the model does not.

    Raises: TargetError where the picture has no such detection, or the model's answer is none.

    >>> found = {"boxes": torch.tensor([[2.0, 2, 9, 9]]), "labels": torch.tensor([3]), "scores": torch.tensor([0.5])}
    >>> detection()([found]).tolist(), str(detection(label=3))
    ([0.5], 'the surest detection of class 3')
    """
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise TargetError(f"detections are counted from 0, the surest; got {index!r}.")
    if index and box is not None:
        raise TargetError("a detection is asked for by its number or by its box, not by both.")
    if not 0 <= least <= 1 or not 0 <= same <= 1:
        raise TargetError(f"least and same are shares from 0 to 1; got {least!r} and {same!r}.")
    if label is not None and not isinstance(label, str):
        label, *more = classes(label).indices
        if more:
            raise TargetError("a detection is of one class: several are sweep(model, x, targets=[detection(…), …]).")
    return Detection(index, label, None if box is None else _corners(box), least, same, nothing)


def _corners(box: Any) -> tuple[float, ...]:
    try:
        found = tuple(float(v) for v in box)
    except (TypeError, ValueError):
        found = ()
    if len(found) != 4 or not all(map(math.isfinite, found)) or found[2] <= found[0] or found[3] <= found[1]:
        raise InputError(f"a box is (left, top, right, bottom) in pixels of the picture; got {box!r}.")
    return found


@dataclass(frozen=True, eq=False)
class Detection:
    """One detection of each picture: see `detection`."""

    index: int
    label: int | str | None
    box: tuple[float, ...] | None
    least: float
    same: float
    nothing: bool | None
    subjects: Subjects | None = None
    steady = False  # boxes of other sizes are found on other grids

    def __call__(self, output: Output) -> Scores:
        found = read(output, self._beside)
        return torch.stack([self._chosen(f, i).score(f) for i, f in enumerate(found)])

    def over(self, subjects: Subjects) -> "Detection":
        """As `Task`."""
        label = self.label
        if isinstance(label, str):
            label = as_target(label, subjects.labels).indices[0]  # type: ignore[attr-defined]
        if len(subjects.pictures.space) != 2:
            axes = len(subjects.pictures.space)
            raise InputError(f"detections are of pictures; this input has {axes} axes of space.")
        for i in range(len(subjects.pictures.names)):
            self._refuse_outside(subjects.pictures, i)
        return replace(self, label=label, subjects=subjects)

    def settle(self, output: Output) -> Settled:
        """As `Task`."""
        rows = [self._chosen(f, i) for i, f in enumerate(read(output, self._beside))]
        held: list[Target] = list(rows)
        return Settled(
            tuple(held),
            torch.tensor([r.label for r in rows]),
            torch.tensor([r.sure for r in rows]),
            tuple(self._spoken(r, i) for i, r in enumerate(rows)),
        )

    def place(self, seen: Survey) -> Place:
        """As `Task`: the last place that the score depends on beyond one cell; one cell is the prediction itself."""
        queries = getattr(getattr(self.subjects and self.subjects.net, "config", None), "num_queries", None)
        wide = [p for p in seen.places if (p.share or 0) * math.prod(p.grid) > 1.001 and queries not in p.shape[1:2]]
        return wide[-1] if wide else seen.choice

    def reach(self) -> tuple[float, ...] | None:
        """As `Task`: torchvision's detectors resize a picture and pad it on the right and below."""
        own = getattr(self.subjects and self.subjects.net, "transform", None)
        if self.subjects is None or not hasattr(own, "size_divisible") or not callable(own):
            return None
        like = next(own.parameters(), torch.empty(0)).new_zeros(3, *self.subjects.pictures.space)
        with torch.no_grad():
            made = own([like])[0]
        sides = tuple(p / s for p, s in zip(made.tensors.shape[2:], made.image_sizes[0], strict=True))
        return None if all(s == 1 for s in sides) else sides

    def __str__(self) -> str:
        which = "the surest detection" if self.index == 0 else f"detection {self.index}"
        what = which + ("" if self.label is None else f" of class {self.label}")
        return what if self.box is None else f"{what} at {', '.join(f'{v:g}' for v in self.box)}"

    @property
    def _beside(self) -> Beside:
        if self.subjects is None:
            return Beside(nothing=self.nothing)
        known = getattr(getattr(self.subjects.net, "config", None), "num_labels", None)
        h, w = self.subjects.pictures.space
        return Beside((h, w), known or len(self.subjects.labels) or None, self.nothing)

    def _chosen(self, found: Found, i: int) -> "_Row":
        """The detection meant of picture ``i``, held as it is now."""
        found = Found(found.boxes.detach(), found.scores.detach(), found.labels)
        sure, label = found.best()
        if self.label is not None:
            sure, label = found.of(self._class(found)), torch.full_like(label, self._class(found))
        own = Found(found.boxes, sure, label)
        kept = [j for j in suppressed(own, _SAME) if float(sure[j]) >= self.least and float(sure[j]) > 0]
        at = self._nearest(own, kept, i) if self.box is not None else self._numbered(own, kept, i)
        return _Row(int(label[at]), found.boxes[at], float(sure[at]), self.same, self._beside)

    def _class(self, found: Found) -> int:
        k = int(self.label or 0)
        if found.labels is None and k >= found.scores.shape[1]:
            raise TargetError(f"class {k} does not exist: this model has {found.scores.shape[1]} classes.")
        return k

    def _numbered(self, found: Found, kept: list[int], i: int) -> int:
        if self.index < len(kept):
            return kept[self.index]
        of = "" if self.label is None else f" of class {self.label}"
        raise AbsentError(
            f"picture {i} has {len(kept) or 'no'} detection{'s' * (len(kept) != 1)}{of} of {self.least:g} or more"
            f"{self._shown(found, kept, i)}: ask for one of them, or for less sure ones with least=."
        )

    def _nearest(self, found: Found, kept: list[int], i: int) -> int:
        asked = found.boxes.new_tensor(self._on_input(i))
        order = sorted(kept, key=lambda j: -float(overlap(found.boxes[j : j + 1], asked)))
        if order and float(overlap(found.boxes[order[0] : order[0] + 1], asked)) >= self.same:
            return order[0]
        raise AbsentError(
            f"no detection of picture {i} overlaps the box by {self.same:g} or more"
            f"{self._shown(found, kept, i)}: give the box of one of them."
        )

    def _shown(self, found: Found, kept: list[int], i: int) -> str:
        """The first few detections there are, in words."""
        assert found.labels is not None
        told = [
            f"class {int(found.labels[j])} {float(found.scores[j]):.2f} at {self._at(found.boxes[j], i)}"
            for j in kept[:3]
        ]
        return f" ({'; '.join(told)}{'; …' if len(kept) > 3 else ''})" if told else ""

    # ------------------------------------------------------------------------- between the picture and the input

    def _on_input(self, i: int) -> list[float]:
        """The box asked for, in pixels of the model's input."""
        assert self.box is not None
        if self.subjects is None:
            return list(self.box)
        (top, bottom), (left, right) = ends(self.subjects.pictures, i)
        h, w = self.subjects.pictures.space
        x0, y0, x1, y1 = self.box
        across, down = w / (right - left), h / (bottom - top)
        return [(x0 - left) * across, (y0 - top) * down, (x1 - left) * across, (y1 - top) * down]

    def _at(self, box: Float[Tensor, " 4"], i: int) -> str:
        """A box of the input, in words, by the picture's own pixels."""
        x0, y0, x1, y1 = box.tolist()
        if self.subjects is not None:
            (top, bottom), (left, right) = ends(self.subjects.pictures, i)
            h, w = self.subjects.pictures.space
            across, down = (right - left) / w, (bottom - top) / h
            x0, y0, x1, y1 = left + x0 * across, top + y0 * down, left + x1 * across, top + y1 * down
        return ", ".join(f"{v:.0f}" for v in (x0, y0, x1, y1))

    def _spoken(self, row: "_Row", i: int) -> str:
        return f"in the box {self._at(row.box, i)}"

    def _refuse_outside(self, pictures: Pictures, i: int) -> None:
        if self.box is None:
            return
        (top, bottom), (left, right) = ends(pictures, i)
        x0, y0, x1, y1 = self.box
        if x1 <= left or y1 <= top or x0 >= right or y0 >= bottom:
            raise InputError(
                f"the box {', '.join(f'{v:g}' for v in self.box)} lies outside what the model sees of picture {i}: "
                f"{left:g}, {top:g} to {right:g}, {bottom:g}, in pixels."
            )


@dataclass(frozen=True, eq=False)
class _Row:
    """One detection of one picture, to be looked for in other versions of it."""

    label: int
    box: Float[Tensor, " 4"]
    sure: float
    same: float
    beside: Beside

    def __call__(self, output: Output) -> Scores:
        return torch.stack([self.score(found) for found in read(output, self.beside)])

    def score(self, found: Found) -> Float[Tensor, ""]:
        """How sure the model is of the detection, times how well its box agrees; zero where it is gone."""
        sure = found.of(self.label)
        if len(sure) == 0:
            return sure.sum()
        shares = overlap(found.boxes.detach(), self.box)
        return (sure * torch.where(shares >= self.same, shares, 0.0)).max()
