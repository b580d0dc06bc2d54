"""A small modern GAP network for photos, made to be trained from nothing, also on a processor.

Residual blocks of two 3×3 convolutions with BatchNorm and SiLU: plain convolutions, for depthwise ones cost a processor
twice the time for the same arithmetic. The deepest stage works at stride 16, where arithmetic is cheap and a place sees
the whole object; its answer is brought back to stride 8 and added to what was seen there, so that the class maps have
one place for every 8 × 8 pixels.
"""

from collections import OrderedDict
from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from camlucida.gap.heads import GAPLinear
from camlucida.gap.net import GAPNet

Seen = Float[Tensor, "b c h w"]
Made = Float[Tensor, "b k p q"]


def small_gap(
    num_classes: int, *, in_channels: int = 3, width: float = 1.0, depth: int = 3, dropout: float = 0.2
) -> GAPNet:
    """A network of 0.95 M parameters that ends in `GAPLinear`, with class maps of 16×16 for 128×128 pixels.

    0.11 G multiply-adds (0.21 GFLOP, a multiply-add counted as two) for a picture of 128×128 pixels, in proportion to
    its area. ``width`` multiplies all channels (0.75: 0.12 GFLOP; 1.75: 2.9 M parameters), ``depth`` is the number of
    blocks of the deepest stage. Shapes ``b in_channels h w`` → ``b k``, any size from 16 pixels on. [he2016, lin2014]

    >>> import torch
    >>> net = small_gap(5, width=0.25).eval()
    >>> net.class_maps(torch.rand(1, 3, 64, 96)).shape
    torch.Size([1, 5, 8, 12])
    """
    stem, first, fine, deep, last = (max(8, 8 * round(c * width / 8)) for c in (24, 32, 64, 128, 256))
    near = nn.Sequential(
        _unit(in_channels, stem, 3, stride=2),
        _unit(stem, first, 3, stride=2),
        Residual(first, first),
        Residual(first, fine, stride=2),
    )
    far = nn.Sequential(Residual(fine, deep, stride=2), *(Residual(deep, deep) for _ in range(depth - 1)))
    net = GAPNet(TwoScales(near, far, (fine, deep, last)), GAPLinear(last, num_classes, dropout=dropout))
    _initialise(net)
    return net


@final
class TwoScales(nn.Module):
    """Features at one stride, enriched by a deeper stage at twice the stride.

    ``y = last(silu(lateral(near(x)) + up(far(near(x)))))``; shapes ``b c h w`` → ``b k h/s w/s`` with the stride ``s``
    of ``near``; ``widths`` are the channels of ``near``, ``far`` and ``y``. ``up`` repeats each place and takes the
    mean of 3 × 3: nearly bilinear, and unlike it with the same bits in every backward pass on a GPU.
    """

    def __init__(self, near: nn.Module, far: nn.Module, widths: tuple[int, int, int]) -> None:
        super().__init__()
        fine, deep, last = widths
        self.near, self.far = near, far
        self.lateral, self.last = _unit(fine, deep, 1, active=False), _unit(deep, last, 1)

    def forward(self, x: Seen) -> Made:
        near = self.near(x)
        far = F.interpolate(self.far(near), near.shape[2:], mode="nearest")
        far = F.avg_pool2d(far, 3, 1, 1, count_include_pad=False)
        features: Tensor = self.last(F.silu(self.lateral(near) + far))
        return features


@final
class Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the shape changes. [he2016]

    ``y = silu(shortcut(x) + body(x))``; shapes ``b before h w`` → ``b after h/stride w/stride``.
    """

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(_unit(before, after, 3, stride), _unit(after, after, 3, active=False))
        same = stride == 1 and before == after
        self.shortcut = nn.Identity() if same else _unit(before, after, 1, stride, active=False)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Seen) -> Made:
        y: Tensor = self.act(self.shortcut(x) + self.body(x))
        return y


def _unit(before: int, after: int, size: int, stride: int = 1, active: bool = True) -> nn.Sequential:
    """Convolution, BatchNorm and, if ``active``, SiLU."""
    parts: dict[str, nn.Module] = {
        "conv": nn.Conv2d(before, after, size, stride, size // 2, bias=False),
        "norm": nn.BatchNorm2d(after),
    }
    return nn.Sequential(OrderedDict(parts | ({"act": nn.SiLU(inplace=True)} if active else {})))


def _initialise(net: nn.Module) -> None:
    """He's rule by fan-out; a residual block begins as nothing but its shortcut."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, Residual):
            nn.init.zeros_(module.body.get_parameter("1.norm.weight"))
