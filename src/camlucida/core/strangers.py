"""What the picture that the map lies on has no part in: layers that look at another input, and tables of positions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from camlucida.core.capture import Call, How, Inputs, run
from camlucida.core.texts import texts


def strangers(net: nn.Module, one: Inputs, names: Sequence[str]) -> frozenset[str]:
    """The layers that give the same whatever the mapped picture is, where there are others beside it; two forwards.

    Others are inputs with space, and texts. Nothing where the picture stands alone: a layer that then gives the same
    is no other stream's.
    """
    if not (one.rivals() or texts(one)):
        return frozenset()
    before, after = (_given(net, shown, names) for shown in (one, _other(one)))
    moved = {name for name, was in before.items() if not _same(was, after.get(name, []))}
    return frozenset(before) - moved


def constants(net: nn.Module, one: Inputs, calls: Sequence[Call]) -> list[Call]:
    """Where recording began anew, in a pass of `run`, at what is the same whatever the picture is; one forward at most.

    A table of positions has no gradient; neither has what a model's author keeps from training, and that is a layer.
    """
    names = list(dict.fromkeys(c.name for c in calls if c.leaf is not None))
    if not names:
        return []
    after = _given(net, _other(one), names)
    before = {n: [c.feature for c in calls if c.name == n and c.feature is not None] for n in names}
    same = {n for n in names if _same(before[n], after.get(n, []))}
    return [c for c in calls if c.name in same and c.leaf is not None]


def _other(one: Inputs) -> Inputs:
    return one.put(torch.randn(one.x.shape, generator=torch.Generator().manual_seed(2)).to(one.x))


def _given(net: nn.Module, inputs: Inputs, names: Sequence[str]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    with run(net, inputs, (), spy=names, how=How(graph=False)) as tape:
        for call in tape.calls:
            if call.feature is not None:
                found.setdefault(call.name, []).append(call.feature)
    return found


def _same(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
