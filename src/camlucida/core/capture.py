"""One forward pass and the gradients at the layers asked for: the only file that knows hooks.

The layers before the earliest captured one run without a graph; at the captured layer the activation becomes a leaf
and recording begins, so that memory and backward pass cost only what follows it. Nothing is ever accumulated into
``.grad``: ``autograd.grad`` at the captured tensors is all that runs, which is also what makes many threads on one
model safe.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from camlucida.core.gradients import bend as bend
from camlucida.core.gradients import full as full
from camlucida.core.gradients import vjp as vjp
from camlucida.core.inputs import Inputs as Inputs
from camlucida.core.outputs import chosen
from camlucida.core.scope import moved_on, named, plain_checkpoints, untouched, unwrap
from camlucida.core.structure import feature, swap, tensors
from camlucida.errors import LayerError

R = TypeVar("R")
_LOCK = threading.Lock()  # torch numbers its hooks without a lock: two threads could be given the same number


@dataclass(frozen=True)
class Call:
    """One call of one module during a forward pass: what came in first, what went out, in the order of ending.

    ``leaf`` is where recording began anew at what it gave without a gradient.
    """

    name: str
    module: nn.Module
    given: Tensor | None
    made: Any
    feature: Tensor | None
    leaf: Tensor | None = None


class _Unseen(LayerError):
    """Raised where recording from the input on may still see what a pass without gradients hides."""


@dataclass(frozen=True)
class Tape:
    """What one forward pass left. Valid inside ``run`` only: its tensors hold the graph."""

    output: Any
    acts: dict[str, Tensor]
    calls: tuple[Call, ...]
    seconds: float

    def gradients(self, at: Tensor, along: Tensor, names: Sequence[str], last: bool = True) -> dict[str, Tensor]:
        """``along · ∂at/∂A`` at each named layer, in the layer's own shape; ``along`` is ``t`` directions of ``at``.

        Raises: LayerError where ``at`` does not depend on a layer.
        """
        found = vjp(at, along, [self.acts[n] for n in names], keep=not last)
        kept = {n: g for n, g in zip(names, found, strict=True) if g is not None}
        if off := [n for n in names if n not in kept]:
            raise _Unseen(f"layer {off[0]!r} ran, but the score does not depend on it")
        return kept

    def flow(self, score: Float[Tensor, ""], calls: Sequence[Call]) -> list[Tensor | None]:
        """The gradient of one number at what each call made; None where it does not depend on it.

        Costs what lies behind the first of the calls. The graph stays, for `trace` to read.
        """
        made = [c.feature for c in calls]
        at = [m for m in made if m is not None and m.requires_grad]
        grads = iter(torch.autograd.grad(score, at, retain_graph=True, allow_unused=True) if at else ())
        return [next(grads) if m is not None and m.requires_grad else None for m in made]


# --------------------------------------------------------------------------------------------------------- the pass


@dataclass(frozen=True)
class How:
    """How to run: ``put`` are activations to go on from in place of what a layer gave, in its own shape, with as many
    rows as are wanted from there on, ``spent`` where nobody needs them afterwards; without ``graph`` nothing is
    recorded; ``whole`` records from the input on, for models whose layers hide from a pass without gradients.
    """

    put: Mapping[str, Tensor] = field(default_factory=dict)
    spent: bool = False
    graph: bool = True
    whole: bool = False


class _Watch:
    """Collects one thread's calls of the watched modules; every other thread's pass through it unseen."""

    def __init__(self, names: Mapping[nn.Module, str], layers: Sequence[str], how: "How") -> None:
        self.thread, self.live, self.whole, self.how = threading.get_ident(), True, how.whole, how
        self.names, self.layers = names, set(layers)
        self.acts: dict[str, Tensor] = {}
        self.calls: list[Call] = []
        self.times: dict[str, int] = {}
        self.shared: set[str] = set()

    def __call__(self, module: nn.Module, args: Any, *rest: Any) -> Any:
        # rest is (kwargs, made), or (made,) in another thread that meets the hook while it is half put in.
        if not self.live or threading.get_ident() != self.thread:
            return None
        kwargs, made = rest
        name, tensor = self.names[module], feature(made)
        given = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if name not in self.layers:
            return self._note(Call(name, module, given, made, tensor))
        self.times[name] = self.times.get(name, 0) + 1
        if name in self.acts or tensor is None:
            return None
        if not self.whole and sum(v.is_floating_point() for v in tensors(made)) > 1:
            self.shared.add(name)  # what it gave beside the feature may hold it, too: only a whole graph shows that
        other = self.how.put.get(name)
        if other is None:
            act = _leaf(tensor, given)
        else:  # without a graph it may carry a tangent, which must not be cut off
            act = other.to(tensor).detach().requires_grad_() if self.how.graph else other.to(tensor)
        self.acts[name] = act
        torch.set_grad_enabled(self.how.graph)
        return swap(made, tensor, act if self.how.spent else act.clone())  # what follows may write in place

    def _note(self, call: Call) -> Any:
        """Note a call; where its author switched gradients off, go on recording from what it gave."""
        if self.whole and call.feature is not None and not call.feature.requires_grad:
            leaf = call.feature.detach().requires_grad_()
            torch.set_grad_enabled(True)
            fresh = leaf.clone()
            made = swap(call.made, call.feature, fresh)
            self.calls.append(dataclasses.replace(call, made=made, feature=fresh, leaf=leaf))
            return made
        self.calls.append(call)
        return None


def _leaf(tensor: Tensor, given: Tensor | None) -> Tensor:
    """The activation as the tensor that gradients are taken at."""
    if tensor.requires_grad:
        return tensor
    shared = given is not None and given.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    own = tensor.clone() if shared or tensor.is_inference() else tensor  # an in-place layer's input lives on elsewhere
    return own.detach().requires_grad_()


@contextmanager
def _hooked(modules: Collection[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    try:
        with _LOCK:
            for module in modules:
                module.register_forward_hook(hook, with_kwargs=True)
        yield
    finally:
        with _LOCK:
            for module in modules:
                _unhook(module, hook)


def _unhook(module: nn.Module, watch: Callable[..., Any]) -> None:
    # By what is there rather than by handles: an interrupt may fall between putting a hook in and noting its handle.
    for number in [n for n, h in list(module._forward_hooks.items()) if h is watch]:
        for table in (module._forward_hooks, module._forward_hooks_with_kwargs, module._forward_hooks_always_called):
            table.pop(number, None)


def watched(module: nn.Module) -> bool:
    """Whether hooks of somebody else's are on a module."""
    tables = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(not isinstance(hook, _Watch) for table in tables for hook in list(table.values()))


@contextmanager
def noted(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the layers give in this thread's passes inside, graph and modes left as they are: for training loops.

    In-place operations that follow must not spoil what was noted, so each layer's output goes on as a copy.
    """
    names = {m: n for n, m in named(unwrap(model)).items() if n in layers}
    found: dict[str, Tensor] = {}
    here = threading.get_ident()

    def note(module: nn.Module, *rest: Any) -> Any:
        made = rest[-1]  # after args and, once the hook is whole, kwargs
        if threading.get_ident() != here or (tensor := feature(made)) is None:
            return None
        if names[module] in found:
            raise LayerError(f"layer {names[module]!r} ran twice in one forward pass, so its map would be ambiguous")
        if not tensor.requires_grad:  # all that comes before is frozen
            tensor, made = (fresh := tensor.detach().requires_grad_()), swap(made, tensor, fresh)
        found[names[module]] = tensor
        return swap(made, tensor, tensor.clone())

    with _hooked(names, note):
        yield found


@contextmanager
def run(
    model: nn.Module, inputs: Inputs, layers: Sequence[str], *, spy: Sequence[str] = (), how: How | None = None
) -> Iterator[Tape]:
    """Run ``model`` once and hold the graph behind ``layers`` while inside; the model is left as it was.

    ``layers`` are dotted names, or ``"input"``; ``spy`` names modules whose calls are only noted.

    Raises: LayerError where a layer ran twice, never, or gave no tensor with space.
    """
    net = unwrap(model)
    modules = named(net)
    missing = [n for n in layers if n != "input" and n not in modules]
    if missing:
        raise LayerError(f"this model has no layer {missing[0]!r} any more")
    watched = {modules[n]: n for n in (*spy, *layers) if n != "input"}
    known = {n: watched[modules[n]] if n in modules else n for n in layers}  # one module may be asked for by two names
    how = how or How()
    watch = _Watch(watched, list(known.values()), how)
    with untouched(net, inputs.x.device):
        inputs = inputs.map(lambda v: v.detach().clone())  # a model that writes into its input writes into a copy
        if how.graph and (how.whole or "input" in layers):
            inputs = _recorded(inputs, watch, layers)
        try:
            with _hooked(watched, watch), plain_checkpoints():
                start = clock(inputs.x.device)
                output = call(net, inputs)
                seconds = clock(inputs.x.device) - start
        finally:
            watch.live = False
            moved_on(net)
        _check(watch, list(known.values()))
        torch.set_grad_enabled(how.graph)
        yield Tape(output, {n: watch.acts[name] for n, name in known.items()}, tuple(watch.calls), seconds)


def read(model: nn.Module, inputs: Inputs, layers: Sequence[str], reader: Callable[[Tape], R]) -> R:
    """``reader(tape)`` of one forward pass; only where a layer hides from it, of a second one with a whole graph."""
    try:
        with run(model, inputs, layers) as tape:
            return reader(tape)
    except _Unseen:
        with run(model, inputs, layers, how=How(whole=True)) as tape:
            return reader(tape)


def clock(device: torch.device) -> float:
    """Seconds, once everything queued on the device is done."""
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device).synchronize(device)
    return time.perf_counter()


def call(net: nn.Module, inputs: Inputs) -> Any:
    """What is meant of the model's own answer, past a ``net.compile()`` that would not see hooks."""
    compiled = getattr(net, "_compiled_call_impl", None) is not None
    made = (net._call_impl if compiled else net)(*inputs.args, **inputs.kwargs)  # type: ignore[no-untyped-call]
    return chosen(made, inputs.output)


def _recorded(inputs: Inputs, watch: _Watch, layers: Sequence[str]) -> Inputs:
    leaf = inputs.x.clone().requires_grad_()
    torch.set_grad_enabled(True)
    if "input" in layers:
        watch.acts["input"] = leaf
    return inputs.put(leaf.clone())


def _check(watch: _Watch, layers: Sequence[str]) -> None:
    for name in (n for n in layers if n != "input"):
        times = watch.times.get(name, 0)
        if times == 0:
            raise _Unseen(f"layer {name!r} did not run in this forward pass")
        if times > 1:
            raise LayerError(f"layer {name!r} ran {times} times in one forward pass, so its map would be ambiguous")
        if name in watch.shared:
            raise _Unseen(f"layer {name!r} gave several tensors, and the score depends on more than the first")
        if name not in watch.acts:
            raise LayerError(f"layer {name!r} gave no floating-point tensor with room for places")
