"""Where a model adds a constant: biases, and what normalisation with running statistics adds without calling it one.

A function mode of torch sees every such operation that this thread calls, in modules that join several of them and in
plain functions alike. On its way an output goes on as a copy, so that what is noted is what the operation gave even
where the next one writes in place.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from camlucida.core.gradients import steep
from camlucida.errors import MethodError
from camlucida.types import Layout


@dataclass(frozen=True)
class Bias:
    """``bias`` was added to get ``made``, to which it broadcasts; ``axis`` holds the channels, None where unclear.

    ``curved``: it is no constant but what a nonlinearity ``f`` adds to its tangent here, ``f(x) − f'(x) x``.
    """

    made: Tensor
    bias: Tensor
    axis: int | None
    curved: bool = False


_Given = Mapping[str, Any]
_Added = tuple[Tensor, int] | None  # one number a channel, and the axis of the channels


def _conv(given: _Given) -> _Added:
    return None if given["bias"] is None else (given["bias"], 1)


def _linear(given: _Given) -> _Added:
    return None if given["bias"] is None else (given["bias"], -1)


def _normal(given: _Given) -> _Added:
    """``β`` of group and layer normalisation, and of any that takes the picture's own statistics."""
    bias, axis = given["bias"], -1 if "normalized_shape" in given else 1
    return None if bias is None or bias.dim() != 1 else (bias, axis)


def _running(given: _Given) -> _Added:
    """``β − γ μ/√(σ² + ε)``: with running statistics normalisation is affine, and this is what it adds."""
    mean, var = given["running_mean"], given["running_var"]
    if mean is None or given.get("training") or given.get("use_input_stats"):
        return _normal(given)
    shift = -mean * torch.rsqrt(var + given["eps"])
    shift = shift if given["weight"] is None else shift * given["weight"]
    return shift if given["bias"] is None else shift + given["bias"], 1


_CONVS = [getattr(torch, f"conv{kind}{n}d") for kind in ("", "_transpose") for n in (1, 2, 3)]
_NAMES = {f: ("input", "weight", "bias") for f in [*_CONVS, F.linear]} | {  # builtins do not tell their signature
    torch.group_norm: ("input", "num_groups", "weight", "bias"),
    torch.layer_norm: ("input", "normalized_shape", "weight", "bias"),
    torch.batch_norm: ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
}
_KINDS: dict[Any, Callable[[_Given], _Added]] = {f: _conv for f in _CONVS} | {
    F.linear: _linear, F.batch_norm: _running, torch.batch_norm: _running, F.instance_norm: _running,
    F.group_norm: _normal, torch.group_norm: _normal, F.layer_norm: _normal, torch.layer_norm: _normal,
}  # fmt: skip
_SUMS: dict[str, tuple[Callable[[Any, Any], Tensor], int]] = {  # out of place, and the sign of what comes second
    "add": (torch.add, 1), "add_": (torch.add, 1), "__iadd__": (torch.add, 1), "sub": (torch.sub, -1),
    "sub_": (torch.sub, -1), "__isub__": (torch.sub, -1), "rsub": (torch.rsub, 1), "__rsub__": (torch.rsub, 1),
}  # fmt: skip

_CURVED = frozenset(  # each number by itself; ReLU, leaky ReLU and PReLU add nothing to their tangents
    "relu6 hardtanh clamp clip clamp_min clamp_max threshold hardswish hardsigmoid sigmoid tanh silu gelu mish "
    "softplus log_sigmoid elu selu celu exp log sqrt pow square erf".split()
)


def _arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Given:
    if func in _NAMES:
        return {"bias": None, "weight": None} | dict(zip(_NAMES[func], args, strict=False)) | dict(kwargs)
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


class _Mode(TorchFunctionMode):
    def __init__(self, found: list[Bias]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in _SUMS and len(args) == 2 and not given:
            return self._sum(func, name, *args)
        if name.strip("_") in _CURVED and args and _flows(args[0]):
            return self._bent(func, *args, **given)
        made = func(*args, **given)
        if func not in _KINDS or not _flows(made):
            return made
        added = _KINDS[func](_arguments(func, args, given))
        return made if added is None else self._noted(made, *added)

    def _sum(self, func: Any, name: str, one: Any, two: Any) -> Any:
        """A sum of something that depends on the picture and something that does not."""
        first, (plain, sign) = _flows(one), _SUMS[name]
        if first == _flows(two) or not (first or name in ("add", "sub")):
            return func(one, two)
        made = plain(one, two)
        constant, sign = (two, sign) if first else (one, 1)
        bias = (constant if isinstance(constant, Tensor) else made.new_tensor(constant)).to(made) * sign
        wide = [a for a, n in enumerate(bias.shape, made.dim() - bias.dim()) if n > 1]
        on = self._noted(made, bias, wide[0] if len(wide) == 1 else None)
        return one.copy_(on) if name.endswith("_") else on

    def _bent(self, func: Any, x: Tensor, *rest: Any, **given: Any) -> Tensor:
        """A nonlinearity of single numbers, taken as its tangent."""
        probe = x.clone()
        made = func(probe, *rest, **given)
        with torch.enable_grad():
            fresh = x.detach().clone().requires_grad_()
            slope = steep(func(fresh.clone(), *rest, **given).sum(), fresh)
        slope = torch.zeros_like(x) if slope is None else slope.detach()
        before = next((b.axis for b in reversed(self.found) if b.made.shape == made.shape), None)
        self.found.append(Bias(made, made.detach() - slope * x.detach(), before, curved=True))
        return x.copy_(made.clone()) if made is probe else made.clone()

    def _noted(self, made: Tensor, bias: Tensor, axis: int | None) -> Tensor:
        bias = bias.detach()
        if bias.dim() == 1 and axis is not None:
            bias = bias.reshape(-1, *(1,) * (made.dim() - 1 - axis % made.dim()))
        self.found.append(Bias(made, bias, axis))
        return made.clone()


def _flows(value: Any) -> bool:
    """Whether it depends on the recorded tensor: its graph ends in a leaf that is no parameter."""
    waiting = [value.grad_fn] if isinstance(value, Tensor) and value.grad_fn is not None else []
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter):
            return True
        # The first of an operation's inputs is what flows, mostly: popped first, it is soon followed to its leaf.
        waiting.extend(n for n, _ in reversed(node.next_functions) if n is not None)
    return False


@contextmanager
def biases(found: list[Bias]) -> Iterator[None]:
    """Notes what this thread's operations inside add to what depends on a recorded tensor, in the order of running.

    >>> net, x, found = torch.nn.Conv1d(1, 2, 1), torch.zeros(1, 1, 3, requires_grad=True), []
    >>> with biases(found):
    ...     made = net(x)
    >>> torch.equal(found[0].bias.flatten(), net.bias), tuple(found[0].made.shape)
    (True, (1, 2, 3))
    """
    with _Mode(found):
        yield


def placed(term: Tensor, axis: int | None, like: Tensor, layout: Layout) -> Tensor | None:
    """The term of one bias of one picture as ``c *space``; None where it has no places, or no axis of channels.

    ``like`` is what the explained layer gave, ``layout`` how its axes are read: tokens are read as the layer's own.

    Raises: MethodError where its places are tokens or windows that no grid is known of.
    """
    if term.dim() < 3:
        return None
    if (
        len(term) == 1
        and term.dim() == like.dim()
        and term.shape[1:-1] == like.shape[1:-1]
        and layout(like) is not like
    ):
        return layout(term)[0]  # beside the layer, in its own axes
    if len(term) == 1 and term.dim() == len(layout(like).shape):
        return None if axis is None else term.movedim(axis, 1)[0]
    raise MethodError(
        f"this model holds places as tokens or windows {tuple(term.shape)} that no grid is known of from here, so what "
        "its biases add cannot be laid over the picture: name a layer behind which all tokens are the layer's own, or "
        "use a method for one layer, such as 'gradcam' or 'hirescam'."
    )


def terms(
    grads: Sequence[Tensor | None],
    found: Sequence[Bias],
    place: Callable[[Tensor, int | None], Tensor | None],
    curved: bool,
) -> tuple[list[Tensor], Tensor]:
    """Each bias times the gradient where it is added: those that ``place`` finds places for, and the others' sum."""
    flowing = [(g * b.bias.to(g), b) for g, b in zip(grads, found, strict=True) if g is not None]
    shown = [place(t, b.axis) if curved or not b.curved else None for t, b in flowing]
    hidden = [t.sum() for (t, _), s in zip(flowing, shown, strict=True) if s is None]
    return [s for s in shown if s is not None], sum(hidden, torch.zeros(()))
