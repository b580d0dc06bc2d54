"""The model as it is found is the model as it is left: everything a call changes for its own duration.

Model objects are shared between threads, so a switch that lives on the model or in the process is counted: it is on
while at least one call needs it and goes back when the last one leaves.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import checkpoint

from camlucida.errors import ModelError

F = TypeVar("F")
_LOCK = threading.RLock()
_HERE = threading.local()
_EVALUATING: dict[nn.Module, int] = {}  # modules that calls in flight hold in evaluation mode; empty when none is


def _nothing() -> None:
    """The undo of a switch that nobody has set."""


class _Switch:
    """A process-wide setting that holds while at least one call is inside; ``on`` sets it and returns its undo."""

    def __init__(self, on: Callable[[], Callable[[], object]]) -> None:
        self._on, self._users = on, 0
        self._undo: Callable[[], object] = _nothing

    @contextmanager
    def held(self) -> Iterator[None]:
        inside = False
        try:
            with _LOCK:
                self._users, inside = self._users + 1, True
                if self._users == 1:
                    self._undo = self._on()
            yield
        finally:
            with _LOCK:
                self._users -= inside
                if self._users == 0:
                    undo, self._undo = self._undo, _nothing
                    undo()


def _compile_to_eager() -> Callable[[], object]:
    stance = torch.compiler.set_stance("force_eager")
    return lambda: stance.__exit__(None, None, None)


def _cudnn_off() -> Callable[[], object]:
    was, torch.backends.cudnn.enabled = torch.backends.cudnn.enabled, False
    return lambda: setattr(torch.backends.cudnn, "enabled", was)


class _PlainCheckpoint:
    """Stands in for reentrant checkpointing: for our threads the same numbers with the graph left in the open."""

    real = checkpoint.CheckpointFunction

    @classmethod
    def apply(cls, function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args) if getattr(_HERE, "plain", 0) else cls.real.apply(function, preserve, *args)


def _checkpoints_open() -> Callable[[], object]:
    checkpoint.CheckpointFunction = _PlainCheckpoint  # type: ignore[misc,assignment]
    return lambda: setattr(checkpoint, "CheckpointFunction", _PlainCheckpoint.real)


_EAGER = _Switch(_compile_to_eager)
_NO_CUDNN = _Switch(_cudnn_off)
_OPEN_CHECKPOINTS = _Switch(_checkpoints_open)


@contextmanager
def plain_checkpoints() -> Iterator[None]:
    """Reentrant gradient checkpoints of this thread run as plain code inside: theirs would hide the layer."""
    with _OPEN_CHECKPOINTS.held():
        _HERE.plain = getattr(_HERE, "plain", 0) + 1
        try:
            yield
        finally:
            _HERE.plain -= 1


def unwrap(model: nn.Module) -> nn.Module:
    """The module that does the work inside DataParallel, DistributedDataParallel and ``torch.compile`` wrappers.

    Raises: ModelError where it is no PyTorch module.

    >>> net = nn.Linear(2, 2)
    >>> unwrap(nn.DataParallel(net)) is net
    True
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif (inner := _inner(_open(model))) is not None:
            model = inner
        else:
            return model


def _inner(model: nn.Module) -> nn.Module | None:
    """The module that ``torch.compile`` has wrapped."""
    return model._modules["_orig_mod"] if "_orig_mod" in model._modules else None


def _open(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model is a torch.nn.Module; got {type(model).__name__}.")
    return model


@contextmanager
def one_walk() -> Iterator[None]:
    """Inside, this thread takes every model's modules for the same throughout, and walks through them once."""
    held = getattr(_HERE, "walked", None)
    try:
        _HERE.walked = {} if held is None else held
        yield
    finally:
        _HERE.walked = held


def _walk(find: Callable[[nn.Module], F]) -> Callable[[nn.Module], F]:
    """What a function finds in a model's modules, remembered within `one_walk`."""

    @functools.wraps(find)
    def found(model: nn.Module) -> F:
        known = getattr(_HERE, "walked", None)
        if known is None:
            return find(model)
        if (find, model) not in known:
            known[find, model] = find(model)
        return known[find, model]  # type: ignore[no-any-return]

    return found


def moved_on(model: nn.Module) -> None:
    """Within `one_walk`, after a pass: it may have changed the model's modules."""
    for key in [k for k in getattr(_HERE, "walked", None) or () if k[1] is model]:
        del _HERE.walked[key]


@_walk
def black_box(model: nn.Module) -> str:
    """What a model is whose layers cannot be looked into, in words; nothing where they can.

    TorchScript is, and what holds some; any module of one's own says so by an attribute ``black_box``.

    >>> net = nn.Flatten()
    >>> net.black_box = "a remote service"
    >>> black_box(net), black_box(nn.Flatten())
    ('a remote service', '')
    """
    return _said(model) or (
        "TorchScript" if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()) else ""
    )


def _said(model: nn.Module) -> str:
    said = getattr(model, "black_box", "")
    return said if isinstance(said, str) else ""


@_walk
def named(net: nn.Module) -> dict[str, nn.Module]:
    """Every module by the dotted name its author knows, wrappers left out; the net itself is ``""``, and all there is
    of a black box.

    >>> list(named(nn.Sequential(nn.DataParallel(nn.ReLU()))))
    ['', '0']
    """
    found: dict[str, nn.Module] = {}
    waiting = [] if (hidden := bool(_said(net))) else [("", net)]
    while waiting and not hidden:
        name, module = waiting.pop()
        found[name] = module = unwrap(module)
        hidden = isinstance(module, torch.jit.ScriptModule)
        inner = [(f"{name}.{n}" if name else n, m) for n, m in module._modules.items() if m is not None]
        waiting.extend(reversed(inner))
    return {"": net} if hidden else found


def _compiled(module: nn.Module) -> bool:
    return _inner(module) is not None or module.__dict__.get("_compiled_call_impl") is not None


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Compiled modules run as plain code inside, so that hooks see their layers."""
    with _EAGER.held() if any(map(_compiled, model.modules())) else nullcontext():
        yield


@contextmanager
def _evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Every module in evaluation mode; each goes back to training when the last call that holds it leaves."""
    held: list[nn.Module] = []
    try:
        with _LOCK:
            for m in modules:
                if getattr(m, "training", False) or m in _EVALUATING:  # frozen TorchScript has lost the word
                    held.append(m)  # noted first: an interrupt may fall between any two lines
                    _EVALUATING[m] = _EVALUATING.get(m, 0) + 1
                    m.training = False
        yield
    finally:
        with _LOCK:
            while held:
                _release(held.pop())


def _release(module: nn.Module) -> None:
    count = _EVALUATING.get(module, 0) - 1
    if count > 0:
        _EVALUATING[module] = count
    elif count == 0:
        module.training = True
        del _EVALUATING[module]


@contextmanager
def _same_random(device: torch.device) -> Iterator[None]:
    """A model that draws random numbers even in evaluation mode leaves the generators where they were."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [g.get_state() for g in generators]
    try:
        yield
    finally:
        for generator, before in zip(generators, states, strict=True):
            if not torch.equal(before, generator.get_state()):
                generator.set_state(before)


@contextmanager
def untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Run a model inside without leaving a trace: gradients off, evaluation mode, eager, and all of it undone.

    Outside modes do not matter (``no_grad``, ``inference_mode``, a training loop); autocast is kept, for it is part
    of what the caller asks of the model. Undone after success, an exception and an interrupt alike.
    """
    modules = list(model.modules())
    scopes: list[AbstractContextManager[Any]] = [torch.inference_mode(False), torch.no_grad()]
    scopes += [_same_random(device), _evaluating(modules)]
    if any(map(_compiled, modules)):
        scopes.append(_EAGER.held())
    if device.type == "cuda" and any(isinstance(m, nn.RNNBase) for m in modules):
        scopes.append(_NO_CUDNN.held())  # cuDNN's recurrent kernels have a backward in training mode only
    with ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(scope)
        yield
