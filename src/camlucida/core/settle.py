"""Targets that look past class logits, at regions or boxes: settled on the pictures, then on the undisturbed answer.

What such a target means (which pixels, which detection) must not change while a method asks about other versions of a
picture, so it is read once from the answer to the picture as it is, and each picture keeps its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from camlucida.core.layers import Place, Survey
from camlucida.core.pictures import Pictures
from camlucida.core.targets import ClassTarget
from camlucida.types import Output, Scores, Target


@dataclass(frozen=True)
class Settled:
    """What a task means by one answer to ``b`` pictures.

    ``rows`` are the targets of the single pictures, which score any number of versions of theirs; ``classes`` the
    classes meant, ``sure`` how probable the model holds them to be, ``where`` what is looked at, in words.
    """

    rows: tuple[Target, ...]
    classes: Int[Tensor, " b"] | None = None
    sure: Float[Tensor, " b"] | None = None
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subjects:
    """What a task is told before the model runs: the pictures, the classes' names, the model out of its wrappers."""

    pictures: Pictures
    labels: tuple[str, ...] = ()
    net: nn.Module | None = None


@runtime_checkable
class Task(Protocol):
    """A target that is settled before it is asked. It is called with an answer as any other target is.

    ``steady`` says whether the layer that is of use is the same for every picture.
    """

    steady: bool

    def __call__(self, output: Output) -> Scores:
        """The scores of a batch, settled on this very answer."""

    def over(self, subjects: Subjects) -> "Task":
        """The same target, knowing the pictures. Raises: TargetError, InputError where it does not fit them."""

    def settle(self, output: Output) -> Settled:
        """What it means by this answer. Raises: TargetError where that is nothing."""

    def place(self, seen: Survey) -> Place:
        """The layer whose map is of use. Raises: LayerError where there is none."""

    def reach(self) -> tuple[float, ...] | None:
        """How far the model's own grids go, in sides of the input, where it pads the picture itself; else None."""


def told(asked: Sequence[Target], subjects: Subjects) -> list[Target]:
    """The same targets, those that are tasks knowing the pictures."""
    return [t.over(subjects) if _is_task(t) else t for t in asked]


def settled(asked: Sequence[Target], output: Output) -> tuple[Settled | None, ...]:
    """What each task means by an answer; None for every other target."""
    return tuple(t.settle(output) if _is_task(t) else None for t in asked)


def _is_task(target: Target) -> TypeGuard[Task]:
    # Classes first: a thousand of them are seen at once to be none, and to look through a protocol takes time.
    return not isinstance(target, ClassTarget) and isinstance(target, Task)


def reach(asked: Sequence[Target]) -> tuple[float, ...] | None:
    """How far the model's own grids go by the first task that knows; see `Task`."""
    return next((far for t in asked if _is_task(t) and (far := t.reach())), None)


def of_picture(
    i: int,
    asked: Sequence[Target],
    picked: Sequence[Int[Tensor, " b"] | None],
    held: Sequence[Settled | None],
    logits: Float[Tensor, "b k"] | None,
) -> list[Target]:
    """The targets of picture ``i`` alone, with the classes, rivals, regions and boxes that it had undisturbed."""
    y = None if logits is None else logits[i : i + 1]
    found: list[Target] = []
    for target, index, own in zip(asked, picked, held or [None] * len(asked), strict=True):
        if isinstance(target, ClassTarget) and index is not None and y is not None:
            target = target.fixed(int(index[i]), y)
        found.append(target if own is None else own.rows[i])
    return found
