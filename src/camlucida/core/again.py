"""Targets put again to other versions of one picture: those of a user's own may not bear it, and must say so."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from camlucida.core import targets as targets_
from camlucida.core.gradients import full
from camlucida.core.targets import ClassTarget
from camlucida.errors import LayerError, TargetError
from camlucida.types import Target

R = TypeVar("R")


def own(targets: Sequence[Target]) -> bool:
    """Whether one of them is a user's own function, which may look at more than a row's own scores."""
    return not all(isinstance(t, ClassTarget) for t in targets)


def put_again(put: Callable[[Sequence[Target], Any, int], R], targets: Sequence[Target], output: Any, count: int) -> R:
    """``put(targets, output, count)``. Raises: TargetError where a target of the user's own fails on these rows."""
    try:
        return put(targets, output, count)
    except torch.OutOfMemoryError:
        raise
    except Exception as fault:
        if not own(targets):
            raise
        raise TargetError(
            f"this method asks about {count} versions of one picture, and the target given does not score each by "
            f"itself ({str(fault).rstrip('.')}). For one class a picture say target=cl.classes([…]), or explain one "
            "picture at a time."
        ) from fault


def answers(targets: Sequence[Target], output: Any, count: int) -> Float[Tensor, "t n"]:
    """The scores of other versions of one picture, of classes that are settled or by targets of the user's own."""
    if own(targets):
        return full(put_again(targets_.scores, targets, output, count))
    y = full(targets_.logits(output, count))
    known = [t for t in targets if isinstance(t, ClassTarget)]
    index = torch.tensor([t.indices[0] for t in known], device=y.device)
    if all(t.score == "logit" for t in known):
        return y[:, index].T
    return targets_.class_scores(known, y.expand(len(known), *y.shape), index[:, None].expand(-1, len(y)))


def holds(found: Float[Tensor, "t n"], base: Float[Tensor, " t"], scale: Tensor, share: float) -> bool:
    """Whether the first and last row have the undisturbed scores, within a ``share`` of the largest in ``scale``."""
    slack = share * float(scale.nan_to_num(0.0, 0.0, 0.0).abs().max()) + 1e-6
    ends = found[:, [0, -1]]
    return torch.allclose(ends, base[:, None].to(ends), rtol=0, atol=slack, equal_nan=True)


def steady(found: Float[Tensor, "t n"], base: Float[Tensor, " t"]) -> Float[Tensor, "t n"]:
    """Scores of which those that differ by no more than rounding are the undisturbed one."""
    noise = 8 * torch.finfo(found.dtype).eps * base.abs().max().clamp(min=1e-30)
    same = base[:, None].to(found)
    return torch.where((found - same).abs() <= noise, same, found)


def astray(name: str) -> LayerError:
    """What to say where the undisturbed activation put back gives other scores."""
    return LayerError(
        f"the scores do not follow from layer {name!r} alone: with its own activation put back they come out "
        "different, so that perturbing it would show nothing true. Ask for another layer, or another method."
    )


def mixed() -> TargetError:
    """What to say where a picture is scored otherwise by itself or beside other rows."""
    return TargetError(
        "the target given scores a picture otherwise when other rows are beside it, so that asking about versions "
        "of one picture would show nothing true. For one class a picture say target=cl.classes([…]), or explain "
        "one picture at a time; texts that are the same for every picture, beside as many pictures, are "
        "cl.zero_shot(model, inputs)."
    )
