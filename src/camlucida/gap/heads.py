"""The heads that make the last feature maps confidence maps of the classes: CAM is no method here but the head itself.

Both heads are one linear map and one mean, in either order, so they are equal where their weights are. Both keep one
law: ``mean(class_maps[:, c]) + bias[c] = logit[c]``, the maps without the bias, which has no place. The maps are those
of ``explain(…, method="cam")``. Dropout acts in training only, on the pooled channels.
"""

from collections.abc import Callable
from typing import TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from camlucida.errors import ModelError
from camlucida.gap.pooling import GlobalAveragePooling
from camlucida.types import Act

Maps = Float[Tensor, "b k *space"]
Logits = Float[Tensor, "b k"]
Conv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d

CONVS: dict[int, Callable[..., Conv]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@final
class GAPLinear(nn.Module):
    """Global average pooling, then one linear layer: the head of class activation maps.

    ``logit = W⟨A⟩ + b``, ``class_maps = W A``; shapes ``b c *space`` → ``b k``, any number of axes of space; an
    optional ``weight`` of the places as in `GlobalAveragePooling`. [zhou2016]

    >>> head = GAPLinear(4, 3)
    >>> act = torch.rand(2, 4, 5, 6)
    >>> torch.allclose(head.class_maps(act).mean((2, 3)) + head.bias, head(act), atol=1e-6)
    True
    """

    def __init__(self, in_channels: int, num_classes: int, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.pool, self.dropout = GlobalAveragePooling(), nn.Dropout(dropout)
        self.linear = nn.Linear(in_channels, num_classes, bias)

    @property
    def bias(self) -> Tensor | None:
        """What the maps do not hold, one number a class; None without."""
        return self.linear.bias

    def forward(self, features: Act, weight: Tensor | None = None) -> Logits:
        logits: Tensor = self.linear(self.dropout(self.pool(features, weight)))
        return logits

    def class_maps(self, features: Act) -> Maps:
        """The confidence map of every class, ``W A``, in one product: ``b c *space`` → ``b k *space``."""
        return _class_maps(self.linear.weight, features)

    @classmethod
    def from_conv(cls, head: "GAPConv | Conv") -> "GAPLinear":
        """The equal head from a 1×1 convolution, weights copied. Raises: ModelError for another convolution."""
        conv = head.conv if isinstance(head, GAPConv) else _pointwise(head)
        with torch.device("meta"):  # no random numbers are drawn for weights that are replaced at once
            p = head.dropout.p if isinstance(head, GAPConv) else 0.0
            made = cls(conv.in_channels, conv.out_channels, dropout=p)
        _copy(conv, made.linear, conv.weight.flatten(1))
        return made.train(head.training)


@final
class GAPConv(nn.Module):
    """A 1×1 convolution to one map a class, then the global average: the head of Network in Network, ReLU left out.

    ``logit = ⟨W ∗ A⟩ + b``, ``class_maps = W ∗ A``; shapes ``b c *space`` → ``b k``. The logits are computed as
    ``W⟨A⟩ + b``: mean and 1×1 convolution commute, and this way round costs as many times less as there are places.
    ``dims`` is the number of axes of space. [lin2014]

    >>> head = GAPConv(4, 3, dims=1)
    >>> act = torch.rand(2, 4, 9)
    >>> torch.allclose(head.class_maps(act).mean(2) + head.bias, head(act), atol=1e-6)
    True
    """

    def __init__(
        self, in_channels: int, num_classes: int, bias: bool = True, dropout: float = 0.0, dims: int = 2
    ) -> None:
        super().__init__()
        if dims not in CONVS:
            raise ModelError(f"a 1×1 convolution has one, two or three axes of space; dims is {dims}.")
        self.pool, self.dropout = GlobalAveragePooling(), nn.Dropout(dropout)
        self.conv = CONVS[dims](in_channels, num_classes, 1, bias=bias)

    @property
    def bias(self) -> Tensor | None:
        """What the maps do not hold, one number a class; None without."""
        return self.conv.bias

    def forward(self, features: Act, weight: Tensor | None = None) -> Logits:
        return F.linear(self.dropout(self.pool(features, weight)), self.conv.weight.flatten(1), self.conv.bias)

    def class_maps(self, features: Act) -> Maps:
        """The confidence map of every class, ``W ∗ A``, in one product: ``b c *space`` → ``b k *space``."""
        return _class_maps(self.conv.weight.flatten(1), features)

    @classmethod
    def from_linear(cls, head: GAPLinear | nn.Linear, dims: int = 2) -> "GAPConv":
        """The equal head for ``dims`` axes of space from a linear one, weights copied."""
        linear = head.linear if isinstance(head, GAPLinear) else head
        with torch.device("meta"):
            p = head.dropout.p if isinstance(head, GAPLinear) else 0.0
            made = cls(linear.in_features, linear.out_features, dropout=p, dims=dims)
        _copy(linear, made.conv, linear.weight.reshape(*linear.weight.shape, *(1,) * dims))
        return made.train(head.training)


@final
class GAPRectified(nn.Module):
    """Network in Network's head as published: the class maps pass a ReLU, bias and all, before the average.

    ``logit = ⟨relu(W ∗ A + b)⟩``, ``class_maps = relu(W ∗ A + b)``: here the mean of a map is the logit, and the maps
    are not CAM's (the ReLU is no linear map) but ``Z`` times Grad-CAM's at ``relu``. [lin2014]

    >>> head, act = GAPRectified(4, 3), torch.rand(2, 4, 5, 6)
    >>> torch.allclose(head.class_maps(act).mean((2, 3)), head(act))
    True
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(in_channels, num_classes, 1), nn.ReLU(), GlobalAveragePooling()

    def forward(self, features: Float[Tensor, "b c h w"], weight: Tensor | None = None) -> Logits:
        logits: Tensor = self.pool(self.class_maps(features), weight)
        return logits

    def class_maps(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """The confidence map of every class, ``relu(W ∗ A + b)``."""
        maps: Tensor = self.relu(self.conv(features))
        return maps


GAPHead: TypeAlias = GAPLinear | GAPConv | GAPRectified


def _class_maps(weight: Float[Tensor, "k c"], features: Act) -> Maps:
    return (weight @ features.flatten(2)).reshape(len(features), len(weight), *features.shape[2:])


def _pointwise(conv: Conv) -> Conv:
    if conv.weight[0, 0].numel() != 1 or conv.groups != 1 or any(s != 1 for s in conv.stride):
        raise ModelError(f"only an ungrouped 1×1 convolution of stride 1 is a linear map of the channels: {conv}")
    if any(p != 0 for p in conv.padding):
        raise ModelError(f"a padded 1×1 convolution has places of its own, which change the mean: {conv}")
    return conv


def _copy(before: nn.Module, after: nn.Module, weight: Tensor) -> None:
    """The weights of one linear map for another, each a copy, frozen or not as before."""
    old = before.get_parameter("weight")
    after.register_parameter("weight", nn.Parameter(weight.detach().clone(), old.requires_grad))
    bias = before.bias
    kept = nn.Parameter(bias.detach().clone(), bias.requires_grad) if isinstance(bias, Tensor) else None
    after.register_parameter("bias", kept)
