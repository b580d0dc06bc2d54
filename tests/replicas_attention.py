"""A transformer whose attention can be written in many ways, and the attention methods in loops over single numbers.

In its ``open`` form every block adds a zero tensor of its own, ``bump``, to its probabilities: gradients at it are
plain autograd of the net's own code, and moving it by hand gives finite differences. Nothing is shared with the
library.
"""

import copy
from collections.abc import Callable, Sequence

import nets
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Core = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def _scores(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores if mask is None else scores + mask


def _bmm(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    b, h, n, d = q.shape
    q, k, v = (t.reshape(b * h, n, d) for t in (q, k, v))
    zero = torch.zeros(b * h, n, n).to(q) if mask is None else mask.expand(b, h, n, n).reshape(b * h, n, n)
    probs = F.softmax(torch.baddbmm(zero, q * d**-0.5, k.transpose(1, 2)), dim=-1)
    return torch.bmm(probs, v).reshape(b, h, n, d)


def _einsum(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhij,bhjd->bhid", torch.softmax(scores if mask is None else scores + mask, dim=-1), v)


def _in_place(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return torch.matmul(nn.Dropout(0.5, inplace=True).eval()(nn.Softmax(-1)(_scores(q, k, mask))), v)


CORES: dict[str, Core] = {
    "fused": lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
    "operator": lambda q, k, v, mask: _scores(q, k, mask).softmax(dim=-1) @ v,
    "bmm": _bmm,
    "einsum": _einsum,
    "in place": _in_place,
}


class Attention(nn.Module):
    def __init__(self, width: int, mask: Tensor | None) -> None:
        super().__init__()
        self.qkv, self.out, self.form, self.mask = nn.Linear(width, 3 * width), nn.Linear(width, width), "fused", mask
        self.probs: list[Tensor] = []
        self.bump: Tensor | None = None

    def core(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.form != "open":
            return CORES[self.form](q, k, v, self.mask)
        probs = torch.exp(_scores(q, k, self.mask))
        probs = probs / probs.sum(-1, keepdim=True)
        if self.bump is not None:
            probs = probs + self.bump
        self.probs, self.qkvs = [probs], (q, k, v)
        self.gathered = probs @ v
        return self.gathered

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        return self.out(self.core(q, k, v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, width: int, mask: Tensor | None) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width, mask), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Seer(nn.Module):
    """``prefix`` tokens, then places; reads the ``class`` token, the first ``two`` tokens or the ``mean`` of places."""

    def __init__(self, prefix: int, pool: str, dims: int = 2, depth: int = 3, mask: bool = False) -> None:
        super().__init__()
        self.prefix, self.pool, self.dims = prefix, pool, dims
        self.grid = {1: (6,), 2: (2, 3), 3: (2, 2, 2)}[dims]
        self.shape = (2, *(2 * n for n in self.grid))
        n = prefix + int(torch.tensor(self.grid).prod())
        bias = torch.randn(2, n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64) if mask else None
        self.patch = getattr(nn, f"Conv{dims}d")(2, 8, 2, stride=2)
        self.first = nn.Parameter(torch.zeros(1, prefix, 8))
        self.position = nn.Parameter(torch.zeros(1, n - prefix, 8))
        self.blocks = nn.Sequential(*(Block(8, bias) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat(
            [self.first.expand(len(x), -1, -1), self.patch(x).flatten(2).transpose(1, 2) + self.position], 1
        )
        return self.end(self.blocks(tokens))

    def end(self, tokens: Tensor) -> Tensor:
        tokens = self.norm(tokens)
        read = {"class": tokens[:, :1], "two": tokens[:, :2], "mean": tokens[:, self.prefix :]}[self.pool]
        return self.head(read.mean(1))

    def x(self, b: int = 1, seed: int = 100) -> Tensor:
        return torch.randn(b, *self.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def written(self, form: str) -> "Seer":
        """A copy with its attention written another way."""
        made = copy.deepcopy(self)
        for block in made.blocks:
            block.attn.form = form
        return made

    @property
    def reads(self) -> list[int]:
        """The tokens that are read out."""
        n = self.position.shape[1]
        return {"class": [0], "two": [0, 1], "mean": list(range(self.prefix, self.prefix + n))}[self.pool]


def seer(prefix: int = 1, pool: str = "class", seed: int = 0, gain: float = 1.5, **more: object) -> Seer:
    return nets.seeded(Seer(prefix, pool, **more), seed, gain)  # type: ignore[arg-type,return-value]


def open_book(net: Seer, x: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Probabilities ``h n n`` of each block for one picture and the gradients of the score there, by plain autograd."""
    net = net.written("open")
    n = net.prefix + net.position.shape[1]
    bumps = [torch.zeros(1, 2, n, n, dtype=torch.float64, requires_grad=True) for _ in net.blocks]
    for block, bump in zip(net.blocks, bumps, strict=True):
        block.attn.bump = bump
    grads = torch.autograd.grad(score(net(x)), bumps)
    return [b.attn.probs[0][0].detach() for b in net.blocks], [g[0] for g in grads]


def moved(net: Seer, x: Tensor, score: Callable[[Tensor], Tensor], block: int, at: tuple[int, ...], by: float) -> float:
    """The score with one probability moved by hand."""
    net = net.written("open")
    n = net.prefix + net.position.shape[1]
    bump = torch.zeros(1, 2, n, n, dtype=torch.float64)
    bump[(0, *at)] = by
    net.blocks[block].attn.bump = bump
    with torch.no_grad():
        return float(score(net(x)))


# ------------------------------------------------------------------------------------------------ methods, in loops


def slow_rollout(probs: Sequence[Tensor], reads: Sequence[int], places: int, fuse: Callable[..., float]) -> list[float]:
    """Abnar & Zuidema 2020: ``R_l = Â_l R_{l−1}``, ``Â = (A + I)`` over its row's sum; the mean of the rows read."""
    n = probs[0].shape[-1]
    rolled = [[float(i == j) for j in range(n)] for i in range(n)]
    for p in probs:
        mixed = [[fuse([float(h[i, j]) for h in p]) + (i == j) for j in range(n)] for i in range(n)]
        mixed = [[v / sum(row) for v in row] for row in mixed]
        rolled = [[sum(mixed[i][m] * rolled[m][j] for m in range(n)) for j in range(n)] for i in range(n)]
    return [sum(rolled[i][j] for i in reads) / len(reads) for j in range(n - places, n)]


def slow_relevance(probs: Sequence[Tensor], grads: Sequence[Tensor], reads: Sequence[int], places: int) -> list[float]:
    """Chefer et al. ICCV 2021: ``R ← R + mean_h relu(∇A ⊙ A) R`` from the identity, which is taken off at the end."""
    n = probs[0].shape[-1]
    told = [[float(i == j) for j in range(n)] for i in range(n)]
    for p, g in zip(probs, grads, strict=True):
        heads = len(p)
        gain = [
            [sum(max(0.0, float(p[h, i, j] * g[h, i, j])) for h in range(heads)) / heads for j in range(n)]
            for i in range(n)
        ]
        told = [[told[i][j] + sum(gain[i][m] * told[m][j] for m in range(n)) for j in range(n)] for i in range(n)]
    return [sum(told[i][j] - (i == j) for i in reads) / len(reads) for j in range(n - places, n)]


def slow_legrad(net: Seer, x: Tensor, k: int) -> list[float]:
    """Bousselham et al. 2025: the score of each block is ``head(norm(mean of its tokens))``."""
    net = net.written("open")
    n, places = net.prefix + net.position.shape[1], net.position.shape[1]
    total = [0.0] * places
    for depth, block in enumerate(net.blocks):
        block.attn.bump = torch.zeros(1, 2, n, n, dtype=torch.float64, requires_grad=True)
        tokens = torch.cat([net.first, net.patch(x).flatten(2).transpose(1, 2) + net.position], 1)
        for b in list(net.blocks)[: depth + 1]:
            tokens = b(tokens)
        score = net.head(net.norm(tokens[0].sum(0) / n))[k]
        (grad,) = torch.autograd.grad(score, block.attn.bump)
        block.attn.bump = None
        for j in range(places):
            rises = [max(0.0, float(grad[0, h, i, net.prefix + j])) for h in range(2) for i in range(n)]
            total[j] += sum(rises) / len(rises) / len(net.blocks)
    return total


def slow_gradeclip(net: Seer, x: Tensor, k: int) -> list[float]:
    """Zhao et al. 2024: ``Σ_d g_d v_i,d s_i`` with ``s`` the cosine of query and keys, least to most made 0 to 1."""
    net = net.written("open").requires_grad_()
    y = net(x)[0, k]
    last = net.blocks[-1].attn
    (flow,) = torch.autograd.grad(y, last.gathered)
    (q, key, v), n, places = last.qkvs, flow.shape[2], net.position.shape[1]

    def joined(t: Tensor, i: int) -> list[float]:
        return [t[0, h, i, d].item() for h in range(t.shape[1]) for d in range(t.shape[3])]

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(s * t for s, t in zip(a, b, strict=True))
        return dot / (sum(s * s for s in a) * sum(t * t for t in b)) ** 0.5

    total = [0.0] * places
    for r in net.reads:
        like = [cosine(joined(q, r), joined(key, i)) for i in range(n - places, n)]
        loose = [(c - min(like)) / (max(like) - min(like)) for c in like]
        for j in range(places):
            g, values = joined(flow, r), joined(v, n - places + j)
            total[j] += loose[j] * sum(s * t for s, t in zip(g, values, strict=True))
    return total
