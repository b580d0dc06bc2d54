"""Where a network's maps end and its head begins, found by running the network once.

The calls of one pass are read first: most nets hand the picture from module to module, with a flatten somewhere. Where
a net does more in its own forward (functional ReLUs and pools), it is traced symbolically instead. Either reading is
proved before it is used: trunk and tail, one after the other, must give what the model itself gives.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from camlucida.core.capture import Call, Inputs, run
from camlucida.core.layouts import channels_first, infer
from camlucida.core.scope import named, untouched, unwrap
from camlucida.errors import ModelError
from camlucida.gap.heads import CONV_KINDS
from camlucida.gap.kinds import ADAPTIVE, ELEMENTWISE, FLAT, PASSING, is_pointwise, leaves_one_place
from camlucida.gap.tracing import traced_steps, up_to

Step = tuple[str, nn.Module]

_SIZES = {1: (224, 32, 64, 128, 256, 512, 1024, 16), 2: (224, 32, 28, 64, 96, 128, 160, 227, 256, 299, 384, 16)}
_SIZES[3] = (32, 16, 64, 28, 8, 112)


@final
@dataclass(frozen=True)
class Parts:
    """A model in two: ``trunk`` up to the last maps ``act``, and the ``tail`` behind, the model's own modules."""

    net: nn.Module
    trunk: nn.Module
    tail: tuple[Step, ...]
    x: Tensor
    act: Tensor
    output: Tensor


def split(model: nn.Module, probe: Tensor | None = None, classifier: bool = False) -> Parts:
    """The trunk and the tail of a model, proved on ``probe`` or on a picture of a size that the model takes.

    With ``classifier``, a head that is a 1×1 convolution before the average belongs to the tail. Raises: ModelError.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))
    >>> parts = split(net, torch.zeros(1, 3, 16, 16))
    >>> tuple(parts.act.shape), [name for name, _ in parts.tail]
    ((1, 4, 14, 14), ['1', '2'])
    """
    net = unwrap(model)
    x, calls, output = _seen(net, probe)
    for trunk, tail in _readings(net, calls, classifier):
        parts = _proved(net, trunk, tail, x, output)
        if parts is None:
            continue
        if infer(parts.act.shape, tuple(x.shape[2:])) != channels_first:
            raise ModelError(
                f"the last maps, {tuple(parts.act.shape)}, come channels last: only channels first is read."
            )
        return parts
    raise ModelError(
        "no flatten or global average of feature maps was found in this model that accounts for its output, so its "
        f"head cannot be told from its trunk; its last modules are {_last(calls)}."
    )


def _last(calls: Sequence[Call]) -> str:
    leaves = [c for c in calls if c.name and not any(True for _ in c.module.children())]
    return ", ".join(f"{c.name} ({type(c.module).__name__})" for c in leaves[-4:]) or "none"


# ------------------------------------------------------------------------------------------------------- the run


def _seen(net: nn.Module, probe: Tensor | None) -> tuple[Tensor, tuple[Call, ...], Tensor]:
    """A picture that the model takes, the calls it led to, and the logits. Raises: ModelError."""
    fault: Exception | None = None
    for x in _pictures(net) if probe is None else (probe,):
        try:
            with run(net, Inputs((x,)), (), spy=list(named(net))) as tape:
                calls, output = tape.calls, tape.output
        except Exception as problem:  # another size may fit
            fault = problem
            continue
        if not isinstance(output, Tensor) or output.dim() != 2:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(f"for {len(x)} pictures the model returns {got}, not one row of logits each.")
        if len(output) == len(x):
            return x, calls, output
        fault = ModelError(f"{len(x)} pictures became {len(output)} rows of logits")
    asked = "on any picture of a guessed size: pass probe=, a batch that it takes" if probe is None else "on the probe"
    said = " ".join(str(fault).split())[:200]
    raise ModelError(f"the model could not be run {asked}. The last attempt: {said}") from fault


def _pictures(net: nn.Module) -> Iterator[Tensor]:
    """Pictures of two rows in the sizes that models are made for, as the first convolution wants them."""
    first = next((m for m in net.modules() if isinstance(m, CONV_KINDS)), None)
    if first is None:
        kinds = sorted({type(m).__name__ for m in net.modules() if not any(True for _ in m.children())})
        raise ModelError(f"this model has no convolution and so no feature maps: it is made of {', '.join(kinds)}.")
    draw, dims = torch.Generator().manual_seed(0), len(first.kernel_size)
    for size in _SIZES[dims]:
        yield torch.randn(2, first.in_channels, *(size,) * dims, generator=draw).to(first.weight)


# -------------------------------------------------------------------------------------------------- two readings


def _readings(net: nn.Module, calls: Sequence[Call], classifier: bool) -> Iterator[tuple[nn.Module, list[Step]]]:
    steps = _chain(calls)
    cut = None if steps is None else _cut([m for _, m in steps], classifier)
    if steps is not None and cut:
        yield _nested(steps[:cut]), steps[cut:]
    traced = traced_steps(net)
    cut = None if traced is None else _cut([m for _, m in traced[1]], classifier)
    if traced is not None and cut is not None:
        graph, found, nodes = traced
        yield up_to(net, graph, nodes[cut]), found[cut:]


def _cut(modules: Sequence[nn.Module], classifier: bool) -> int | None:
    """Where the tail begins: at the first flatten, or what leaves one place only, before the pools that lead to it."""
    cut = next((i for i, m in enumerate(modules) if isinstance(m, FLAT) or leaves_one_place(m)), None)
    if cut is None:
        return None
    if classifier and not any(isinstance(m, nn.Linear) or is_pointwise(m) for m in modules[cut:]):
        cut = _before(modules, cut, (*ELEMENTWISE, *PASSING, *ADAPTIVE)) - 1
        if cut < 0 or not is_pointwise(modules[cut]):
            return None
    return _before(modules, cut, (*ADAPTIVE, *PASSING))


def _before(modules: Sequence[nn.Module], end: int, kinds: tuple[type[nn.Module], ...]) -> int:
    """Where the modules of some kinds that lead up to ``end`` begin."""
    while end and isinstance(modules[end - 1], kinds):
        end -= 1
    return end


def _chain(calls: Sequence[Call]) -> list[Step] | None:
    """The modules that the picture passes one after the other; None where something else happens in between."""
    root, rest = calls[-1], list(calls[:-1])
    now, steps = root.given, list[Step]()
    while rest:
        path = rest[0].name
        start = [i for i, c in enumerate(rest) if c.given is now and (c.name == path or path.startswith(c.name + "."))]
        if start:
            outer = rest[start[-1]]
            steps += _opened(outer.name, outer.module)
            now, rest = outer.made, rest[start[-1] + 1 :]
        elif _is_flat(rest[0].given, now):
            steps.append(("flatten", nn.Flatten()))
            now = rest[0].given
        else:
            return None
    if now is not root.made and not _is_flat(root.made, now):
        return None
    return steps if now is root.made else [*steps, ("flatten", nn.Flatten())]


def _is_flat(flat: Any, maps: Any) -> bool:
    if not isinstance(flat, Tensor) or not isinstance(maps, Tensor) or maps.dim() < 3 or flat.dim() != 2:
        return False
    return flat.shape == maps.flatten(1).shape and torch.equal(flat, maps.flatten(1))


def _opened(name: str, module: nn.Module) -> list[Step]:
    """The steps inside a Sequential, however deep; any other module is one step."""
    if type(module) is not nn.Sequential:
        return [(name, module)]
    return [step for child, inner in module.named_children() for step in _opened(f"{name}.{child}", inner)]


def _nested(steps: Sequence[Step]) -> nn.Module:
    """Steps as one module, under the names they had; a module that is all there is goes by its own children's."""
    tree: dict[str, Any] = {}
    for name, module in steps:
        *path, last = name.split(".")
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        at[last if last not in at else f"{last}_again{len(at)}"] = module
    while len(tree) == 1 and isinstance(inner := next(iter(tree.values())), dict):
        tree = inner
    return _sequence(tree)


def _sequence(tree: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(OrderedDict((k, _sequence(v) if isinstance(v, dict) else v) for k, v in tree.items()))


# --------------------------------------------------------------------------------------------------------- proof


def _proved(net: nn.Module, trunk: nn.Module, tail: Sequence[Step], x: Tensor, output: Tensor) -> Parts | None:
    """The parts, if the trunk gives maps and the tail makes the model's own output of them."""
    behind = nn.Sequential(*(m for _, m in tail))
    try:
        with untouched(nn.ModuleList([net, trunk, behind]), x.device):
            act = trunk(x.clone())
            found = behind(act.clone())
    except Exception:
        return None
    if not isinstance(act, Tensor) or act.dim() != x.dim() or not same(found, output):
        return None
    return Parts(net, trunk, tuple(tail), x, act, output)


def same(one: Tensor, two: Tensor) -> bool:
    """Whether two outputs agree to half of the digits of their type, relative to the largest.

    >>> same(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1e-3]))
    False
    """
    if one.shape != two.shape:
        return False
    slack = torch.finfo(two.dtype).eps ** 0.5
    return bool((one - two).abs().amax() <= slack * two.abs().amax())
