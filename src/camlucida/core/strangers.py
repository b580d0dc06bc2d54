"""Which layers look at another input than the one the map lies on: the second stream of two, say."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from camlucida.core.capture import How, Inputs, run
from camlucida.core.texts import texts


def strangers(net: nn.Module, one: Inputs, names: Sequence[str]) -> frozenset[str]:
    """The layers that give the same whatever the mapped picture is, where there are others beside it; two forwards.

    Others are inputs with space, and texts. Nothing where the picture stands alone: a layer that then gives the same
    is no other stream's.
    """
    if not (one.rivals() or texts(one)):
        return frozenset()
    noise = torch.randn(one.x.shape, generator=torch.Generator().manual_seed(2)).to(one.x)
    before, after = (_given(net, shown, names) for shown in (one, one.put(noise)))
    moved = {name for name, was in before.items() if not _same(was, after.get(name, []))}
    return frozenset(before) - moved


def _given(net: nn.Module, inputs: Inputs, names: Sequence[str]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    with run(net, inputs, (), spy=names, how=How(graph=False)) as tape:
        for call in tape.calls:
            if call.feature is not None:
                found.setdefault(call.name, []).append(call.feature)
    return found


def _same(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
