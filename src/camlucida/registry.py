"""The one list of methods: what is true of each, read by the CLI, the docs, the tests and later the web page.

A method is a pure function ``(act, grad) -> map`` put here by a decorator; nobody lists methods by hand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from camlucida.errors import MethodError, did_you_mean
from camlucida.types import Act, Read, Weights

AtGap = Callable[[Weights, Act], Weights]
_ROOMS = ("camlucida.methods.gradient", "camlucida.methods.head")


@dataclass(frozen=True)
class Method:
    """A method and what is true of it.

    ``at_gap`` is its closed form on a global-average-pool + linear head: from the (spatially constant) gradient
    ``t b c`` and the activation to the channel weights ``t b c`` whose sum over ``act`` is the map. It turns a
    thousand classes into one product; the tests prove it equal to ``read``. ``homogeneous``: a gradient twice as large
    makes a map twice as large, so that a map far below gradient × activation is rounding noise.
    """

    name: str
    read: Read
    title: str
    paper: str
    formula: str
    needs: Literal["gradient", "head"] = "gradient"
    class_agnostic: bool = False
    homogeneous: bool = True
    cost: str = "1 + tail"
    deviations: str = "none"
    at_gap: AtGap | None = None

    def __call__(self, act: Act, grad: Act) -> Float[Tensor, "b *space"]:
        return self.read(act, grad)


_METHODS: dict[str, Method] = {}


def register(name: str, **facts: object) -> Callable[[Read], Read]:
    """Put a function into the registry under ``name``; a name taken twice is an error.

    >>> from camlucida.registry import get
    >>> get("gradcam").paper
    'selvaraju2017'
    """

    def add(read: Read) -> Read:
        if name in _METHODS:
            raise MethodError(f"a method named {name!r} is registered already: choose another name.")
        _METHODS[name] = Method(name=name, read=read, **facts)  # type: ignore[arg-type]
        return read

    return add


def list_methods() -> dict[str, Method]:
    """Every method by name, in the order of their rooms."""
    for room in _ROOMS:
        import_module(room)
    return dict(_METHODS)


def get(name: "str | Method") -> Method:
    """The method called ``name``; ``grad-cam``, ``Grad_CAM`` and ``gradcam`` are the same name.

    Raises: MethodError, with the nearest names, where there is none.
    """
    if isinstance(name, Method):
        return name
    known = list_methods()
    if not isinstance(name, str):
        raise MethodError(f"a method is asked for by its name; got {type(name).__name__}.{did_you_mean('', known)}")
    plain = name.lower().translate(str.maketrans("", "", "-_ ")).replace("++", "pp")
    if plain not in known:
        raise MethodError(f"there is no method {name!r}.{did_you_mean(plain, known)}")
    return known[plain]
