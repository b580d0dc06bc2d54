"""The vocabulary of the house as types: every public function speaks in these.

Letters mean the same everywhere: ``b`` pictures, ``c`` channels, ``*space`` one axis for a signal, two for a
picture, three for a volume, ``t`` targets, ``k`` classes. Shapes are enforced in the tests and cost nothing outside.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

if TYPE_CHECKING:
    from camlucida.frame import Preprocess

Act: TypeAlias = Float[Tensor, "b c *space"]
"""What a layer gave, channels first."""

Map: TypeAlias = Float[Tensor, "b *space"]
"""Raw signed evidence at the layer's own resolution."""

Scores: TypeAlias = Float[Tensor, " b"]
"""One number a picture: what is explained."""

Weights: TypeAlias = Float[Tensor, "t b c"]
"""One weight a channel, for each target and picture."""

Output: TypeAlias = Any
"""Whatever the model returns: a tensor, tuple, dict or dataclass."""

Target: TypeAlias = Callable[[Output], Scores]
"""What is explained, one score a picture."""

Layout: TypeAlias = Callable[[Tensor], Act]
"""How whatever a layer gave becomes channels first."""

Read: TypeAlias = Callable[[Act, Act], Map]
"""A method that reads what one run left: (activation, gradient) → map."""

Ask: TypeAlias = "Callable[[Scorer], Float[Tensor, 't *space']]"
"""A method that asks the model again, about one picture: its maps of all targets."""

Make: TypeAlias = Callable[[Int[Tensor, " m"]], Tensor]
"""Makes the rows of these numbers when their turn comes, so that not all of them exist at once; anew each time, for
what follows may write into them."""


@dataclass(frozen=True)
class Attention:
    """How one picture's tokens attend to each other, block by block, and the slopes of ``m`` scores there.

    ``probs`` ``h n n`` (heads, asking, answering) and ``grads`` ``m h n n``, none where no score was asked for.
    ``reads`` is the share of each token in what the model reads out: all of it the class token's, say. The last tokens
    are the places of the ``grid``. ``inside`` are the last block's queries, keys and values ``h n d``, and the gradient
    ``m h n d`` at the values it gathered; empty where they cannot be told.
    """

    probs: tuple[Float[Tensor, "_ n n"], ...]
    grads: tuple[Float[Tensor, "m _ n n"], ...]
    reads: Float[Tensor, " n"]
    grid: tuple[int, ...]
    inside: tuple[Tensor, ...] = ()

    def map(self, row: Float[Tensor, "m n"]) -> Float[Tensor, "m *grid"]:
        """A number a token as a map: what comes before the places is dropped.

        >>> import torch
        >>> Attention((), (), torch.ones(7) / 7, (2, 3)).map(torch.zeros(4, 7)).shape
        torch.Size([4, 2, 3])
        """
        return row[:, row.shape[1] - math.prod(self.grid) :].reshape(len(row), *self.grid)


@runtime_checkable
class Scorer(Protocol):
    """One picture, one layer, ``t`` targets, and everything a method may ask the model again.

    ``x`` ``ch *full`` is the picture, ``act`` ``c *space`` what the layer gave, ``base`` ``t`` the scores. The classes
    of the targets stay those of the undisturbed picture. ``slope`` ``t c *space`` is the gradient where the scores are
    *proved* to be linear in the activation, else None. ``random`` gives the same numbers in every call.
    """

    x: Tensor
    act: Tensor
    base: Tensor
    slope: Tensor | None
    random: Generator

    def at_layer(self, count: int, make: Make) -> Float[Tensor, "t n"]:
        """The scores with ``n = count`` other activations ``n c *space``: only what follows the layer runs for each."""

    def at_input(self, count: int, make: Make) -> Float[Tensor, "t n"]:
        """The scores of ``n = count`` other pictures ``n ch *full``."""

    def slopes(self, acts: Float[Tensor, "n c *space"], rule: str = "") -> Float[Tensor, "t n c *space"]:
        """The gradients of the scores at other activations, under a ``rule`` for rectifiers."""

    def along(self, count: int, make: Make) -> Float[Tensor, "t n"]:
        """How fast the scores change along ``n = count`` directions ``n c *space`` from the activation.

        Raises: NotImplementedError where what follows has no forward mode.
        """

    def bend(self, along: Float[Tensor, "t c *space"]) -> Float[Tensor, "t c *space"]:
        """The Hessian of each score at the activation times a direction."""

    def reads(self, xs: Tensor) -> tuple[Float[Tensor, "n c *space"], Float[Tensor, "t n c *space"]]:
        """What the layer gives for other pictures ``n ch *full``, and the gradients there."""

    def pixels(self, xs: Tensor, rule: str = "") -> Tensor:
        """The gradients ``t n ch *full`` at the pixels of other pictures, under a ``rule`` for rectifiers."""

    def flow(self, read: Callable[[list[Tensor], Tensor], Tensor], curved: bool = False) -> Tensor:
        """``read(terms, rest)`` of each target: what adds up to the score, normalisation and attention apart.

        ``terms`` are ``c *places`` each: activation times gradient first, then each bias times the gradient where it
        is added, and, if ``curved``, what nonlinearities add to their tangents; ``rest`` is the sum of all others.
        """

    def attend(
        self, read: Callable[["Attention"], Tensor], last: int = 0, score: str = "output"
    ) -> Float[Tensor, "t *space"]:
        """What ``read`` makes ``m *space`` of the attention of the last blocks (0: all), some targets at a time.

        ``score`` is whose gradients: the ``output``'s; at each ``block`` that of the score which the model's end gives
        to the mean of this block's tokens; or ``none``.
        """

    def alone(self) -> nn.Module:
        """A copy of the model that may be spoiled, from pictures ``n ch *full`` to the scores ``n t``."""


@runtime_checkable
class Loaded(Protocol):
    """A model that knows its preprocessing and the names of its classes, as `camlucida.load` returns it.

    Its forward is that of its net; ``only_carries`` says so, for a net of one's own may have attributes of these names.
    """

    only_carries: bool

    net: nn.Module
    preprocess: "Preprocess"
    labels: tuple[str, ...]
