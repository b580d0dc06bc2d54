"""What detectors return, brought to one form: boxes in pixels of the input, and how sure the model is of each class.

To add a form, add a reader to `READERS`: from the model's answer and what is known beside it to one `Found` a picture,
or None where the answer is of another form.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from camlucida.core.outputs import fields, told
from camlucida.errors import TargetError
from camlucida.types import Output

_MANY = 300  # the best predictions that suppression looks at; no picture shows more things


@dataclass(frozen=True)
class Beside:
    """What an answer does not say itself: the input's height and width, how many classes there are, and whether the
    last of the logits means no object."""

    size: tuple[int, int] = (1, 1)
    classes: int | None = None
    nothing: bool | None = None


@dataclass(frozen=True)
class Found:
    """The predictions of one picture: ``boxes`` (left, top, right, bottom), and probabilities: of every class, ``n k``,
    or with ``labels`` of one class each, ``n``."""

    boxes: Float[Tensor, "n 4"]
    scores: Tensor
    labels: Int[Tensor, " n"] | None = None

    def of(self, k: int) -> Float[Tensor, " n"]:
        """How probable each box holds class ``k``; zero where it was found to be another."""
        return self.scores[:, k] if self.labels is None else self.scores * (self.labels == k)

    def best(self) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """Each box's most probable class, and how probable it is."""
        if self.labels is not None:
            return self.scores, self.labels
        top = self.scores.max(1)
        return top.values, top.indices


def read(output: Output, beside: Beside) -> list[Found]:
    """The predictions in whatever a detector returns, picture by picture.

    Raises: TargetError where the answer is none of the forms in `READERS`.

    >>> found = read([{"boxes": torch.zeros(3, 4), "labels": torch.ones(3).long(), "scores": torch.rand(3)}], Beside())
    >>> len(found), found[0].of(2).tolist()
    (1, [0.0, 0.0, 0.0])
    """
    for reader in READERS:
        if (found := reader(output, beside)) is not None:
            return found
    raise TargetError(
        "a detection needs boxes with scores: a list of dicts with boxes, labels and scores (torchvision), logits with "
        f"pred_boxes (DETR), or one tensor (b, n, 5 + k) or (b, 4 + k, n) (YOLO); the model returns {told(output)}. "
        "Say which part is meant with output=."
    )


def _lists(output: Output, _: Beside) -> list[Found] | None:
    """torchvision's: a dict a picture, what is left after suppression."""
    rows = output if isinstance(output, list | tuple) else [output]
    if not all(isinstance(r, Mapping) and {"boxes", "labels", "scores"} <= r.keys() for r in rows):
        return None
    return [Found(r["boxes"].float(), r["scores"].float(), r["labels"]) for r in rows]


def _queries(output: Output, beside: Beside) -> list[Found] | None:
    """The DETR family's: logits ``b q k`` and boxes ``b q 4`` (centre x, y, width, height) as shares of the picture."""
    held = fields(output)
    y, boxes = held.get("logits"), held.get("pred_boxes")
    if not isinstance(y, Tensor) or not isinstance(boxes, Tensor) or y.dim() != 3:
        return None
    if boxes.shape != (*y.shape[:2], 4):  # of other things than upright boxes
        return None
    sure = y.float().softmax(2)[..., :-1] if _last_is_nothing(y.shape[2], beside) else y.float().sigmoid()
    scale = boxes.new_tensor([beside.size[1], beside.size[0]]).float().repeat(2)
    return [Found(corners(b.float() * scale), s) for b, s in zip(boxes, sure, strict=True)]


def _last_is_nothing(columns: int, beside: Beside) -> bool:
    if beside.nothing is not None:
        return beside.nothing
    if beside.classes in (columns, columns - 1):
        return beside.classes == columns - 1
    known = "" if beside.classes is None else f" (of {beside.classes} classes)"
    raise TargetError(
        f"whether the last of {columns} logits{known} means no object cannot be told from here: say "
        "cl.detection(nothing=True) for a model of DETR's kind, nothing=False for one with a sigmoid for each class."
    )


def _grids(output: Output, _: Beside) -> list[Found] | None:
    """YOLO's: one tensor before suppression, ``b n 5+k`` with the box's own score or ``b 4+k n`` without, or
    ``b n 6`` of boxes with score and class."""
    first: Any = output[0] if isinstance(output, list | tuple) and output else output
    if not isinstance(first, Tensor) or first.dim() != 3 or not first.is_floating_point():
        return None
    y = first.float()
    if y.shape[1] > y.shape[2] >= 6:
        if y.shape[2] == 6 and bool((y[..., 5] == y[..., 5].round()).all()):
            return [Found(r[:, :4], _probable(r[:, 4]), r[:, 5].long()) for r in y]
        return [Found(corners(r[:, :4]), _probable(r[:, 4:5]) * _probable(r[:, 5:])) for r in y]
    if y.shape[2] > y.shape[1] >= 5:
        return [Found(corners(r[:4].T), _probable(r[4:].T)) for r in y]
    return None


def _probable(scores: Tensor) -> Tensor:
    if bool(((scores >= 0) & (scores <= 1)).all()):
        return scores
    raise TargetError(
        f"a detector's scores are probabilities, from 0 to 1; these go from {float(scores.detach().min()):.3g} to "
        f"{float(scores.detach().max()):.3g}: take the part of the answer that is decoded, with output=."
    )


READERS: Sequence[Callable[[Output, Beside], list[Found] | None]] = (_lists, _queries, _grids)


def corners(boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """Boxes by their corners (left, top, right, bottom) from centres, widths and heights.

    >>> corners(torch.tensor([[5.0, 5.0, 4.0, 2.0]])).tolist()
    [[3.0, 4.0, 7.0, 6.0]]
    """
    half = boxes[:, 2:] / 2
    return torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], 1)


def overlap(boxes: Float[Tensor, "n 4"], box: Float[Tensor, " 4"]) -> Float[Tensor, " n"]:
    """How much of what two boxes cover together both cover, from 0 to 1 (intersection over union).

    >>> overlap(torch.tensor([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 6.0, 6.0]]), torch.tensor([1.0, 0.0, 3.0, 2.0])).tolist()
    [0.3333333432674408, 0.0]
    """
    sides = (torch.minimum(boxes[:, 2:], box[2:]) - torch.maximum(boxes[:, :2], box[:2])).clamp(min=0)
    both = sides.prod(1)
    each, own = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1), (box[2:] - box[:2]).clamp(min=0).prod()
    return both / (each + own - both).clamp(min=torch.finfo(boxes.dtype).tiny)


def suppressed(found: Found, share: float) -> list[int]:
    """The numbers of the predictions that are left, best first, where of one class and place only the best counts.

    >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0], [9.0, 9.0, 12.0, 12.0]])
    >>> suppressed(Found(boxes, torch.tensor([[0.6], [0.9], [0.5]])), 0.5)
    [1, 2]
    """
    sure, label = found.best()
    kept: list[int] = []
    for i in sure.argsort(descending=True, stable=True)[:_MANY].tolist():
        rivals = [j for j in kept if label[j] == label[i]]
        if not rivals or float(overlap(found.boxes[rivals], found.boxes[i]).max()) < share:
            kept.append(i)
    return kept
