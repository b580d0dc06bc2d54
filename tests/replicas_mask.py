"""Slow twins of the methods that ask the model again: one picture, one score, single numbers in loops, float64.

``y`` is a function of one activation ``c *space`` or one picture ``ch *full``, called for each mask by itself. Nothing
is shared with the library. The random numbers of RISE are drawn in the order that its method promises: all cells,
then the shifts axis by axis.
"""

import math
from collections.abc import Callable, Sequence

import torch
from replicas import Place, numbers, places
from torch import Tensor, nn

Score = Callable[[Tensor], float]


def masked(x: Tensor, mask: dict[Place, float], fill: float | Tensor = 0.0) -> Tensor:
    """``x m + fill (1 − m)``; a place that the mask does not name is zero in it."""
    other = torch.full_like(x, fill) if isinstance(fill, float) else fill
    made = other.clone()
    for p, m in mask.items():
        for k in range(len(x)):
            made[(k, *p)] = x[(k, *p)].item() * m + other[(k, *p)].item() * (1 - m)
    return made


def plus(weights: Sequence[float], maps: Tensor) -> Tensor:
    made = torch.zeros(maps.shape[1:], dtype=torch.float64)
    for w, one in zip(weights, maps, strict=True):
        made += w * one
    return made


# ------------------------------------------------------------------------------------------------------- at the layer


def reciprocam(act: Tensor, y: Score, baseline: bool = True, gaussian: bool = False) -> Tensor:
    """Byun 2022: the score of each place's features alone, or with its neighbours by the 3×3 of the paper."""
    space = act.shape[1:]
    made = torch.zeros(space, dtype=torch.float64)
    for p in places(space):
        mask: dict[Place, float] = {}
        for step in places([3] * len(space)):
            q = tuple(a + s - 1 for a, s in zip(p, step, strict=True))
            if all(0 <= a < n for a, n in zip(q, space, strict=True)):
                mask[q] = math.prod((0.25, 0.5, 0.25)[s] for s in step) if gaussian else float(p == q)
        made[p] = y(masked(act, mask)) - (y(torch.zeros_like(act)) if baseline else 0.0)
    return made


def ablationcam(act: Tensor, y: Score, relative: bool = False, calibrated: bool = False) -> Tensor:
    """Desai 2020, eq. 3 before its division, which ``relative`` does."""
    weights = []
    for k in range(len(act)):
        without = act.clone()
        without[k] = 0
        w = y(act) - y(without)
        w = w / y(act) if relative else w
        total = sum(act[k].flatten().tolist())
        weights.append((w / total if total else 0.0) if calibrated else w)
    return plus(weights, act)


# ----------------------------------------------------------------------------------------------------- at the picture


def enlarged(one: Tensor, full: Sequence[int]) -> dict[Place, float]:
    """Linear along every axis between centres of cells, the outermost value beyond them."""
    values, made = numbers(one), {}
    for p in places(full):
        total = 0.0
        sides: list[list[tuple[int, float]]] = []
        for at, n, cells in zip(p, full, one.shape, strict=True):
            where = min(max((at + 0.5) * cells / n - 0.5, 0.0), cells - 1.0)
            low = math.floor(where)
            sides.append([(low, 1 - (where - low)), (min(low + 1, cells - 1), where - low)])
        for corner in places([2] * len(sides)):
            picks = [side[c] for side, c in zip(sides, corner, strict=True)]
            total += values[tuple(i for i, _ in picks)] * math.prod(w for _, w in picks)
        made[p] = total
    return made


def unit(mask: dict[Place, float]) -> dict[Place, float]:
    low, high = min(mask.values()), max(mask.values())
    return {p: (v - low) / (high - low) if high - low > 1e-12 else 0.0 for p, v in mask.items()}


def scorecam(x: Tensor, act: Tensor, y: Score, weigh: str = "softmax", fill: float = 0.0) -> Tensor:
    """Wang 2020, alg. 1: enlarge, normalise, mask, score less the baseline's, softmax over channels."""
    base = y(torch.full_like(x, fill))
    gains = [y(masked(x, unit(enlarged(one, x.shape[1:])), fill)) - base for one in act]
    if weigh == "softmax":
        top = max(gains)
        total = sum(math.exp(g - top) for g in gains)
        return plus([math.exp(g - top) / total for g in gains], act)
    return plus([g + (base if weigh == "score" else 0.0) for g in gains], act)


def fasterscorecam(x: Tensor, act: Tensor, y: Score, channels: int) -> Tensor:
    spread = []
    for one in act:
        v = one.flatten().tolist()
        mean = sum(v) / len(v)
        spread.append(sum((a - mean) ** 2 for a in v) / len(v))
    best = sorted(range(len(act)), key=lambda k: -spread[k])[:channels]
    return scorecam(x, act[best], y)


def percentile(values: list[float], q: float) -> float:
    v = sorted(values)
    at = q / 100 * (len(v) - 1)
    low = math.floor(at)
    return v[low] + (at - low) * (v[min(low + 1, len(v) - 1)] - v[low])


def blurred(x: Tensor, width: int, sigma: float) -> Tensor:
    made = torch.zeros_like(x)
    for at in places(x.shape):
        total = weight = 0.0
        for other in places(x.shape[1:]):
            apart = [abs(a - b) for a, b in zip(at[1:], other, strict=True)]
            if max(apart) <= width // 2:
                w = math.exp(-sum(d * d for d in apart) / (2 * sigma * sigma))
                total, weight = total + w * x[(at[0], *other)].item(), weight + w
        made[at] = total / weight
    return made


def groupcam(x: Tensor, act: Tensor, grad: Tensor, y: Score, groups: int) -> Tensor:
    """Zhang 2021: groups of weighted channels, rectified, de-noised at the 70th percentile, over a blurred picture."""
    soft = blurred(x, 51, 50.0)
    made = torch.zeros(act.shape[1:], dtype=torch.float64)
    size, more = divmod(len(act), groups)
    start = 0
    for g in range(groups):
        end = start + size + (g < more)
        one = torch.zeros(act.shape[1:], dtype=torch.float64)
        for k in range(start, end):
            one += grad[k].sum() / grad[k].numel() * act[k]
        one = one.clamp(min=0)
        floor = percentile(one.flatten().tolist(), 70)
        one = torch.where(one > floor, one, 0.0)
        if one.max() > 0:
            made += (y(masked(x, unit(enlarged(one, x.shape[1:])), soft)) - y(soft)) * one
        start = end
    return made


def opticam(x: Tensor, act: Tensor, y: Callable[[Tensor], Tensor], steps: int, rate: float = 0.1) -> Tensor:
    """Zhang 2023 with torch's own enlargement, gradients and Adam."""
    mode = {2: "linear", 3: "bilinear", 4: "trilinear"}[x.dim()]
    u = torch.zeros(len(act), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([u], lr=rate)
    for _ in range(steps):
        one = sum(w * a for w, a in zip(u.softmax(0), act, strict=True))
        mask = nn.functional.interpolate(one[None, None], tuple(x.shape[1:]), mode=mode, align_corners=False)[0, 0]
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        adam.zero_grad()
        (-y(x * mask)).backward()
        adam.step()
    return plus(u.detach().softmax(0).tolist(), act)


def occlusion(x: Tensor, y: Score, window: int, stride: int, fill: float = 0.0) -> Tensor:
    """Zeiler 2014: the drop of the score at each position of the window, its mean over those that cover a place."""
    starts = [[*range(0, n - min(window, n), stride), n - min(window, n)] for n in x.shape[1:]]
    total, count = (torch.zeros(x.shape[1:], dtype=torch.float64) for _ in range(2))
    for corner in places([len(s) for s in starts]):
        hidden = [
            p for p in places(x.shape[1:])
            if all(starts[i][c] <= a < starts[i][c] + window for i, (a, c) in enumerate(zip(p, corner, strict=True)))
        ]  # fmt: skip
        other = x.clone()
        for p in hidden:
            other[(slice(None), *p)] = fill
        for p in hidden:
            total[p] += y(x) - y(other)
            count[p] += 1
    return total / count


def rise_masks(space: Sequence[int], samples: int, grid: int) -> list[dict[Place, float]]:
    """Petsiuk 2018, 3.2: cells that are on by half, enlarged to one cell more than the picture, cut out at random."""
    draw = torch.Generator().manual_seed(0)
    sides = [min(grid, n) for n in space]
    strides = [math.ceil(n / s) for n, s in zip(space, sides, strict=True)]
    cells = torch.rand(samples, *sides, generator=draw) < 0.5
    shifts = [torch.randint(s, (samples,), generator=draw) for s in strides]
    made = []
    for i in range(samples):
        large = enlarged(cells[i].double(), [(s + 1) * stride for s, stride in zip(sides, strides, strict=True)])
        made.append({p: large[tuple(a + int(s[i]) for a, s in zip(p, shifts, strict=True))] for p in places(space)})
    return made


def rise(x: Tensor, y: Score, samples: int, grid: int, middle: float | None = None) -> tuple[Tensor, Tensor]:
    """The mean of ``y m / ½`` and its standard error; with ``middle``, of ``(y − middle)(m − ½) / ½``."""
    terms = []
    for mask in rise_masks(x.shape[1:], samples, grid):
        score = y(masked(x, mask)) - (middle or 0.0)
        one = torch.zeros(x.shape[1:], dtype=torch.float64)
        for p, m in mask.items():
            one[p] = score * (m - (0.0 if middle is None else 0.5)) / 0.5
        terms.append(one)
    stack = torch.stack(terms)
    return stack.mean(0), (stack.var(0, correction=1) / samples).sqrt()
