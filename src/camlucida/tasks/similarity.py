"""Similarity as a target: how near the model's embedding of a picture is to another embedding, or to a concept's."""

from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from camlucida.core.capture import How, full, run
from camlucida.core.layers import Place, Survey
from camlucida.core.outputs import Which, chosen, told
from camlucida.core.prepare import prepare
from camlucida.core.settle import Settled, Subjects
from camlucida.core.structure import parts
from camlucida.errors import TargetError
from camlucida.frame import Preprocess
from camlucida.types import Loaded, Output, Scores

Embeddings = Float[Tensor, "n d"]
Vectors = Float[Tensor, "_ _"]  # one for each picture or one for all; whether as long as the embedding, shows


def embed(model: nn.Module, x: Any, *, output: Which = None, preprocess: Preprocess | None = None) -> Embeddings:
    """The model's embeddings of pictures, ``n d``, as `explain` would show them to it; no gradient, nothing changed.

    ``x`` and ``preprocess`` as for `explain`. An embedding is the one vector a picture in what the model returns (of a
    classifier its logits: take its head off first); ``output`` says which part is meant, by key, place or function.

    Raises: InputError; TargetError where there is no such vector, or more than one.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    >>> embed(net, torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 4])
    """
    known = model if isinstance(model, Loaded) else None
    net = known.net if known else model
    inputs, _ = prepare(net, x, preprocess or (known.preprocess if known else None))
    with run(net, inputs, [], how=How(graph=False)) as tape:
        return embeddings(tape.output, output).detach().clone()


def concept(vectors: Embeddings) -> Float[Tensor, " d"]:
    """What several embeddings have in common: the mean of their directions, ``Σ_i v_i/|v_i| / n``.

    >>> concept(torch.tensor([[2.0, 0.0], [0.0, 5.0]]))
    tensor([0.5000, 0.5000])
    """
    return torch.nn.functional.normalize(vectors, dim=1).mean(0)


def embeddings(output: Output, which: Which = None) -> Embeddings:
    """The one vector a picture in what a model returns, ``b d``. Raises: TargetError where none or several could be."""
    part = chosen(output, which)
    held = [part] if isinstance(part, Tensor) else parts(part)
    found = [v for v in held if isinstance(v, Tensor) and v.is_floating_point() and _is_vector(v)]
    if len(found) == 1:
        return found[0].flatten(1)
    raise TargetError(
        f"{len(found) or 'no'} parts of the answer could be a picture's embedding ({told(part)}): say which with "
        "output=, as output='image_embeds', or a function, as output=lambda y: y.last_hidden_state[:, 0]."
    )


def _is_vector(value: Tensor) -> bool:
    """One vector a picture; a pooled map may keep its axes of space."""
    return value.dim() >= 2 and value[0].numel() == value.shape[1] > 1


@final
@dataclass(frozen=True, eq=False)
class Similarity:
    """The target that `similar` makes: ``to`` and ``than`` are ``n d``, one for each picture or one for all."""

    to: Vectors
    than: Vectors | None = None
    by: str = "cosine"  # or dot
    output: Which = None
    steady = True

    def __call__(self, output: Output) -> Scores:
        e = full(embeddings(output, self.output))
        near = self._score(e, self.to)
        return near if self.than is None else near - self._score(e, self.than)

    def _score(self, e: Embeddings, to: Vectors) -> Scores:
        if len(to) not in (1, len(e)) or to.shape[1] != e.shape[1]:
            raise _unfit(f"pictures embedded as {tuple(e.shape)}", to)
        to = to.to(e)
        return (e * to).sum(1) if self.by == "dot" else _cosine(e, to)

    def over(self, subjects: Subjects) -> "Similarity":
        """The same target, once it is known to go with the pictures. Raises: TargetError where it does not."""
        for vectors in (self.to, self.than):
            if vectors is not None and len(vectors) not in (1, len(subjects.pictures.names)):
                raise _unfit(f"{len(subjects.pictures.names)} pictures", vectors)
        return self

    def settle(self, output: Output) -> Settled:
        """Each picture with its own vectors."""
        return Settled(tuple(self._row(i) for i in range(len(embeddings(output, self.output)))))

    def _row(self, i: int) -> "Similarity":
        def own(vectors: Vectors) -> Vectors:
            return vectors if len(vectors) == 1 else vectors[i : i + 1]

        return replace(self, to=own(self.to), than=None if self.than is None else own(self.than))

    def place(self, seen: Survey) -> Place:
        """The last place, as for classes."""
        return seen.choice

    def reach(self) -> tuple[float, ...] | None:
        """The model's grids are as large as its input."""
        return None

    def __str__(self) -> str:
        return f"{self.by} similarity" + ("" if self.than is None else ", to this more than to that")


def similar(to: Any, than: Any = None, *, by: str = "cosine", output: Which = None) -> Similarity:
    """How near the model's embedding ``e`` of each picture is to another: ``cos(e, to)``, less ``cos(e, than)``.

    ``to``, ``than``: a vector ``d`` for all pictures, or ``b d``, each picture's own, as `embed` gives them; a
    `concept` is a vector, too. They are constants. ``by="dot"`` takes the inner product, which grows with ``|e|``.
    ``output`` as for `embed`. A picture held against itself is at the maximum of the cosine, which no small change
    raises or lowers: its gradient is zero, and its map empty, unless by dot.

    Raises: TargetError where the vectors are none.

    >>> target = similar(torch.tensor([3.0, 4.0]))
    >>> target(torch.tensor([[6.0, 8.0], [4.0, -3.0]]))
    tensor([1., 0.])
    """
    if by not in ("cosine", "dot"):
        raise TargetError(f"similarity is by='cosine' or by='dot'; got {by!r}.")
    return Similarity(_rows(to), None if than is None else _rows(than), by, output)


def _rows(vectors: Any) -> Vectors:
    if not isinstance(vectors, Tensor) or not vectors.is_floating_point() or vectors.dim() not in (1, 2):
        got = f"{vectors.dtype} {tuple(vectors.shape)}" if isinstance(vectors, Tensor) else type(vectors).__name__
        raise TargetError(
            f"similarity is to a vector (d) or to one for each picture (b, d); got {got}. What stands for a picture is "
            "its embedding: cl.similar(cl.embed(model, picture))."
        )
    found = full(vectors.detach().clone())
    found = found[None] if found.dim() == 1 else found
    if not bool(found.isfinite().all()) or bool((found == 0).all(1).any()):
        raise TargetError("a vector to be similar to is all zero, or not finite: it has no direction.")
    return found


def _unfit(pictures: str, vectors: Vectors) -> TargetError:
    return TargetError(
        f"{pictures} cannot be held against {tuple(vectors.shape)}: give one vector, as long as the model's own "
        "embedding, for all of them, or one for each."
    )


def _cosine(e: Embeddings, to: Vectors) -> Scores:
    found = torch.nn.functional.cosine_similarity(e, to, dim=1)
    top = 1 - 8 * torch.finfo(e.dtype).eps
    return torch.where(found.abs() < top, found, found.detach())  # at its extremes the gradient is rounding noise
