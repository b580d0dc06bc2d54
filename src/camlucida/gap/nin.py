"""Network in Network as published: small perceptrons slide over the picture, the class maps are averaged.

An mlpconv block is a convolution and two 1×1 convolutions, a ReLU after each. Pools round up, as in the published
nets (32 → 16 → 8 and 224 → 54 → 27 → 13 → 6). The nets return logits: the softmax is the loss's or the caller's.
Weights are drawn by He's rule; the published ones were tuned by hand, layer by layer.
"""

from itertools import pairwise

from torch import nn

from camlucida.gap.heads import GAPConv, GAPRectified
from camlucida.gap.net import GAPNet


def mlpconv(in_channels: int, widths: tuple[int, ...], size: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    """A convolution of ``size`` and then 1×1 convolutions, one for each further width, a ReLU after each.

    ``A = relu(W_n ∗ … relu(W_1 ∗ x))``; shapes ``b in_channels h w`` → ``b widths[-1] h w`` at ``stride``. [lin2014]

    >>> [type(m).__name__ for m in mlpconv(3, (8, 4), 5, padding=2)]
    ['Conv2d', 'ReLU', 'Conv2d', 'ReLU']
    """
    layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], size, stride, padding), nn.ReLU(inplace=True)]
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def nin_cifar(num_classes: int = 10, *, in_channels: int = 3, dropout: float = 0.5, rectify: bool = True) -> GAPNet:
    """Network in Network for small pictures: 0.97 M parameters, class maps of 8×8 for 32×32 pixels.

    Three mlpconv blocks, 192-160-96, 192-192-192 and 192-192-k, with a maximum and an average pool between, dropout
    after each. ``rectify`` keeps the ReLU on the class maps that the published net has; without it the head is
    `GAPConv` and the maps are CAM's. Shapes ``b 3 h w`` → ``b k``, any size. [lin2014]

    >>> sum(p.numel() for p in nin_cifar().parameters())
    966986
    """
    features = nn.Sequential(
        mlpconv(in_channels, (192, 160, 96), 5, padding=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Dropout(dropout),
        mlpconv(96, (192, 192, 192), 5, padding=2),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Dropout(dropout),
        mlpconv(192, (192, 192), 3, padding=1),
    )
    return _net(features, 192, num_classes, rectify)


def nin_imagenet(
    num_classes: int = 1000, *, in_channels: int = 3, dropout: float = 0.5, rectify: bool = True
) -> GAPNet:
    """Network in Network for photos: 7.6 M parameters, class maps of 6×6 for 224×224 pixels.

    Four mlpconv blocks of widths 96, 256, 384 and 1024-1024-k with maximum pools between and dropout before the last;
    ``rectify`` as in `nin_cifar`. Shapes ``b 3 h w`` → ``b k``, any size from 39 pixels on. [lin2014]

    >>> sum(p.numel() for p in nin_imagenet().parameters())
    7595176
    """
    features = nn.Sequential(
        mlpconv(in_channels, (96, 96, 96), 11, stride=4),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        mlpconv(96, (256, 256, 256), 5, padding=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        mlpconv(256, (384, 384, 384), 3, padding=1),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Dropout(dropout),
        mlpconv(384, (1024, 1024), 3, padding=1),
    )
    return _net(features, 1024, num_classes, rectify)


def _net(features: nn.Module, channels: int, num_classes: int, rectify: bool) -> GAPNet:
    head = GAPRectified(channels, num_classes) if rectify else GAPConv(channels, num_classes)
    net = GAPNet(features, head)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net
