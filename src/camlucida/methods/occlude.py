"""Methods that cover parts of the picture, or of a layer that is named: a window slid over it, masks drawn at random.

``A`` is what is covered: the picture ``ch *full``, or the activation ``c *space`` of the layer. Nothing else is known
of the model. What is covered takes the value ``fill`` of the *preprocessed* tensor, whose zero is the mean colour, not
black. Covers are made when their turn comes: memory does not grow with their number.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from camlucida.errors import MethodError
from camlucida.maps import resize
from camlucida.methods import _masks as masks
from camlucida.registry import register
from camlucida.types import Scorer

Maps = Float[Tensor, "t *space"]
_SHOWN = ("centred", "paper", "error")
_BLOCK = 64  # draws between two looks at the error


@register(
    "occlusion",
    title="Occlusion",
    paper="zeiler2014",
    formula="mean over the windows that cover a place of y − y(x without the window)",
    needs="model",
    at="input",
    answers_only=True,
    cost="1 + one forward (at a layer: tail) a window",
    deviations=(
        "signed and laid on every place that a window covers, where the paper draws the score at each position; "
        "window and stride, which the paper gives for its net only, are an eighth and a sixteenth of each axis"
    ),
)
def occlusion(scorer: Scorer, *, window: int = 0, stride: int = 0, fill: float = 0.0) -> Maps:
    """Occlusion: how far the score drops when a window is covered, at the input or at a layer that is named.

    ``M(p) = mean over windows ∋ p of (y − y(window filled))``; windows of ``window`` places along each axis, ``stride``
    apart, the last one moved to the edge; 0 is an eighth of the axis, and half a window. Shape ``t *space``; units of
    the score. [zeiler2014]

    >>> import camlucida as cl
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 5))
    >>> cl.explain(net, torch.rand(1, 3, 8, 8), target=2, method="occlusion:window=3").map.shape
    torch.Size([1, 8, 8])
    """
    masks.within(window, 0, 1e9, "window", "Occlusion")
    masks.within(stride, 0, 1e9, "stride", "Occlusion")
    act = scorer.act
    covers = [_windows(n, window, stride).to(act) for n in act.shape[1:]]
    counts = [len(c) for c in covers]

    def covered(rows: Tensor) -> Tensor:
        at = torch.unravel_index(rows.to(act.device), counts)
        hidden = masks.outer([c[i] for c, i in zip(covers, at, strict=True)])
        return torch.where(hidden.unsqueeze(1) > 0, fill, act)

    drops = scorer.base[:, None] - scorer.at_layer(torch.Size(counts).numel(), covered)
    return masks.spread(drops.reshape(-1, *counts), [(c / c.sum(0)).T.to(drops) for c in covers])


def _windows(count: int, window: int, stride: int) -> Float[Tensor, "positions count"]:
    """Which cells of an axis each position of the window covers."""
    width = min(window or max(1, round(count / 8)), count)
    step = stride or max(1, width // 2)
    if width < min(step, count):
        raise MethodError(
            f"Occlusion: windows of {width} that are {step} apart leave places uncovered: take stride={width} or less."
        )
    starts = torch.tensor([*range(0, count - width, step), count - width])[:, None]
    at = torch.arange(count)
    return ((at >= starts) & (at < starts + width)).float()


class Estimate(NamedTuple):
    """A mean over random masks, its standard error, both ``t *space``, and how many masks were drawn."""

    map: Maps
    error: Maps
    samples: int


@register(
    "rise",
    title="RISE",
    paper="petsiuk2018",
    formula="Σ_i (y(x ⊙ m_i) − c) (m_i − ½) / (N/2)",
    needs="model",
    at="input",
    answers_only=True,
    cost="1 + N forwards (at a layer: tails), fewer with stop",
    deviations=(
        "centred, so that zero means no evidence; show='paper' is the paper's Σ y m / (N/2), which is the same up to "
        "a constant in expectation, but large everywhere; show='error' is the standard error, from the same masks; "
        "half of all cells are on, as in the paper"
    ),
)
def rise(
    scorer: Scorer, *, samples: int = 4000, grid: int = 7, stop: float = 0.0, fill: float = 0.0, show: str = "centred"
) -> Maps:
    """RISE: how the score of a picture seen through random masks goes with each place being seen.

    ``M(p) = Σ_i (y(A|m_i) − c) (m_i(p) − ½) / (N/2)``: ``N = samples`` masks of ``grid`` random cells along each axis,
    enlarged linearly and shifted; ``c`` as in `rise_with_error`. ``show="paper"`` leaves out ``c`` and ``½``;
    ``show="error"`` is the map's standard error: ``cl.sweep(..., methods=["rise", "rise:show=error"])``. It ends early
    where the mean error is no more than ``stop`` (0.05, say) of the map's range. Shape ``t *space``; units of the
    score. [petsiuk2018]

    >>> import camlucida as cl
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 5))
    >>> cl.explain(net, torch.rand(1, 3, 8, 8), target=2, method="rise:samples=99:grid=3").map.shape
    torch.Size([1, 8, 8])
    """
    if show not in _SHOWN:
        raise MethodError(f"RISE: show is one of {', '.join(map(repr, _SHOWN))}; got {show!r}.")
    found = rise_with_error(scorer, samples=samples, grid=grid, stop=stop, fill=fill, centred=show != "paper")
    return found.error if show == "error" else found.map


def rise_with_error(
    scorer: Scorer, *, samples: int = 4000, grid: int = 7, stop: float = 0.0, fill: float = 0.0, centred: bool = True
) -> Estimate:
    """RISE's map together with its standard error and the number of masks it took, as `rise` computes them.

    ``error = √(Var_i(e_i) / N)``, place by place, where the map is the mean of ``e_i = 2 (y_i − c)(m_i − ½)``, or of
    ``2 y_i m_i`` unless ``centred``; ``c`` is halfway between the scores of the whole picture and of the covered one.
    With ``stop`` the masks end once, for every target, the mean error over the places is at most ``stop`` times the
    map's range: an error that is looked at again and again comes out a little too small. Raises: MethodError.
    [petsiuk2018]
    """
    masks.within(samples, 2, 1e9, "samples", "RISE")
    masks.within(grid, 2, 1e9, "grid", "RISE")
    drawn = Grids.drawn(samples, grid, scorer.act, scorer.random)
    middle = _middle(scorer, fill) if centred else torch.zeros_like(scorer.base)
    total = square = scorer.act.new_zeros(len(scorer.base), *scorer.act.shape[1:])
    for start in range(0, samples, _BLOCK):
        rows = torch.arange(start, min(start + _BLOCK, samples))
        scores = _scores(scorer, drawn, rows, fill)
        scores, shown = (scores - middle[:, None]).to(total), 2 * drawn(rows) - int(centred)
        total = total + torch.einsum("tn,n...->t...", scores, shown)
        square = square + torch.einsum("tn,n...->t...", scores**2, shown**2)
        found = _estimate(total, square, start + len(rows))
        if _sure(found, stop):
            break
    return found


def _scores(scorer: Scorer, drawn: "Grids", rows: Int[Tensor, " m"], fill: float) -> Float[Tensor, "t m"]:
    return scorer.at_layer(len(rows), lambda at: masks.show(scorer.act, drawn(rows[at]), fill))


def _middle(scorer: Scorer, fill: float) -> Float[Tensor, " t"]:
    covered = scorer.at_layer(1, lambda _: torch.full_like(scorer.act, fill)[None])
    return (scorer.base + covered[:, 0]) / 2


def _estimate(total: Maps, square: Maps, count: int) -> Estimate:
    mean = total / count
    return Estimate(mean, ((square / count - mean**2).clamp(min=0) / max(count - 1, 1)).sqrt(), count)


def _sure(found: Estimate, stop: float) -> bool:
    """Whether the mean error of every target's map is small enough."""
    flat = found.map.flatten(1)
    return stop > 0 and bool((found.error.flatten(1).mean(1) <= stop * (flat.amax(1) - flat.amin(1))).all())


@final
@dataclass(frozen=True)
class Grids:
    """The random masks of RISE: coarse on-off cells, enlarged linearly, each shifted by less than a cell.

    ``cells`` ``n *grid`` and ``shifts`` ``n axes`` are what was drawn, ``lines`` how an axis is enlarged.
    """

    cells: Tensor
    shifts: Int[Tensor, "n axes"]
    lines: tuple[masks.Lines, ...]
    space: tuple[int, ...]

    @staticmethod
    def drawn(count: int, grid: int, like: Float[Tensor, "c *space"], random: Generator) -> "Grids":
        """``count`` masks for ``like``, half of all cells on; one bit a cell is all that is kept of each.

        >>> masks = Grids.drawn(3, 2, torch.zeros(1, 4, 6), Generator().manual_seed(0))
        >>> masks(torch.arange(2)).shape
        torch.Size([2, 4, 6])
        """
        space = tuple(like.shape[1:])
        sides = [min(grid, n) for n in space]
        strides = [math.ceil(n / s) for n, s in zip(space, sides, strict=True)]
        cells = torch.rand(count, *sides, generator=random) < 0.5
        shifts = torch.stack([torch.randint(s, (count,), generator=random) for s in strides], 1)
        eyes = [torch.eye(s, dtype=like.dtype, device=like.device) for s in sides]
        lines = [resize(eye, [(len(eye) + 1) * stride]).T for eye, stride in zip(eyes, strides, strict=True)]
        return Grids(cells, shifts, tuple(lines), space)

    def __call__(self, rows: Int[Tensor, " m"]) -> Float[Tensor, "m *space"]:
        made = self.cells[rows].to(self.lines[0])
        for axis, (line, count) in enumerate(zip(self.lines, self.space, strict=True), start=1):
            at = self.shifts[rows, axis - 1, None] + torch.arange(count)
            moved = made.movedim(axis, -1)
            shifted = line[at.to(line.device)].mT  # m old new
            made = (moved.flatten(1, -2) if moved.dim() > 2 else moved[:, None]).bmm(shifted)
            made = made.reshape(*moved.shape[:-1], count).movedim(-1, axis)
        return made
