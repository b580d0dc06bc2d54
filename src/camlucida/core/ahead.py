"""What runs before a layer, computed once, for those who ask again and again what follows it.

The twin made here gives at once what the model's modules gave before the layer had ended, the layer's own parts among
them, for one and the same picture: what is left to run is what follows. It is not believed before it has given the
model's own output.
"""

from collections import Counter
from typing import Any

from torch import Tensor, nn

from camlucida.core.capture import How, Inputs, run, watched
from camlucida.core.scope import named, unwrap
from camlucida.core.swift import same
from camlucida.core.twin import exchanged


class _Gave(nn.Module):
    """What a module gave, at no cost.

    It is handed out uncopied: what follows writes into it as it did the first time, and where that changes it once more
    the proof fails.
    """

    def __init__(self, made: Tensor) -> None:
        super().__init__()
        self._made = made

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self._made


def shortened(net: nn.Module, inputs: Inputs, name: str, raw: Tensor) -> nn.Module | None:
    """``net`` for this one picture with what runs before layer ``name`` has given ``raw`` taken from memory.

    None where that does not give the model's own output, or somebody looks into the model by hooks.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    >>> x = torch.rand(1, 3, 8, 8)
    >>> shortened(net, Inputs((x,)), "1", net[:2](x).detach())
    Sequential(
      (0): _Gave()
      (1): ReLU()
      (2): Flatten(start_dim=1, end_dim=-1)
      (3): Linear(in_features=144, out_features=5, bias=True)
    )
    """
    net = unwrap(net)
    modules = named(net)
    if any(map(watched, net.modules())) or name not in modules:
        return None
    with run(net, inputs, [], spy=[n for n in modules if n], how=How(graph=False)) as tape:
        truth, calls = tape.output, tape.calls
    times, layer = Counter(c.module for c in calls), modules[name]
    if times[layer] != 1:
        return None
    before = calls[: [c.module for c in calls].index(layer)]
    gave = {c.module: _Gave(c.made) for c in before if times[c.module] == 1 and isinstance(c.made, Tensor)}
    twin = exchanged(net, gave)
    return twin if twin is not net and _follows(twin, inputs, name, raw, truth) else None


def _follows(twin: nn.Module, inputs: Inputs, name: str, raw: Tensor, truth: Any) -> bool:
    try:
        with run(twin, inputs, [name], how=How(put={name: raw}, graph=False)) as tape:
            return same(tape.output, truth)
    except Exception:  # code that looks at its modules
        return False
