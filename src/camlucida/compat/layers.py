"""Layers by the names that people have in their scripts: ``features_29``, ``layer4_bottleneck2_conv3``."""

from torch import nn

from camlucida.core.layers import resolve
from camlucida.core.scope import named, unwrap
from camlucida.errors import LayerError


def find_layer(arch: nn.Module, target_layer_name: str) -> nn.Module:
    """The module of that name, old (``features_0``) or dotted (``features.0``), in a network of any family.

    Raises: LayerError, with the nearest names, where there is none.

    >>> find_layer(nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())), "0_1")
    ReLU()
    """
    found = named(unwrap(arch)).get(resolve(arch, target_layer_name))
    if found is None:
        raise LayerError(f"{target_layer_name!r} is what the model is given and not one of its modules: name a layer.")
    return found
