"""Slow twins of the methods at the pixels: loops over single numbers, finite differences, no autograd."""

from collections.abc import Callable, Sequence

import torch
from replicas import Place, numbers, places
from torch import Tensor, nn


def slow_pixels(score: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-5) -> Tensor:
    """``∂ score / ∂ x`` of one picture ``1 c *space`` by central differences, one number moved at a time."""
    made = torch.zeros_like(x)
    with torch.no_grad():
        for at in places(x.shape):
            up, down = x.clone(), x.clone()
            up[at] += step
            down[at] -= step
            made[at] = (score(up)[0] - score(down)[0]) / (2 * step)
    return made


def over_channels(grad: Tensor, signed: bool = False) -> Tensor:
    """The largest magnitude, or the sum, of the channels at each place: ``1 c *space`` → ``1 *space``."""
    G, (_, c, *space) = numbers(grad), grad.shape
    made = torch.zeros(1, *space, dtype=torch.float64)
    for p in places(space):
        values = [G[(0, k, *p)] for k in range(c)]
        made[(0, *p)] = sum(values) if signed else max(abs(v) for v in values)
    return made


def _pulled(layer: nn.Module, x: Tensor, back: Tensor) -> Tensor:
    """``Jᵀ back`` of an affine layer, whose Jacobian is read off by asking it about every basis vector."""
    with torch.no_grad():
        zero, made = layer(torch.zeros_like(x)), torch.zeros_like(x)
        for at in places(x.shape):
            basis = torch.zeros_like(x)
            basis[at] = 1
            made[at] = ((layer(basis) - zero) * back).sum()
    return made


def _gated(x: Tensor, back: Tensor, rule: str, cap: float) -> Tensor:
    """Springenberg 2015, fig. 1: ``guided`` looks at what came in and at what comes back, ``deconv`` at the latter."""
    X, B = numbers(x), numbers(back)
    made = torch.zeros_like(x)
    for at in places(x.shape):
        passes = {
            "": 0 < X[at] < cap,
            "guided": 0 < X[at] < cap and B[at] > 0,
            "deconv": B[at] > 0,
        }[rule]
        made[at] = B[at] if passes else 0.0
    return made


def ruled(layers: Sequence[nn.Module], x: Tensor, k: int, rule: str) -> Tensor:
    """What comes back to the picture ``1 c *space`` from class ``k`` through affine layers and ReLUs."""
    came = [x]
    with torch.no_grad():
        for layer in layers:
            came.append(layer(came[-1].clone()))
    back = torch.zeros_like(came[-1])
    back[0, k] = 1
    for layer, x_in in zip(reversed(layers), reversed(came[:-1]), strict=True):
        rectifies = isinstance(layer, nn.ReLU | nn.ReLU6)
        cap = 6.0 if isinstance(layer, nn.ReLU6) else float("inf")
        back = _gated(x_in, back, rule, cap) if rectifies else _pulled(layer, x_in, back)
    return back


def spread(map: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation of one map ``*space`` to ``size``, cell centres aligned, by the corners of each cell."""
    M, space = numbers(map), map.shape
    made = torch.zeros(tuple(size), dtype=torch.float64)
    for p in places(size):
        corners: dict[Place, float] = {(): 1.0}
        for i, full, few in zip(p, size, space, strict=True):
            at = min(max((i + 0.5) / full * few - 0.5, 0.0), few - 1.0)
            low = int(at)
            ends = {low: 1 - (at - low), min(low + 1, few - 1): at - low} if at > low else {low: 1.0}
            corners = {(*q, e): w * v for q, w in corners.items() for e, v in ends.items()}
        made[p] = sum(w * M[q] for q, w in corners.items())
    return made


def integrated(score: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, steps: int) -> Tensor:
    """Sundararajan 2017, eq. 3, at the middles of ``steps`` pieces of the way: ``1 c *space`` → ``1 *space``."""
    total = torch.zeros_like(x)
    for s in range(steps):
        total += slow_pixels(score, start + (s + 0.5) / steps * (x - start)) / steps
    return over_channels((x - start) * total, signed=True)


def rescaled(term: Tensor) -> Tensor:
    """Srinivas 2019, ψ before upsampling: magnitudes of all channels of one layer between one minimum and maximum."""
    T = {at: abs(v) for at, v in numbers(term).items()}
    low, high = min(T.values()), max(T.values())
    made = torch.zeros(term.shape, dtype=torch.float64)
    for at, v in T.items():
        made[at] = (v - low) / (high - low) if high > low else 0.0
    return made


def fullgrad(terms: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Srinivas 2019, eq. 8: ``Σ_l Σ_c up(ψ(term))`` of terms ``c *places`` → ``*size``."""
    made = torch.zeros(tuple(size), dtype=torch.float64)
    for term in terms:
        for channel in rescaled(term):
            made += spread(channel, size)
    return made
