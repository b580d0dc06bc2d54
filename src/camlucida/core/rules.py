"""Other rules for rectifiers in the backward pass: guided backpropagation and the deconvnet, the model untouched.

A function mode of torch sees every rectifier that this thread calls, however it is written: as a module, a function
or a method, in place or not. Each is computed as before and takes the rule when gradients come back through it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from camlucida.errors import MethodError

RULES = {"guided": True, "deconv": False}  # whether the sign of the input counts beside that of the gradient
_INF = float("inf")
_Given = Mapping[str, Any]


def _argument(rest: Sequence[Any], given: _Given, at: int, name: str) -> Any:
    return given.get(name, rest[at] if len(rest) > at else None)


def _clamp(rest: Sequence[Any], given: _Given) -> tuple[Any, Any]:
    return _argument(rest, given, 0, "min"), _argument(rest, given, 1, "max")


def _hardtanh(rest: Sequence[Any], given: _Given) -> tuple[Any, Any]:
    return _argument(rest, given, 0, "min_val"), _argument(rest, given, 1, "max_val")


def _threshold(rest: Sequence[Any], given: _Given) -> tuple[Any, Any]:
    under, value = _argument(rest, given, 0, "threshold"), _argument(rest, given, 1, "value")
    return (under if under == value else None), None


_CALLS: dict[str, Callable[[Sequence[Any], _Given], tuple[Any, Any]]] = {  # to the bounds of what comes out
    "relu": lambda _rest, _given: (0, None), "relu6": lambda _rest, _given: (0, 6),
    "clamp": _clamp, "clip": _clamp, "clamp_min": _clamp, "hardtanh": _hardtanh, "threshold": _threshold,
}  # fmt: skip
_INPLACE = {"relu": 0, "relu6": 0, "hardtanh": 2, "threshold": 2}  # where it stands among the arguments after x


class _Rule(torch.autograd.Function):
    """``min(max(x, 0), high)``; back through it only what is positive, ``guided`` only where ``0 < x < high``, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, high: float, guided: bool) -> Tensor:
        # The mask, not x: what follows, or this call itself, may overwrite x. NaN passes: it must not look like zero.
        ctx.save_for_backward(~((x <= 0) | (x >= high)) if guided else torch.ones_like(x, dtype=torch.bool))
        return x.clamp(0, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (passes,) = ctx.saved_tensors
        return torch.where(passes & ~(grad <= 0), grad, 0), None, None


class _Mode(TorchFunctionMode):
    def __init__(self, guided: bool) -> None:
        super().__init__()
        self.guided, self.seen = guided, 0

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: _Given | None = None) -> Any:
        given, name = dict(kwargs or {}), getattr(func, "__name__", "")
        plain = name.strip("_")
        x, *rest = args or (given.get("input"),)
        if plain not in _CALLS or not isinstance(x, Tensor) or not x.is_floating_point():
            return func(*args, **given)
        low, high = _CALLS[plain](rest, given)
        if not _rectifies(low, high):
            return func(*args, **given)
        self.seen += 1
        if not x.requires_grad:
            return func(*args, **given)
        made = _Rule.apply(x, _INF if high is None else float(high), self.guided)  # type: ignore[no-untyped-call]
        inplace = name.endswith("_") or (plain in _INPLACE and _argument(rest, given, _INPLACE[plain], "inplace"))
        return x.copy_(made) if inplace else made


def _rectifies(low: Any, high: Any) -> bool:
    """Whether nothing below zero passes; bounds that are tensors are no rectifier's."""
    return isinstance(low, int | float) and low == 0 and (high is None or (isinstance(high, int | float) and high > 0))


def under(rule: str) -> AbstractContextManager[None]:
    """`rectifiers`, or nothing at all where no rule is named."""
    return rectifiers(rule) if rule else nullcontext()


@contextmanager
def rectifiers(rule: str) -> Iterator[None]:
    """Every rectifier that this thread calls inside takes ``rule`` in its backward pass, now or later.

    ``guided``: what comes back passes where it is positive and the input was; ``deconv``: where it is positive.
    A rectifier cuts at zero: ReLU in all its spellings, ReLU6 and ``clamp(min=0)``; not SiLU, GELU or leaky ones.

    Raises: MethodError for another rule, and where no rectifier ran, for then there was nothing to guide.

    >>> x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    >>> with rectifiers("guided"):
    ...     y = torch.nn.ReLU()(x) * torch.tensor([1.0, 1.0, -1.0])
    >>> torch.autograd.grad(y.sum(), x)[0].tolist()
    [0.0, 1.0, 0.0]
    """
    if rule not in RULES:
        raise MethodError(f"a rule for rectifiers is one of {', '.join(map(repr, RULES))}; got {rule!r}.")
    with _Mode(RULES[rule]) as mode:
        yield
    if not mode.seen:
        raise MethodError(
            f"this model calls no rectifier (ReLU, ReLU6, clamp at zero), so the {rule} rule has nothing to act on: "
            "its map would be the plain gradient. Use method='gradient' or 'smoothgrad'."
        )
