"""The vocabulary of the house as types: every public function speaks in these.

Letters mean the same everywhere: ``b`` pictures, ``c`` channels, ``*space`` one axis for a signal, two for a
picture, three for a volume, ``t`` targets, ``k`` classes. Shapes are enforced in the tests and cost nothing outside.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

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


@runtime_checkable
class Loaded(Protocol):
    """A model that knows its preprocessing and the names of its classes, as `camlucida.load` returns it.

    Its forward is that of its net; ``only_carries`` says so, for a net of one's own may have attributes of these names.
    """

    only_carries: bool

    net: nn.Module
    preprocess: "Preprocess"
    labels: tuple[str, ...]
