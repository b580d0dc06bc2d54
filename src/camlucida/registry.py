"""The one list of methods: what is true of each, read by the CLI, the docs, the tests and later the web page.

A method is a pure function put here by a decorator, one file a family in `camlucida.methods`; nobody lists methods by
hand. It *reads* what one run left (``(act, grad) -> map``; ``act -> map`` where it needs no gradient), or it *asks* the
model again (``scorer -> maps``).
"""

import inspect
import pkgutil
from ast import literal_eval
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from camlucida import methods as families
from camlucida.errors import MethodError, did_you_mean
from camlucida.types import Act, Ask, Weights

AtGap = Callable[[Weights, Act], Weights]
Needs = Literal["gradient", "head", "activation", "model", "attention"]


@dataclass(frozen=True)
class Method:
    """A method and what is true of it.

    ``needs``: the ``gradient`` of the score, a linear ``head``, the ``activation`` alone, the ``model`` to be asked
    again, or its ``attention``. ``at`` is where it works if no layer is named: the ``layer`` that is found, or the
    ``input``. ``at_gap`` is the closed form of a gradient method on a global-average-pool + linear head: from the
    (spatially constant) gradient ``t b c`` and the activation to the channel weights ``t b c`` whose sum over ``act``
    is the map. ``read`` is the function itself: a `Read`, an `Ask`, or a function of the activation alone.
    ``homogeneous``: a gradient twice as large makes a map twice as large, so that a map far below gradient
    × activation is rounding noise. ``by_place``: the same map from the derivatives
    along each place, one pass for all classes. ``differentiable``: `supervised` may train
    through it. ``answers_only``: it asks for nothing but the answers to other pictures, so that a model may hide its
    layers and gradients. ``insensitive`` names the sanity checks that it is known to fail.
    """

    name: str
    read: Callable[..., Any]
    title: str
    paper: str
    formula: str
    needs: Needs = "gradient"
    at: Literal["layer", "input"] = "layer"
    class_agnostic: bool = False
    homogeneous: bool = True
    differentiable: bool = True
    answers_only: bool = False
    cost: str = "1 + tail"
    deviations: str = "none"
    insensitive: str = ""
    at_gap: AtGap | None = None
    by_place: "Ask | None" = None
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, *given: Any) -> Float[Tensor, "..."]:
        found: Tensor = self.read(*given, **dict(self.options))
        return found

    @property
    def asks(self) -> bool:
        """Whether it asks the model again, picture by picture."""
        return self.needs in ("model", "attention")

    @property
    def label(self) -> str:
        """The name with the options it was given, as `get` reads it back."""
        return ":".join([self.name, *(f"{k}={v}" for k, v in self.options)])

    @property
    def choices(self) -> dict[str, Any]:
        """The options it can be given, with their defaults."""
        found = inspect.signature(self.read).parameters.values()
        return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY}

    def having(self, **options: Any) -> "Method":
        """The same method with other options. Raises: MethodError for one that it does not have.

        >>> get("gradcam").having(sharp=True)
        Traceback (most recent call last):
            ...
        camlucida.errors.MethodError: Grad-CAM has no option 'sharp'; it has none.
        """
        fitted = {name: self._fitted(name, value) for name, value in options.items()}
        kept = {**dict(self.options), **fitted}
        return replace(self, options=tuple(sorted(kept.items())), at_gap=None) if options else self

    def _fitted(self, name: str, value: Any) -> Any:
        """An option's value in the type of its default."""
        known = self.choices
        if name not in known:
            told = f".{did_you_mean(name, known, show=9)}" if known else "; it has none."
            raise MethodError(f"{self.title} has no option {name!r}{told}")
        kind = type(known[name])
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if known[name] is not None and type(value) is not kind:
            raise MethodError(f"{self.title}: {name} is {kind.__name__}, as {known[name]!r}; got {value!r}.")
        return value


_METHODS: dict[str, Method] = {}


def register(name: str, **facts: object) -> Callable[[Any], Any]:
    """Put a function into the registry under ``name``; a name taken twice is an error.

    Its keyword-only parameters, with defaults, are the options that a user may set.

    >>> from camlucida.registry import get
    >>> get("gradcam").paper
    'selvaraju2017'
    """

    def add(read: Any) -> Any:
        if name in _METHODS:
            raise MethodError(f"a method named {name!r} is registered already: choose another name.")
        _METHODS[name] = Method(name=name, read=read, **facts)  # type: ignore[arg-type]
        return read

    return add


def list_methods() -> dict[str, Method]:
    """Every method by name, family by family."""
    for room in pkgutil.iter_modules(families.__path__):
        if not room.name.startswith("_"):
            import_module(f"{families.__name__}.{room.name}")
    return dict(sorted(_METHODS.items(), key=lambda item: item[1].read.__module__))  # whichever was imported first


def get(name: "str | Method") -> Method:
    """The method called ``name``; ``grad-cam``, ``Grad_CAM`` and ``gradcam`` are the same name.

    Options follow after colons: ``rise:samples=500``.

    Raises: MethodError, with the nearest names, where there is none.
    """
    if isinstance(name, Method):
        return name
    if not isinstance(name, str):
        told = did_you_mean("", list_methods())
        raise MethodError(f"a method is asked for by its name; got {type(name).__name__}.{told}")
    first, *options = name.split(":")
    plain = first.lower().translate(str.maketrans("", "", "-_ /")).replace("++", "pp")
    known = _METHODS if plain in _METHODS else list_methods()  # which looks through the folder of families
    if plain not in known:
        raise MethodError(f"there is no method {first!r}.{did_you_mean(plain, known)}")
    return known[plain].having(**dict(map(_option, options)))


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise MethodError(f"an option is name=value, as in rise:samples=500; got {text!r}.")
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return name.strip(), words[value.lower()]
    try:
        return name.strip(), literal_eval(value)
    except (ValueError, SyntaxError):
        return name.strip(), value
