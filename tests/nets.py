"""Tiny seeded nets for the proofs: float64, a few hundred parameters, every kind of tail that the identities name.

Each is ``tail(features(x))``; ``net.layer`` is the layer to explain, ``net.x(b)`` a seeded batch that fits it. Grids
are not square, so that a transposed map cannot pass. Weights come from a generator of their own: building a net
leaves torch's global one alone.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

SPACE = {1: (11,), 2: (8, 9), 3: (5, 6, 7)}
CLASSES = 5


class Net(nn.Module):
    """``tail(features(x))``; what the tests need to know of it is said by ``layer`` and ``shape``."""

    def __init__(self, features: nn.Module, tail: nn.Module, shape: tuple[int, ...], layer: str = "features") -> None:
        super().__init__()
        self.features, self.tail, self.shape, self.layer = features, tail, shape, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.features(x))

    def x(self, b: int = 2, seed: int = 100) -> Tensor:
        like = next(self.parameters())
        drawn = torch.randn(b, *self.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return drawn.to(like.device, like.dtype)

    @torch.no_grad()
    def act(self, x: Tensor) -> Tensor:
        return self.features(x)

    @property
    def head(self) -> nn.Module:
        """The last module with weights: what a closed form reads."""
        return [m for m in self.tail.modules() if getattr(m, "weight", None) is not None][-1]


def seeded(net: nn.Module, seed: int, gain: float = 1.0) -> nn.Module:
    """Every parameter and running statistic drawn anew from ``seed``, in float64, evaluation mode."""
    draw = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            fan = max(1, p[0].numel()) if p.dim() > 1 else 4
            p.copy_(torch.randn(p.shape, generator=draw, dtype=torch.float64) * gain / fan**0.5)
            if p.dim() == 1 and name.endswith("weight"):  # a normalisation's scale
                p.add_(1.0)
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=draw, dtype=torch.float64) / 2)
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=draw, dtype=torch.float64) + 0.5)
    return net


def _kind(name: str, dims: int) -> type[nn.Module]:
    return getattr(nn, f"{name}{dims}d")


def _features(dims: int, last: nn.Module | None = None, channels: int = 4) -> nn.Sequential:
    conv = _kind("Conv", dims)
    return nn.Sequential(conv(2, 3, 3, padding=1), nn.ReLU(), conv(3, channels, 3, padding=1), last or nn.ReLU())


def _net(dims: int, tail: nn.Module, seed: int, last: nn.Module | None = None) -> Net:
    return seeded(Net(_features(dims, last), tail, (2, *SPACE[dims])), seed)


def _places(dims: int) -> int:
    return int(torch.tensor(SPACE[dims]).prod())


# --------------------------------------------------------------------------------------------- heads with closed forms


def gap_linear(dims: int = 2, seed: int = 0, last: nn.Module | None = None) -> Net:
    """Global average pool, one linear layer: CAM's net. ``last=nn.Identity()`` leaves the activation signed."""
    tail = nn.Sequential(_kind("AdaptiveAvgPool", dims)(1), nn.Flatten(), nn.Linear(4, CLASSES))
    return _net(dims, tail, seed, last)


def flatten_linear(dims: int = 2, seed: int = 0, last: nn.Module | None = None) -> Net:
    """One weight a place and channel."""
    return _net(dims, nn.Sequential(nn.Flatten(), nn.Linear(4 * _places(dims), CLASSES)), seed, last)


def nin(dims: int = 2, seed: int = 0, last: nn.Module | None = None) -> Net:
    """Network in Network: a 1×1 convolution to the classes, then the global average."""
    tail = nn.Sequential(_kind("Conv", dims)(4, CLASSES, 1), _kind("AdaptiveAvgPool", dims)(1), nn.Flatten())
    return _net(dims, tail, seed, last)


# --------------------------------------------------------------------------------------------------- heads without one


def gmp_linear(dims: int = 2, seed: int = 0) -> Net:
    """Global *max* pool, one linear layer."""
    tail = nn.Sequential(_kind("AdaptiveMaxPool", dims)(1), nn.Flatten(), nn.Linear(4, CLASSES))
    return _net(dims, tail, seed, nn.Softplus())  # positive everywhere: one maximum a channel


class GeM(nn.Module):
    """Generalised mean ``(mean A^p)^(1/p)``."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, act: Tensor) -> Tensor:
        return act.pow(self.p).flatten(2).mean(2).pow(1 / self.p)


def gem_linear(p: float = 3.0, dims: int = 2, seed: int = 0) -> Net:
    return _net(dims, nn.Sequential(GeM(p), nn.Linear(4, CLASSES)), seed, nn.Softplus())


def relu_tail(dims: int = 2, seed: int = 0, last: nn.Module | None = None) -> Net:
    """No bias anywhere: positively homogeneous of degree one."""
    tail = nn.Sequential(
        _kind("Conv", dims)(4, 3, 3, bias=False), nn.ReLU(), _kind("MaxPool", dims)(2), nn.LeakyReLU(0.1),
        _kind("AdaptiveAvgPool", dims)(2), nn.Flatten(), nn.Linear(3 * 2**dims, CLASSES, bias=False),
    )  # fmt: skip
    return _net(dims, tail, seed, last)


def biased_tail(dims: int = 2, seed: int = 0, last: nn.Module | None = None) -> Net:
    """Piecewise linear, with biases everywhere, an evaluation-mode BatchNorm with random statistics among them."""
    tail = nn.Sequential(
        _kind("Conv", dims)(4, 3, 3), _kind("BatchNorm", dims)(3), nn.ReLU(), _kind("MaxPool", dims)(2),
        _kind("AdaptiveAvgPool", dims)(2), nn.Flatten(), nn.Linear(3 * 2**dims, 4), nn.LeakyReLU(0.2),
        nn.Linear(4, CLASSES),
    )  # fmt: skip
    return _net(dims, tail, seed, last)


def smooth_tail(dims: int = 2, seed: int = 0) -> Net:
    """GELU and SiLU: curved everywhere, the activation itself is signed."""
    tail = nn.Sequential(
        _kind("Conv", dims)(4, 3, 3), nn.SiLU(), _kind("AdaptiveAvgPool", dims)(2), nn.Flatten(),
        nn.Linear(3 * 2**dims, 4), nn.GELU(), nn.Linear(4, CLASSES),
    )  # fmt: skip
    return _net(dims, tail, seed, nn.GELU())


def rising_tail(seed: int = 0) -> Net:
    """Piecewise linear with positive weights only: no gradient is ever negative."""
    net = relu_tail(2, seed)
    with torch.no_grad():
        for p in net.tail.parameters():
            p.abs_()
    return net


class Blind(nn.Module):
    """Everything outside ``mask`` is multiplied by zero before anything is read."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, act: Tensor) -> Tensor:
        return act * self.mask


def blind_tail(seed: int = 0) -> Net:
    """``tail = f(A · m)``: the model cannot see the places where ``net.tail[0].mask`` is zero."""
    mask = torch.zeros(SPACE[2])
    mask[1:6, 2:5] = 1
    body = flatten_linear(2, seed).tail
    tail = nn.Sequential(Blind(mask), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), *body)
    return _net(2, tail, seed)


# ------------------------------------------------------------------------------------------------------- other layouts


class ToLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


class MeanOfPlaces(nn.Module):
    """The mean over all axes between the first and the last, past ``prefix`` tokens."""

    def __init__(self, prefix: int = 0) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.prefix :].flatten(1, -2).mean(1)


def channels_last_net(seed: int = 0) -> Net:
    """``b h w c`` from the first layer on, as Swin has it."""
    stem = nn.Sequential(nn.Conv2d(2, 12, 2, stride=2), ToLast(), nn.LayerNorm(12), nn.Linear(12, 12), nn.GELU())
    tail = nn.Sequential(MeanOfPlaces(), nn.Linear(12, CLASSES))
    return seeded(Net(stem, tail, (2, 8, 10)), seed)


class Attention(nn.Module):
    """Two heads in plain operations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / (c // 2) ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(Net):
    """A vision transformer with a class token, registers, and a head on the class token or on the mean of places."""

    def __init__(self, registers: int, pool: str) -> None:
        nn.Module.__init__(self)
        self.shape, self.prefix, self.pool, self.grid = (2, 8, 12), 1 + registers, pool, (4, 6)
        self.patch = nn.Conv2d(2, 6, 2, stride=2)
        self.first = nn.Parameter(torch.zeros(1, self.prefix, 6))
        self.position = nn.Parameter(torch.zeros(1, 24, 6))
        self.blocks = nn.Sequential(Block(6), Block(6))
        self.norm = nn.LayerNorm(6)
        self.mean = MeanOfPlaces(self.prefix)
        self.last = nn.Linear(6, CLASSES)
        # A class-token head reads no patch of the last block's output: the last layer all tokens meet in is before it.
        self.layer = "blocks.1.norm1" if pool == "class" else "norm"

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2) + self.position
        tokens = self.norm(self.blocks(torch.cat([self.first.expand(len(x), -1, -1), patches], 1)))
        return self.last(tokens[:, 0] if self.pool == "class" else self.mean(tokens))

    @property
    def head(self) -> nn.Module:
        return self.last


def token_net(registers: int = 2, pool: str = "class", seed: int = 0) -> Vit:
    return seeded(Vit(registers, pool), seed)


# ---------------------------------------------------------------------------------------------- in place, equivariance


class Residual(nn.Module):
    """``relu(conv2(relu(conv1(x))) + x)``, with every operation in place or none."""

    def __init__(self, width: int, inplace: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.relu1, self.relu2, self.inplace = nn.ReLU(inplace), nn.ReLU(inplace), inplace

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.relu1(self.conv1(x)))
        if self.inplace:
            out += x
        else:
            out = out + x
        return self.relu2(out)


TWIN_LAYERS = (
    "features.0", "features.1", "features.2.conv1", "features.2.relu1", "features.2.conv2", "features.2.relu2",
    "features.2", "features", "tail.0", "tail.1",
)  # fmt: skip


def inplace_pair(seed: int = 0) -> tuple[Net, Net]:
    """The same weights twice: operations in place, and not. `TWIN_LAYERS` must have the same maps in both."""

    def build(inplace: bool) -> Net:
        features = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace), Residual(4, inplace))
        tail = nn.Sequential(
            nn.Conv2d(4, 3, 3), nn.ReLU(inplace), nn.MaxPool2d(2), nn.SiLU(inplace), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(3, CLASSES),
        )  # fmt: skip
        return seeded(Net(features, tail, (2, 8, 9)), seed)

    there, not_there = build(True), build(False)
    not_there.load_state_dict(copy.deepcopy(there.state_dict()))
    return there, not_there


def circular(seed: int = 0) -> Net:
    """Circular padding, stride 1 throughout: shifting the input shifts everything."""

    def conv(before: int, after: int) -> nn.Conv2d:
        return nn.Conv2d(before, after, 3, padding=1, padding_mode="circular")

    features = nn.Sequential(conv(2, 3), nn.ReLU(), conv(3, 4), nn.GELU())
    tail = nn.Sequential(conv(4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES))
    return seeded(Net(features, tail, (2, 8, 9)), seed)


def mirrored(seed: int = 0) -> Net:
    """Every kernel its own mirror image along x: flipping the input flips everything."""
    net = biased_tail(2, seed)
    pool = nn.AdaptiveAvgPool2d(1)
    net.tail = nn.Sequential(nn.Conv2d(4, 3, 3), nn.SiLU(), pool, nn.Flatten(), nn.Linear(3, CLASSES))
    seeded(net, seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_((module.weight + module.weight.flip(-1)) / 2)
    return net


TAILS: dict[str, Callable[..., Net]] = {
    "gap_linear": gap_linear, "flatten_linear": flatten_linear, "nin": nin, "gmp_linear": gmp_linear,
    "gem_linear": lambda dims=2, seed=0: gem_linear(3.0, dims, seed), "relu_tail": relu_tail,
    "biased_tail": biased_tail, "smooth_tail": smooth_tail,
}  # fmt: skip
"""Every tail that exists in one, two and three dimensions, by name."""
