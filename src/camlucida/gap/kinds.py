"""Kinds of modules that a head can be made of, as `split` and `convert` tell them apart."""

from torch import nn

from camlucida.gap.heads import CONV_KINDS
from camlucida.gap.pooling import GlobalAveragePooling

ADAPTIVE = (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)
PASSING = (nn.Identity, nn.modules.dropout._DropoutNd)
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh,
    nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid,
)  # fmt: skip
OVER_CLASSES = (nn.Softmax, nn.LogSoftmax)
FLAT = (nn.Flatten, GlobalAveragePooling)


def leaves_one_place(module: nn.Module) -> bool:
    """Whether a module is an adaptive pool to a single place."""
    size = module.output_size if isinstance(module, ADAPTIVE) else None
    return size == 1 or (isinstance(size, tuple) and set(size) == {1})


def is_pointwise(module: nn.Module) -> bool:
    """Whether a module is a 1×1 convolution."""
    return isinstance(module, CONV_KINDS) and max(module.kernel_size) == 1
