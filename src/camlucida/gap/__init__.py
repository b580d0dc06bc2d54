"""Global average pooling, done properly: the layer, the heads, nets that end in them, and ways to get there.

>>> import torch, camlucida as cl
>>> from camlucida.gap import small_gap
>>> net, x = small_gap(5, width=0.25).eval(), torch.rand(1, 3, 64, 64)
>>> maps = net.class_maps(x)
>>> torch.allclose(cl.explain(net, x, target=2, method="cam").map, maps[:, 2], atol=1e-5)
True
"""

from camlucida.gap.convert import conv_head, to_gap
from camlucida.gap.heads import GAPConv, GAPLinear, GAPRectified
from camlucida.gap.net import GAPNet, Report
from camlucida.gap.nin import mlpconv, nin_cifar, nin_imagenet
from camlucida.gap.pooling import (
    GeneralizedMeanPooling,
    GlobalAveragePooling,
    GlobalMaxPooling,
    LogSumExpPooling,
)
from camlucida.gap.small import small_gap

__all__ = [
    "GAPConv", "GAPLinear", "GAPNet", "GAPRectified", "GeneralizedMeanPooling", "GlobalAveragePooling",
    "GlobalMaxPooling", "LogSumExpPooling", "Report", "conv_head", "mlpconv", "nin_cifar", "nin_imagenet", "small_gap",
    "to_gap",
]  # fmt: skip
