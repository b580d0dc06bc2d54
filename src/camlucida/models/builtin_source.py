"""The model that comes with camlucida, so that a first picture needs nothing else: ``builtin``."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from camlucida.errors import ModelError
from camlucida.models import Model
from camlucida.models import file_source as source

FORM = "builtin"


@dataclass(frozen=True)
class Place:
    """Where the model and the hash of it lie."""

    weights: Path
    digest: Path

    @property
    def there(self) -> bool:
        """Whether both files are there."""
        return self.weights.is_file() and self.digest.is_file()


def place() -> Place:
    """Where they lie in the package.

    >>> place().weights.name
    'builtin.safetensors'
    """
    folder = Path(str(files("camlucida.gap")))
    return Place(folder / "builtin.safetensors", folder / "builtin.sha256")


def names() -> Iterable[str]:
    """The empty name, where the model is there: ``builtin`` says it all."""
    return [""] if place().there else []


def build(rest: str, weights: str | None, partial: bool) -> Model:
    """The built-in model, its file checked against the hash that is known of it.

    Raises: ModelError where it is not there, or spoilt.
    """
    if weights is not None:
        raise ModelError("the built-in model has its own weights: leave weights= out.")
    at = place()
    if not at.there:
        raise ModelError(
            "this copy of camlucida comes without its built-in model: name another, timm/NAME or FILE.py:CALLABLE, or "
            "train one (camlucida train) and load it as file:PATH."
        )
    known = at.digest.read_text(encoding="ascii", errors="replace").split()[:1]
    with open(at.weights, "rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if known != [found]:
        raise ModelError(
            f"the built-in model's file is not the one that belongs to this version (sha256 {found[:12]}): install "
            "camlucida again."
        )
    made = source.build(str(at.weights), None, partial)
    made.name = rest or FORM
    return made
