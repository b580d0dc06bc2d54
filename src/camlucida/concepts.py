"""What a layer's features are made of: a few concepts that many pictures share, where each is, what it speaks for.

Deep Feature Factorisation. The features of all places of all pictures, ``m × c``, become ``H W``: each place is a sum
of few concepts, never a difference. [collins2018]
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from camlucida import maps as maps_
from camlucida.core.explanation import Pictures
from camlucida.core.gradients import full
from camlucida.core.inputs import Inputs
from camlucida.core.prepare import prepare
from camlucida.core.question import Question, Seen
from camlucida.core.scorer import Subject
from camlucida.core.structure import tensors
from camlucida.core.targets import ClassTarget, top1
from camlucida.errors import InputError, LayerError, TargetError
from camlucida.frame import Preprocess
from camlucida.registry import get
from camlucida.types import Act, Loaded, Output, Scores, Target

if TYPE_CHECKING:
    from PIL.Image import Image

_STARTS = 4  # of one alone, one in six fell 2 % short of the best on real features
_ROUNDS, _LOOK, _LEAST = 500, 10, 1e-5  # at most; between two looks at the error; the least share it must fall by


@dataclass(frozen=True, eq=False, repr=False)
class Concepts:
    """``k`` concepts of one layer in ``n`` pictures, the largest first.

    ``A ≈ Σ_k maps_k ⊗ vectors_k``: ``maps`` say how much of each is where, in units of the activation, never negative;
    ``vectors`` what it is, each of length one. ``error`` is ``|A − Σ| / |A|``. ``scores`` ``n k classes`` are what the
    rest of the model makes of each concept alone: ``logits(maps_k ⊗ vectors_k) − logits(0)``; None where the model
    gives no logits.
    """

    maps: Float[Tensor, "n k *grid"]
    vectors: Float[Tensor, "k c"]
    error: float
    scores: Float[Tensor, "n k classes"] | None
    layer: str
    pictures: Pictures
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.maps.shape[1]

    def __repr__(self) -> str:
        n, k, *grid = self.maps.shape
        size = "×".join(map(str, grid))
        return f"<{k} concepts of {n} pictures at {self.layer}, {size}: {1 - self.error**2:.0%} of the features>"

    def says(self, concept: int, top: int = 3) -> list[tuple[str, float]]:
        """The classes that a concept speaks for most, with its score for each: the mean over pictures.

        Raises: InputError where the model gives no logits; IndexError for a concept that does not exist.
        """
        self._at(concept, len(self), "concept")
        if self.scores is None:
            raise InputError("this model gives no logits, so its concepts speak for no class.")
        found = self.scores.mean(0)[concept].topk(min(top, self.scores.shape[2]))
        return [(self._class(k), s) for s, k in zip(found.values.tolist(), found.indices.tolist(), strict=True)]

    def label(self, concept: int) -> str:
        """The class that a concept speaks for most; its number where it speaks for none."""
        known = self.scores is not None and bool((self.scores.mean(0)[concept] > 0).any())
        return self.says(concept, 1)[0][0] if known else f"concept {concept + 1}"

    def _class(self, index: int) -> str:
        return self.labels[index] if index < len(self.labels) else f"class {index}"

    def heatmap(self, concept: int, i: int = 0) -> Float[Tensor, "*full"]:
        """Where a concept is, on picture ``i``'s own pixels, in [0, 1]: 1 is its strongest place in all pictures."""
        concept, i = self._at(concept, len(self), "concept"), self._at(i, len(self.maps), "picture")
        every = self.maps[:, concept]
        values = maps_.unit(every[i : i + 1], maps_.scale_of(every))
        if self.pictures.frames:
            return maps_.lay(values[0], self.pictures.frames[i])[0]
        return maps_.resize(values, self.pictures.space)[0]

    def seen(self, i: int = 0) -> Tensor:
        """Which pixels of picture ``i`` the model saw at all."""
        if self.pictures.frames:
            return maps_.lay(self.maps[i, 0], self.pictures.frames[i])[1]
        return torch.ones(self.pictures.space, dtype=torch.bool)

    def picture(self, i: int = 0, side: int = 640) -> "Image":
        """Picture ``i`` under numbered colours, one a concept, with their labels below. Raises: InputError for 1-D."""
        from camlucida.view.regions import regions

        i = self._at(i, len(self.maps), "picture")
        image, unseen = self.pictures.image(i), ~self.seen(i).cpu()
        heats = [self.heatmap(k, i).float().cpu().masked_fill(unseen, torch.nan) for k in range(len(self))]
        return regions(image, torch.stack(heats).numpy(), [self._entry(k) for k in range(len(self))], side=side)

    def _entry(self, concept: int) -> str:
        if self.scores is None:
            return self.label(concept)
        return ", ".join(f"{name} {score:+.2g}" for name, score in self.says(concept, 2))

    def _repr_png_(self) -> bytes | None:
        from camlucida import view

        return view.png_bytes(self.picture()) if len(self.pictures.space) == 2 else None

    @staticmethod
    def _at(i: int, count: int, what: str) -> int:
        if not -count <= i < count:
            raise IndexError(f"{what} {i} does not exist: there are {count}.")
        return i % count


def factorise(
    model: nn.Module,
    pictures: Any,
    *,
    count: int = 5,
    layer: Any = None,
    seed: int = 0,
    preprocess: Preprocess | None = None,
) -> Concepts:
    """The ``count`` concepts that best make up what a layer gives for these pictures.

    ``min |A − H W|²`` over ``H ≥ 0`` (``n·Z × k``) and ``W`` (``k × c``), where ``A`` has a row for each place of each
    picture; ``W ≥ 0`` too where ``A ≥ 0``, as in the paper; features of both signs keep theirs. ``pictures``, ``layer``
    and ``preprocess`` are as in `explain`. Another ``seed`` begins elsewhere and may end in other concepts.

    Raises: InputError for a count that is not between 1 and the number of places and channels; LayerError.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> found = factorise(net, torch.rand(2, 3, 10, 10), count=2)
    >>> tuple(found.maps.shape), tuple(found.vectors.shape), tuple(found.scores.shape)
    ((2, 2, 8, 8), (2, 8), (2, 2, 4))
    """
    told = model if isinstance(model, Loaded) else None
    net = told.net if told else model
    inputs, shown = prepare(net, pictures, preprocess or (told.preprocess if told else None))
    name, seen = _look(net, inputs, layer)
    act = full(seen.layouts[name](seen.raw[name])).detach()
    with torch.inference_mode(False), torch.no_grad(), _no_autocast(act):
        found, vectors, error = decompose(act, count, seed)
        scores = None if seen.logits is None else _alone(net, inputs, seen, name, found, vectors)
    return Concepts(found, vectors, error, scores, name, shown, tuple(told.labels) if told else ())


def _look(net: nn.Module, inputs: Inputs, layer: Any) -> tuple[str, Seen]:
    """The layer's name and what one forward pass left; ``uniform`` is the method that costs nothing."""

    def ask(target: Target) -> tuple[str, Seen]:
        pairs, seen = Question(net, inputs, [target], [get("uniform")]).answer([layer])
        return pairs[0][1], seen

    try:
        return ask(top1)
    except TargetError:
        return ask(_anything)  # no classifier: a layer is as good as what the output as a whole makes of it


def _anything(output: Output) -> Scores:
    return next(t for t in tensors(output) if t.is_floating_point()).flatten(1).square().sum(1)


def decompose(act: Act, count: int, seed: int = 0) -> tuple[Tensor, Float[Tensor, "k c"], float]:
    """Maps ``b k *space``, vectors ``k c`` and relative error of an activation ``b c *space``, as `factorise`.

    Hierarchical alternating least squares: each column of ``H`` and row of ``W`` is in turn the best there is with all
    others kept, until the error hardly falls.

    >>> act = torch.einsum("kz,kc->cz", torch.eye(2), torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 4.0]]))[None]
    >>> maps, vectors, error = decompose(act.double(), 2)
    >>> maps.round(decimals=2).tolist(), vectors.round(decimals=2).tolist()  # the larger first
    ([[[0.0, 5.0], [1.0, 0.0]]], [[0.0, 0.6, 0.8], [1.0, 0.0, 0.0]])
    """
    rows = act.flatten(2).transpose(1, 2).flatten(0, 1)
    _check(rows, count)
    scale = rows.abs().amax()
    scale = torch.where(scale > 0, scale, 1)
    h, w = _hals(rows / scale, count, seed)
    length = w.square().sum(1).sqrt()
    length = torch.where(length > 0, length, 1)
    h, w = h * length, w / length[:, None]
    order = h.square().sum(0).argsort(descending=True, stable=True)
    h, w = h[:, order] * scale, w[order]
    whole = (rows / scale).square().sum()
    error = (((rows - h @ w) / scale).square().sum() / torch.where(whole > 0, whole, 1)).sqrt()
    return h.reshape(len(act), -1, count).transpose(1, 2).reshape(len(act), count, *act.shape[2:]), w, float(error)


def _check(rows: Float[Tensor, "m c"], count: int) -> None:
    if not 1 <= count <= min(rows.shape):
        places, channels = rows.shape
        raise InputError(
            f"{count} concepts of {places} places and {channels} channels: ask for 1 to {min(rows.shape)}."
        )
    if not bool(rows.isfinite().all()):
        raise LayerError("the layer gave NaN or infinity, which nothing can be made of: look at the pictures' numbers.")


def _hals(rows: Float[Tensor, "m c"], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The best of a few beginnings: the problem has many valleys."""
    draw = torch.Generator().manual_seed(seed)  # on the processor: one seed, one beginning on every device
    every = [_descent(rows, rows[_unlike(rows, count, draw)]) for _ in range(_STARTS if count > 1 else 1)]
    return min(every, key=lambda found: found[2])[:2]


def _descent(rows: Float[Tensor, "m c"], w: Float[Tensor, "k c"]) -> tuple[Tensor, Tensor, float]:
    tiny = torch.finfo(rows.dtype).tiny
    h = (rows @ w.T).clamp(min=0) / w.square().sum().clamp(min=tiny)
    signed = bool((rows < 0).any())
    least, last = _LEAST * float(rows.square().sum()), torch.inf
    for i in range(_ROUNDS):
        h = _turn(h.T, w @ rows.T, w @ w.T, False).T
        w = _turn(w, h.T @ rows, h.T @ h, signed)
        if i % _LOOK == 0:
            error = float((rows - h @ w).square().sum())
            if not last - error > least:
                break
            last = error
    return h, w, last


def _unlike(rows: Float[Tensor, "m c"], count: int, draw: Generator) -> list[int]:
    """Rows to begin with: each drawn by what the span of those before it leaves of it, so that no corner is missed."""
    rest, found = rows.clone(), list[int]()
    for _ in range(count):
        left = rest.square().sum(1).double().cpu().cumsum(0)
        point = torch.rand(1, generator=draw, dtype=torch.float64) * left[-1]
        found.append(min(int(torch.searchsorted(left, point, right=True)), len(rows) - 1))
        way = rest[found[-1]]
        rest = rest - torch.outer(rest @ way, way) / way.square().sum().clamp(min=torch.finfo(rows.dtype).tiny)
    return found


def _turn(one: Tensor, product: Tensor, gram: Tensor, signed: bool) -> Tensor:
    """Each row of ``one`` in turn the minimum of ``|X − other · one|²``, from ``otherᵀX`` and ``otherᵀother``."""
    one = one.clone()
    sizes = gram.diagonal()
    sizes = torch.where(sizes > 0, sizes, 1)  # where the other side has died out, nothing moves: all else is zero there
    for j in range(len(one)):
        best = one[j] + (product[j] - gram[j] @ one) / sizes[j]
        one[j] = best if signed else best.clamp(min=0)
    return one


def _alone(net: nn.Module, inputs: Inputs, seen: Seen, name: str, found: Tensor, vectors: Tensor) -> Tensor:
    """``logits(concept alone) − logits(nothing)``, ``n k classes``: only what follows the layer runs again."""
    assert seen.logits is not None
    asked = [ClassTarget((k,)) for k in range(seen.logits.shape[1])]
    kind = inputs.x.device.type
    subject = Subject(
        net, inputs, name, seen.layouts[name], seen.raw[name], asked, [None] * len(asked), full(seen.logits).T,
        autocast=torch.get_autocast_dtype(kind) if seen.raw[name].dtype != found.dtype else None,
    )  # fmt: skip
    return torch.stack([_one_alone(subject, i, found[i], vectors) for i in range(len(found))])


def _one_alone(subject: Subject, i: int, found: Float[Tensor, "k *space"], vectors: Tensor) -> Tensor:
    with_none = torch.cat([found, torch.zeros_like(found[:1])])
    vectors = torch.cat([vectors, torch.zeros_like(vectors[:1])])
    made = subject.picture(i).at_layer(
        len(with_none), lambda rows: torch.einsum("kc,k...->kc...", vectors[rows], with_none[rows])
    )
    return (made[:, :-1] - made[:, -1:]).T


def _no_autocast(like: Tensor) -> AbstractContextManager[object]:
    return torch.autocast(like.device.type, enabled=False)
