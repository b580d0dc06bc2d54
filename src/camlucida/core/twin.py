"""Twins of a model: some of its modules exchanged, all that can be shared with it shared, the model left as it is."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn


def exchanged(net: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """``net`` with some of its modules exchanged: those that hold them are copied, all others are its own.

    >>> net = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 3), nn.Tanh()))
    >>> twin = exchanged(net, {net[1][1]: nn.Identity()})
    >>> twin[1][1], net[1][1], twin[1][0] is net[1][0], exchanged(net, {}) is net
    (Identity(), Tanh(), True, True)
    """
    known = dict(new)

    def other(module: nn.Module) -> nn.Module:
        if module not in known:
            inner = {n: m if m is None else other(m) for n, m in module._modules.items()}
            same = all(m is module._modules[n] for n, m in inner.items())
            known[module] = module if same else shallow(module, _modules=inner)
        return known[module]

    return other(net)


def shallow(module: nn.Module, **changed: Any) -> nn.Module:
    """Another module with the very same insides, but for what is changed: past all that classes do about being copied.

    Its tables (of hooks, parameters, buffers) are its own; what they hold is shared.

    >>> one = nn.Linear(2, 3)
    >>> two = shallow(one, in_features=5)
    >>> two.weight is one.weight, two._parameters is one._parameters, one.in_features
    (True, False, 2)
    """
    made: nn.Module = object.__new__(type(module))
    own = {n: copy.copy(v) if isinstance(v, dict) else v for n, v in vars(module).items()}
    vars(made).update(own, **changed)
    return made
