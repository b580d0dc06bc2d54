"""Honest odds: the logits of a GAP net divided by a temperature, inside its head, so that nothing else must know."""

import copy
from typing import TypeGuard

import torch
from torch import nn

from camlucida.errors import InputError, ModelError
from camlucida.gap.heads import GAPConv, GAPLinear
from camlucida.gap.net import GAPNet


def can_be_calibrated(net: nn.Module) -> TypeGuard[GAPNet]:
    """Whether a net ends in a head that is linear.

    >>> can_be_calibrated(nn.Flatten())
    False
    """
    return isinstance(net, GAPNet) and isinstance(net.head, GAPLinear | GAPConv)


def calibrated(net: nn.Module, temperature: float) -> GAPNet:
    """A copy of a net whose linear head is divided by a temperature, weight and bias: logits, class maps and all.

    ``logit' = logit / T``, ``class_maps' = class_maps / T``; the best class stays the best. [guo2017]

    Raises: ModelError where the net has no `GAPLinear` or `GAPConv` head; InputError for a temperature not above 0.

    >>> net, x = GAPNet(nn.Identity(), GAPLinear(3, 2)).eval(), torch.rand(1, 3, 4, 4)
    >>> torch.allclose(calibrated(net, 2.0)(x), net(x) / 2, atol=1e-6)
    True
    """
    if not can_be_calibrated(net):
        raise ModelError(f"only a GAPNet with a linear head can be calibrated, not {type(net).__name__}.")
    if not 0 < temperature < float("inf"):
        raise InputError(f"a temperature is a number above 0; it is {temperature}.")
    made = copy.deepcopy(net)
    with torch.no_grad():
        for p in (p for name, p in made.head.named_parameters() if name.startswith(("linear.", "conv."))):
            p.div_(temperature)
    return made
