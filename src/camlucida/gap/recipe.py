"""What a training run is, in numbers: everything that decides about its result but the pictures and the net."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from camlucida.errors import InputError, did_you_mean
from camlucida.files import printable
from camlucida.gap.augment import Augment

_BOUNDS = {
    "size": (8, 4096), "epochs": (1, 1_000_000), "batch": (2, 1_000_000), "lr": (1e-9, 1e4), "weight_decay": (0, 1e4),
    "patience": (0, 1_000_000), "trunk": (0, 1e4), "seed": (0, 10**12),  # a larger one has no seed for each epoch
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How to train. ``size`` is the side of the views in pixels, ``warmup`` the share of all steps in which the rate
    of learning rises to ``lr``, from where it falls along a cosine; ``trunk`` multiplies the rate of what comes before
    the head; ``smoothing`` is the share of a target spread over all classes; ``balance`` draws each class's pictures
    in proportion to ``count^(1 − balance)``; ``average`` is the decay of the moving average of the weights, which are
    the ones that are kept; ``patience`` is the number of epochs without a better one after which to stop (0: never).

    Raises: InputError for a value that makes no sense.

    >>> Recipe(epochs=3).lr
    0.002
    """

    size: int = 128
    epochs: int = 60
    batch: int = 64
    optimizer: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    trunk: float = 1.0
    smoothing: float = 0.1
    balance: float = 0.0
    average: float = 0.998
    patience: int = 0
    seed: int = 0
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} must be {low} or more, {high:g} at most; it is {getattr(self, name)}.")
        for name in ("warmup", "smoothing", "balance", "average"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a share, from 0 to 1; it is {getattr(self, name)}.")
        if self.optimizer not in ("adamw", "sgd"):
            raise InputError(f"{self.optimizer!r} is no optimizer.{did_you_mean(self.optimizer, ('adamw', 'sgd'))}")

    def as_dict(self) -> dict[str, Any]:
        """In the types of JSON; `from_dict` reads it back."""
        return asdict(self) | {"augment": asdict(self.augment) | {"area": list(self.augment.area)}}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Recipe":
        """The recipe that `as_dict` wrote; what is not in it is as it is by itself.

        Raises: InputError for what a recipe does not know, or a value of another type.

        >>> Recipe.from_dict(Recipe(lr=0.1).as_dict()) == Recipe(lr=0.1)
        True
        """
        views = told.get("augment", {})
        if not isinstance(views, Mapping):
            raise InputError(f"augment in a recipe is a table of its own; it is {views!r}.")
        rest = {name: value for name, value in told.items() if name != "augment"}
        return cls(**_fitting(cls(), rest), augment=Augment(**_fitting(Augment(), views)))


def _fitting(like: Any, told: Mapping[str, Any]) -> dict[str, Any]:
    """Values for the fields of a dataclass, each in the type of the one that is there."""
    names = [f.name for f in fields(like) if f.name != "augment"]
    if strange := [name for name in told if name not in names]:
        raise InputError(f"a recipe has no {printable(strange[0])!r}.{did_you_mean(strange[0], names)}")
    return {name: _like(getattr(like, name), value, name) for name, value in told.items()}


def _like(own: Any, value: Any, name: str) -> Any:
    if isinstance(own, tuple) and isinstance(value, list | tuple) and len(value) == len(own):
        return tuple(_like(o, v, name) for o, v in zip(own, value, strict=True))
    if isinstance(own, str) and isinstance(value, str):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool) and not isinstance(own, str | tuple)
    with suppress(OverflowError):  # a whole number beyond all real ones
        if number and (isinstance(own, float) or float(value).is_integer()):
            return type(own)(value)
    raise InputError(f"{name} in a recipe is something like {own!r}; it is {repr(value)[:80]}.")
