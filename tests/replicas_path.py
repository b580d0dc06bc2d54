"""Slow twins of the path family: loops over single numbers in float64, derivatives by central differences."""

from collections.abc import Callable, Sequence

import torch
from replicas import Place, numbers, places
from torch import Tensor

Score = Callable[[Tensor], float]


def difference(score: Score, act: Tensor, step: float = 1e-4) -> dict[Place, float]:
    """``∂y/∂A`` at every entry."""
    found = {}
    for at in places(act.shape):
        up, down = act.clone(), act.clone()
        up[at] += step
        down[at] -= step
        found[at] = (score(up) - score(down)) / (2 * step)
    return found


def weighted(act: Tensor, weights: Sequence[float]) -> Tensor:
    A, made = numbers(act), torch.zeros(act.shape[1:], dtype=torch.float64)
    for p in places(act.shape[1:]):
        for k, w in enumerate(weights):
            made[p] += w * A[(k, *p)]
    return made


def shapleycam(score: Score, act: Tensor, step: float = 1e-3) -> Tensor:
    """Cai 2025: ``w_k = 1/Z Σ_p (G − ½ H A)_k(p)``; ``H A`` is how the gradient changes along the activation."""
    G = difference(score, act)
    more, less = difference(score, act * (1 + step)), difference(score, act * (1 - step))
    weights, count = [], len(list(places(act.shape[1:])))
    for k in range(len(act)):
        total = 0.0
        for p in places(act.shape[1:]):
            bent = (more[(k, *p)] - less[(k, *p)]) / (2 * step)
            total += G[(k, *p)] - 0.5 * bent
        weights.append(total / count)
    return weighted(act, weights)


def layerig(score: Score, act: Tensor, start: Tensor, steps: int) -> Tensor:
    """Sundararajan 2017, eq. 1 at a layer, by the midpoint rule."""
    A, B, made = numbers(act), numbers(start), torch.zeros(act.shape[1:], dtype=torch.float64)
    for j in range(steps):
        G = difference(score, start + (j + 0.5) / steps * (act - start))
        for k, *p in places(act.shape):
            made[tuple(p)] += (A[(k, *p)] - B[(k, *p)]) * G[(k, *p)] / steps
    return made


def smoothgradcampp(act: Tensor, grads: Sequence[Tensor]) -> Tensor:
    """Omeiza 2019: the three derivatives are means over the samples, then Grad-CAM++ on the clean activation.

    Negative sums of a channel and negative third derivatives count as zero: the registered deviation.
    """
    A, Gs, weights = numbers(act), [numbers(g) for g in grads], []
    for k in range(len(act)):
        total = max(sum(A[(k, *p)] for p in places(act.shape[1:])), 0.0)
        w = 0.0
        for p in places(act.shape[1:]):
            one, two, three = (sum(G[(k, *p)] ** n for G in Gs) / len(Gs) for n in (1, 2, 3))
            under = 2 * two + total * max(three, 0.0)
            w += (two / under if two > 0 else 0.0) * max(one, 0.0)
        weights.append(w)
    return weighted(act, weights)
