"""Everything camlucida raises on purpose.

    CamlucidaError
    ├── InputError      what was handed to the model cannot be used
    │   └── PictureError    a picture cannot be read, or is too large to be safe
    ├── ModelError      a model or its weights cannot be loaded, or its output not understood
    ├── LayerError      a layer does not exist, or nothing can be read from it
    │   └── LayoutError     a layer's axes cannot be told apart
    ├── TargetError     what should be explained does not exist in this output
    │   └── AbsentError     it could, but is not in this picture
    ├── MethodError     a method does not exist, or does not apply here
    └── OutputError     a result cannot be written or read back

Catch broadly (`CamlucidaError`), recover narrowly. Each message says what was asked, what was seen and what to do;
`docs/errors/` has a page for each class.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class CamlucidaError(Exception):
    """Root of all errors that camlucida raises on purpose."""


class InputError(CamlucidaError, ValueError):
    """What was handed to the model cannot be used."""


class PictureError(InputError):
    """A picture cannot be read, or is too large to be safe."""


class ModelError(CamlucidaError):
    """A model or its weights cannot be loaded, or its output is not understood."""


class LayerError(CamlucidaError, LookupError):
    """A layer does not exist, or nothing can be read from it."""


class LayoutError(LayerError):
    """The axes of a layer's output cannot be told apart."""


class TargetError(CamlucidaError, ValueError):
    """What should be explained does not exist in this output."""


class AbsentError(TargetError):
    """What should be explained could be there, but is not in this picture."""


class MethodError(CamlucidaError, LookupError):
    """A method does not exist, or does not apply here."""


class OutputError(CamlucidaError, OSError):
    """A result cannot be written or read back."""


def did_you_mean(asked: str, known: Iterable[str], show: int = 4) -> str:
    """``" Did you mean 'layer4', 'layer3'?"`` or, where nothing is close, the first few known names."""
    names = list(known)
    close = get_close_matches(asked, names, n=show, cutoff=0.5)
    if close:
        return f" Did you mean {', '.join(map(repr, close))}?"
    more = ", …" if len(names) > show else ""
    return f" Known: {', '.join(map(repr, names[:show]))}{more}." if names else ""
