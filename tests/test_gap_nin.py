"""Network in Network as published, and the small modern net: shapes, numbers of parameters, cost, maps."""

import torch
from replicas import apart
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import camlucida as cl
from camlucida.gap import GAPConv, GAPLinear, GAPNet, GAPRectified, mlpconv, nin_cifar, nin_imagenet, small_gap


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def shapes(net: GAPNet, *shape: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the logits and the class maps, without computing a number."""
    net, x = net.to("meta").eval(), torch.empty(shape, device="meta")
    return tuple(net(x).shape), tuple(net.class_maps(x).shape)


def flops(net: nn.Module, *shape: int) -> int:
    net, x = net.to("meta").eval(), torch.empty(shape, device="meta")
    with FlopCounterMode(display=False) as counter:
        net(x)
    return counter.get_total_flops()


def by_hand(*layers: tuple[int, int, int]) -> int:
    """Weights and biases of convolutions (before, after, size)."""
    return sum(a * b * s * s + b for a, b, s in layers)


def test_nin_for_cifar_has_the_published_shape() -> None:
    counted = by_hand(
        (3, 192, 5), (192, 160, 1), (160, 96, 1), (96, 192, 5), (192, 192, 1), (192, 192, 1), (192, 192, 3),
        (192, 192, 1), (192, 10, 1),
    )  # fmt: skip
    assert count(nin_cifar()) == counted == 966_986
    assert shapes(nin_cifar(), 2, 3, 32, 32) == ((2, 10), (2, 10, 8, 8))
    assert shapes(nin_cifar(100), 1, 3, 40, 29) == ((1, 100), (1, 100, 10, 7))
    assert shapes(nin_cifar(7, in_channels=1), 1, 1, 28, 28) == ((1, 7), (1, 7, 7, 7))


def test_nin_for_imagenet_has_the_published_shape() -> None:
    counted = by_hand(
        (3, 96, 11), (96, 96, 1), (96, 96, 1), (96, 256, 5), (256, 256, 1), (256, 256, 1), (256, 384, 3),
        (384, 384, 1), (384, 384, 1), (384, 1024, 3), (1024, 1024, 1), (1024, 1000, 1),
    )  # fmt: skip
    with torch.device("meta"):
        assert count(nin_imagenet()) == counted == 7_595_176
        assert shapes(nin_imagenet(), 2, 3, 224, 224) == ((2, 1000), (2, 1000, 6, 6))
        assert shapes(nin_imagenet(20), 1, 3, 39, 320) == ((1, 20), (1, 20, 1, 9))


def test_nin_has_a_relu_after_every_convolution_and_dropout_after_the_pools() -> None:
    net = nin_cifar(dropout=0.3)
    kinds = [type(m).__name__ for m in net.modules() if not any(True for _ in m.children())]
    block = ["Conv2d", "ReLU"] * 3
    assert kinds == [
        *block, "MaxPool2d", "Dropout", *block, "AvgPool2d", "Dropout", *block, "GlobalAveragePooling",
    ]  # fmt: skip
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.3, 0.3]
    assert [m.kernel_size for m in net.modules() if isinstance(m, nn.Conv2d)][::3] == [(5, 5), (5, 5), (3, 3)]


def test_an_mlpconv_is_a_small_perceptron_at_every_place() -> None:
    block = mlpconv(2, (5, 4, 3), 3, padding=1).double()
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64)
    convs = [m for m in block if isinstance(m, nn.Conv2d)]
    patch = nn.functional.pad(x, (1, 1, 1, 1))[0, :, 2:5, 3:6].flatten()  # what place (2, 3) sees
    for conv in convs:
        assert conv.bias is not None
        patch = torch.relu(conv.weight.flatten(1) @ patch + conv.bias)
    assert apart(block(x)[0, :, 2, 3], patch) < 1e-12


def test_nins_class_maps_are_its_logits_with_and_without_the_last_relu() -> None:
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    published = nin_cifar(5).double().eval()
    assert isinstance(published.head, GAPRectified)
    assert apart(published.class_maps(x).mean((2, 3)), published(x)) < 1e-12 and (published(x) >= 0).all()
    linear = nin_cifar(5, rectify=False).double().eval()
    assert isinstance(linear.head, GAPConv) and linear.head.bias is not None
    assert apart(linear.class_maps(x).mean((2, 3)) + linear.head.bias, linear(x)) < 1e-12
    assert apart(cl.explain(linear, x, target=4, method="cam").map, linear.class_maps(x)[:, 4]) < 1e-12
    assert published(x).std() > 1e-3  # the signal has neither died nor exploded after nine layers
    assert published(x).max() < 1e3


# ------------------------------------------------------------------------------------------------------ the small net


def test_the_small_net_keeps_its_budget() -> None:
    net = small_gap(30)
    assert count(net) < 1_000_000 and count(small_gap(30, width=1.75)) <= 3_000_000
    assert flops(net, 1, 3, 128, 128) <= 2 * 0.12e9  # a multiply-add counts as two
    assert shapes(small_gap(30), 2, 3, 128, 128) == ((2, 30), (2, 30, 16, 16))
    assert shapes(small_gap(30), 1, 3, 160, 129)[1][2:] == (20, 17)
    assert shapes(small_gap(30), 1, 3, 16, 16)[1][2:] == (2, 2)


def test_the_small_nets_maps_are_cams_and_add_up() -> None:
    net = small_gap(5, width=0.25, depth=1).double().eval()
    assert isinstance(net.head, GAPLinear) and net.head.bias is not None
    x = torch.rand(2, 3, 48, 64, dtype=torch.float64)
    maps = net.class_maps(x)
    assert apart(maps.mean((2, 3)) + net.head.bias, net(x)) < 1e-10
    e = cl.explain(net, x, target=3, method="cam")
    assert e.map.shape == (2, 6, 8) and apart(e.map, maps[:, 3]) < 1e-10


def test_the_small_net_learns_from_nothing() -> None:
    net = small_gap(2, width=0.25, depth=1, dropout=0.0)
    x = torch.rand(16, 3, 32, 32)
    y = torch.arange(16) % 2
    x[y == 1, 0, :16] += 1.0
    step = torch.optim.AdamW(net.parameters(), 5e-3)
    for _ in range(12):
        step.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        step.step()
    assert (net(x).argmax(1) == y).all()
