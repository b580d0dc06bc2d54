"""Slow twins: every registered method once more, written from its paper in loops over single numbers, in float64.

Nothing is shared with the library: no broadcasting, no einsum, no autograd. A twin is read next to its formula, and
the fast method must give its numbers.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

Place = tuple[int, ...]


def places(space: Sequence[int]) -> Iterator[Place]:
    return itertools.product(*(range(n) for n in space))


def numbers(tensor: Tensor) -> dict[Place, float]:
    """Every entry by its index."""
    wide = tensor.detach().double()
    return {at: wide[at].item() for at in places(tensor.shape)}


def _weighted(act: Tensor, weight: Callable[[int, int], float]) -> Tensor:
    """``M(b, p) = Σ_k w(b, k) A(b, k, p)``."""
    A, (b, c, *space) = numbers(act), act.shape
    made = torch.zeros(b, *space, dtype=torch.float64)
    for i in range(b):
        for k in range(c):
            w = weight(i, k)
            for p in places(space):
                made[(i, *p)] += w * A[(i, k, *p)]
    return made


def _placewise(act: Tensor, grad: Tensor, term: Callable[[float, float], float]) -> Tensor:
    """``M(b, p) = Σ_k term(A(b, k, p), G(b, k, p))``."""
    A, G, (b, c, *space) = numbers(act), numbers(grad), act.shape
    made = torch.zeros(b, *space, dtype=torch.float64)
    for i in range(b):
        for p in places(space):
            total = 0.0
            for k in range(c):
                total += term(A[(i, k, *p)], G[(i, k, *p)])
            made[(i, *p)] = total
    return made


def cam(act: Tensor, grad: Tensor) -> Tensor:
    """Zhou 2016: ``M = Σ_k W_k A_k``, where a global average pool makes ``∂y/∂A_k(p) = W_k / Z`` at every place."""
    G, space = numbers(grad), act.shape[2:]
    return _weighted(act, lambda i, k: sum(G[(i, k, *p)] for p in places(space)))


def cam_of_weights(act: Tensor, weight: Tensor, classes: Sequence[int]) -> Tensor:
    """The same from the head's own weights, ``k c``, and one class a picture."""
    W = numbers(weight)
    return _weighted(act, lambda i, k: W[(classes[i], k)])


def gradcam(act: Tensor, grad: Tensor) -> Tensor:
    """Selvaraju 2017, eq. 1 and 2: ``α_k = 1/Z Σ_ij ∂y/∂A_k(i, j)``, ``M = Σ_k α_k A_k`` (before the ReLU)."""
    G, space = numbers(grad), act.shape[2:]

    def alpha(i: int, k: int) -> float:
        total, count = 0.0, 0
        for p in places(space):
            total += G[(i, k, *p)]
            count += 1
        return total / count

    return _weighted(act, alpha)


def gradcampp(act: Tensor, grad: Tensor) -> Tensor:
    """Chattopadhyay 2018, eq. 19 and 5, literally: numerator ``g²``, denominator ``2g² + (Σ_ab A_ab) g³``.

    For the paper's ``A ≥ 0`` nothing else happens. A negative channel sum counts as zero: the registered deviation.
    """
    A, G, space = numbers(act), numbers(grad), act.shape[2:]

    def weight(i: int, k: int) -> float:
        total = 0.0
        for p in places(space):
            total += A[(i, k, *p)]
        total = max(total, 0.0)
        w = 0.0
        for p in places(space):
            g = G[(i, k, *p)]
            numerator, denominator = g**2, 2 * g**2 + total * g**3
            alpha = numerator / denominator if g != 0 and denominator != 0 else 0.0
            w += alpha * max(g, 0.0)
        return w

    return _weighted(act, weight)


def hirescam(act: Tensor, grad: Tensor) -> Tensor:
    """Draelos 2020: ``M = Σ_k G_k ⊙ A_k``."""
    return _placewise(act, grad, lambda a, g: g * a)


def xgradcam(act: Tensor, grad: Tensor) -> Tensor:
    """Fu 2020, eq. 8: ``w_k = Σ_xy (A_k(x, y) / Σ_ab A_k(a, b)) G_k(x, y)``."""
    A, G, space = numbers(act), numbers(grad), act.shape[2:]

    def weight(i: int, k: int) -> float:
        total = 0.0
        for p in places(space):
            total += A[(i, k, *p)]
        if total == 0.0:
            return 0.0
        w = 0.0
        for p in places(space):
            w += A[(i, k, *p)] / total * G[(i, k, *p)]
        return w

    return _weighted(act, weight)


def layercam(act: Tensor, grad: Tensor) -> Tensor:
    """Jiang 2021, eq. 5 and 6: ``w_k(i, j) = relu(G_k(i, j))``, ``M = Σ_k w_k ⊙ A_k`` (before the ReLU)."""
    return _placewise(act, grad, lambda a, g: max(g, 0.0) * a)


def elementwise(act: Tensor, grad: Tensor) -> Tensor:
    """Pillai 2021: ``M = Σ_k relu(G_k ⊙ A_k)``."""
    return _placewise(act, grad, lambda a, g: max(g * a, 0.0))


REPLICAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cam": cam, "gradcam": gradcam, "gradcampp": gradcampp, "hirescam": hirescam, "xgradcam": xgradcam,
    "layercam": layercam, "elementwise": elementwise,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- gradients, measured


def slow_gradient(
    net: nn.Module, layer: nn.Module, x: Tensor, score: Callable[[Tensor], Tensor], step: float = 1e-5
) -> Tensor:
    """``∂ score(b) / ∂ act(b, …)`` by central differences: one number of the activation moved at a time, by a hook."""
    move: dict[str, object] = {"at": None, "by": 0.0}
    kept: list[Tensor] = []

    def edit(_module: nn.Module, _args: object, made: Tensor) -> Tensor:
        made = made.clone()
        if move["at"] is None:
            kept.append(made)
        else:
            made[move["at"]] += move["by"]
        return made

    def run(at: Place | None, by: float) -> Tensor:
        move.update(at=at, by=by)
        return score(net(x))

    handle = layer.register_forward_hook(edit)
    try:
        with torch.no_grad():
            run(None, 0.0)
            made = torch.zeros_like(kept[0])
            for at in places(made.shape):
                made[at] = (run(at, step)[at[0]] - run(at, -step)[at[0]]) / (2 * step)
    finally:
        handle.remove()
    return made


# --------------------------------------------------------------------------------------------------------- comparisons


def apart(one: Tensor, two: Tensor) -> float:
    """The largest difference, relative to the largest magnitude of ``two``; infinite where shapes or NaNs disagree."""
    if one.shape != two.shape:
        return float("inf")
    a, b = one.detach().double(), two.detach().double()
    largest = float((a - b).abs().max())
    scale = float(b.abs().max())
    if largest != largest:
        return float("inf")
    return largest if scale == 0 else largest / scale


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0, ties sharing their mean."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found, start = [0.0] * len(values), 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for i in order[start : end + 1]:
            found[i] = (start + end) / 2
        start = end + 1
    return found


def spearman(one: Tensor, two: Tensor) -> float:
    """Rank correlation of two maps."""
    a, b = ranks(one.flatten().tolist()), ranks(two.flatten().tolist())
    mean = (len(a) - 1) / 2
    over = sum((p - mean) * (q - mean) for p, q in zip(a, b, strict=True))
    under = (sum((p - mean) ** 2 for p in a) * sum((q - mean) ** 2 for q in b)) ** 0.5
    return over / under
