"""What a model's own answer is, where it is no class: `top1` then means the surest box, or the class seen most.

What a model answers with is looked at once, in a pass of its own, and only where class scores were not found.
"""

import weakref
from collections.abc import Callable, Hashable, Sequence

from torch import Tensor, nn

from camlucida.core.capture import How, Inputs, run
from camlucida.core.outputs import boxed, fields
from camlucida.core.scope import named, unwrap
from camlucida.core.targets import ClassTarget
from camlucida.errors import TargetError
from camlucida.tasks.boxes import Beside, read
from camlucida.tasks.detection import detection
from camlucida.tasks.segmentation import dense, masked, region
from camlucida.types import Output, Target

Kind = Callable[[int], Target]
"""From a place in the model's own ranking, 0 the best, to the target that is there."""

_SHAPES = 16  # input shapes and parts of the answer that are remembered for each model
_KNOWN: "weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Kind | None]]" = weakref.WeakKeyDictionary()
_HELD: dict[tuple[Kind, int], Target] = {}  # one object for each place: what is remembered of a target is, by object
_COARSE = 8  # sides of the input in one of an answer that says itself what it is


def known(net: nn.Module, inputs: Inputs) -> Kind | None:
    """What the model was seen to answer with for such inputs; None: classes, or it was not looked at."""
    return _KNOWN.get(unwrap(net), {}).get(_key(net, inputs))


def meant(kind: Kind | None, asked: Sequence[Target]) -> list[Target]:
    """The targets; where the model's own answer is no class, the place of its ranking in the stead of `top1`.

    Raises: TargetError where there is nothing at the place that was asked for.
    """
    return [_place(kind, t.rank) if kind and isinstance(t, ClassTarget) and _own(t) else t for t in asked]


def looked_at(net: nn.Module, inputs: Inputs, classes: int) -> Kind | None:
    """What the model answers with, seen in a pass and remembered; ``classes`` are as many as have names, or 0."""
    with run(net, inputs, [], how=How(graph=False)) as tape:
        classes = classes or getattr(getattr(unwrap(net), "config", None), "num_labels", 0)
        kind = _kind(tape.output, tuple(inputs.x.shape[1:]), classes)
    if (key := _key(net, inputs)) is not None:
        held = _KNOWN.setdefault(unwrap(net), {})
        while len(held) >= _SHAPES:
            held.pop(next(iter(held)), None)
        held[key] = kind
    return kind


def asks_own(asked: Sequence[Target]) -> bool:
    """Whether the model's own best answer is among what is asked."""
    return any(isinstance(t, ClassTarget) and _own(t) for t in asked)


def _key(net: nn.Module, inputs: Inputs) -> Hashable:
    if callable(inputs.output):  # it may hold on to the model, which then would live as long as this memory
        return None
    modules = tuple((n, id(m)) for n, m in named(unwrap(net)).items())
    return tuple(inputs.x.shape[1:]), inputs.x.dtype, inputs.spoken, inputs.output, modules


def _own(target: ClassTarget) -> bool:
    return not target.indices and target.score == "logit" and target.kind == "class"


def _place(kind: Kind, rank: int) -> Target:
    return _HELD.setdefault((kind, rank), kind(rank))


def _kind(output: Output, shape: tuple[int, ...], classes: int) -> Kind | None:
    """What an answer to pictures ``c *space`` holds; None where that is not plain."""
    if len(shape) == 3 and (boxed(output) or _pixels(output)):
        return detection
    spoken = masked(output) is not None or any(isinstance(fields(output).get(n), Tensor) for n in ("out", "logits"))
    if not spoken and not isinstance(output, Tensor):
        return None
    try:
        y = dense(output)
    except TargetError:
        return None
    return _seen if y.dim() == len(shape) + 1 and _painted(y, shape, classes, spoken) else None


def _painted(y: Tensor, shape: tuple[int, ...], classes: int, spoken: bool) -> bool:
    """Whether scores ``b k *space`` are of classes at the places of a picture.

    Of so many classes as have names; or, as a segmenter's are and features, depths and pictures are not: more than one
    at the picture's size, and not one for each of its channels. Where they are ``spoken`` of as logits, at its
    proportions, and as many as they like but one.
    """
    shares = [n / whole for n, whole in zip(y.shape[2:], shape[1:], strict=True)]
    off = max(abs(n - round(whole * shares[0])) for n, whole in zip(y.shape[2:], shape[1:], strict=True))
    size = min(shares) >= 1 / _COARSE and off <= 1 if spoken else tuple(y.shape[2:]) == shape[1:]
    return size and (y.shape[1] == classes or y.shape[1] not in ((1,) if spoken else (1, shape[0])))


def _pixels(output: Output) -> bool:
    """Whether an answer reads as boxes that nobody named: then their corners go beyond what probabilities could."""
    try:
        found = read(output, Beside())
    except TargetError:
        return False
    return any(float(f.boxes.detach().max()) > 2 for f in found if len(f.boxes))


def _seen(rank: int) -> Target:
    if rank:
        raise TargetError(
            f"this model sees classes at places: ask for one, as target=cl.region(8), not for top {rank + 1}."
        )
    return region()
