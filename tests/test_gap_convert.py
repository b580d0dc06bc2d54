"""Fully connected nets made into GAP nets and into convolutional ones; the nets handed over stay as they were."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import nets
import pytest
import torch
from fingerprint import untouched
from replicas import apart
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl
from camlucida.errors import ModelError
from camlucida.gap import GAPLinear, conv_head, to_gap

# ------------------------------------------------------------------------------------------------------ nets to convert


class Lenet(nn.Module):
    """As people write it: functional pools and ReLUs, a view with the numbers put in by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 5), nn.Conv2d(3, 4, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(4 * 5 * 5, 12), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 4 * 5 * 5)
        x = F.dropout(F.relu(self.fc1(x)), training=self.training)
        return self.fc3(torch.relu(self.fc2(x)))


class Vgg(nn.Module):
    """The shape of torchvision's VGG and AlexNet: features, an adaptive pool, a functional flatten, a classifier."""

    def __init__(self, pool: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1),
            nn.ReLU(True), nn.MaxPool2d(2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(pool)
        self.classifier = nn.Sequential(
            nn.Linear(6 * pool * pool, 7), nn.ReLU(True), nn.Dropout(), nn.Linear(7, 8), nn.ReLU(True), nn.Dropout(),
            nn.Linear(8, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Shortcut(nn.Module):
    """A last stage of stride two with a shortcut beside it, then a global average: ResNet's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()
        self.conv, self.down = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(4, 6, 1, 2)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(self.conv(x) + self.down(x))
        return self.fc(x.mean((2, 3)))


class Shared(nn.Module):
    """One ReLU in place, called between modules again and again; rows told with len, which no tracer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.relu, self.two = nn.Conv2d(2, 3, 3), nn.ReLU(True), nn.Conv2d(3, 4, 3, 2)
        self.first, self.last = nn.Linear(4 * 3 * 4, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.two(self.relu(self.one(x))))
        return self.last(self.relu(self.first(x.reshape(len(x), -1))))


class Odd(nn.Module):
    """What looks like a head but is another function, ``how`` says which."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.fc, self.how = nn.Conv2d(2, 3, 3), nn.Linear(3 * 6 * 6, 4), how

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        if self.how == "channels last":
            return self.fc(maps.permute(0, 2, 3, 1).flatten(1))
        return F.softmax(self.fc(torch.flatten(maps, 1)), 0)


def plain(dims: int) -> nn.Sequential:
    """A Sequential through and through, with a normalisation and another activation in the head."""
    conv, pool = getattr(nn, f"Conv{dims}d"), getattr(nn, f"MaxPool{dims}d")
    places = {1: 8, 2: 8 * 8, 3: 4**3}[dims]
    return nn.Sequential(
        conv(2, 3, 3, padding=1), nn.ReLU(), pool(4), nn.Flatten(), nn.Linear(3 * places, 6), nn.BatchNorm1d(6),
        nn.GELU(), nn.Dropout(0.3), nn.Linear(6, 5, bias=False), nn.LogSoftmax(-1),
    )  # fmt: skip


SQUEEZE = nn.Sequential(
    nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    nn.Sequential(nn.Dropout(), nn.Conv2d(4, 7, 1), nn.ReLU(True), nn.AdaptiveAvgPool2d(1)),
    nn.Flatten(),
)

Case = tuple[Callable[[], nn.Module], tuple[int, ...]]
CASES: dict[str, Case] = {
    "lenet": (Lenet, (1, 32, 32)),
    "vgg": (Vgg, (2, 12, 12)),
    "vgg, folded pool": (Vgg, (2, 20, 16)),
    "vgg, widened pool": (Vgg, (2, 8, 8)),
    "shortcut": (Shortcut, (2, 12, 10)),
    "1d": (lambda: plain(1), (2, 32)),
    "2d": (lambda: plain(2), (2, 32, 32)),
    "3d": (lambda: plain(3), (2, 16, 16, 16)),
    "squeeze": (lambda: SQUEEZE, (2, 12, 10)),
    "shared": (Shared, (2, 10, 12)),
    "wrapped": (lambda: nn.DataParallel(Vgg()), (2, 12, 12)),
}


@contextmanager
def drawing(model: nn.Module) -> Iterator[None]:
    """Nothing but the random stream may change: the new head's weights are drawn from it."""
    with untouched(model), torch.random.fork_rng():
        yield


cases = pytest.mark.parametrize("case", CASES)


def made(case: str) -> tuple[nn.Module, Tensor]:
    build, shape = CASES[case]
    return nets.seeded(build(), 3), torch.randn(2, *shape, dtype=torch.float64)


# ----------------------------------------------------------------------------------------------------------- conv_head


@cases
def test_a_convolutional_head_equals_the_model_at_its_own_size(case: str) -> None:
    model, probe = made(case)
    with untouched(model):
        dense = conv_head(model, probe=probe)
    x = torch.randn_like(probe)
    y = dense(x)
    assert y.shape == (2, model(x).shape[1], *(1,) * (x.dim() - 2))
    assert apart(y.flatten(1), model(x)) < 1e-10
    assert not any(m.training for m in dense.modules())
    assert not {p.data_ptr() for p in dense.parameters()} & {p.data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("case", ["lenet", "vgg", "1d", "2d", "3d", "squeeze"])
def test_larger_pictures_give_a_grid_of_logits(case: str) -> None:
    model, probe = made(case)
    step, more = 2 if case == "squeeze" else 4, (8, 12, 4)
    space = [s + n for s, n in zip(probe.shape[2:], more, strict=False)]
    y = conv_head(model, probe=probe)(torch.randn(1, probe.shape[1], *space, dtype=torch.float64))
    assert y.shape[2:] == tuple(n // step + 1 for n, _ in zip(more, space, strict=False))


def test_each_place_is_the_model_on_its_window() -> None:
    model, probe = made("lenet")  # without padding: a window that is cut out is just what the net sees
    x = torch.randn(1, 1, 40, 44, dtype=torch.float64)
    y = conv_head(model, probe=probe)(x)
    assert y.shape == (1, 5, 3, 4)
    for i in range(3):
        for j in range(4):
            window = x[:, :, 4 * i : 4 * i + 32, 4 * j : 4 * j + 32]
            assert apart(y[:, :, i, j], model(window)) < 1e-10


def test_dropout_and_modes_survive() -> None:
    model = nets.seeded(Vgg(), 0).train()
    model.features[2].eval()
    dense = conv_head(model, probe=torch.randn(2, 2, 12, 12, dtype=torch.float64))
    kinds = [type(m).__name__ for m in dense.head]
    assert kinds == ["Conv2d", "ReLU", "Dropout", "Conv2d", "ReLU", "Dropout", "Conv2d"]
    assert dense.training and dense.head[2].training and not dense.features[2].training
    assert list(dense.state_dict())[:2] == ["features.0.weight", "features.0.bias"]


def test_heads_without_a_convolutional_form_are_named() -> None:
    norm = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.LayerNorm(3 * 36), nn.Linear(3 * 36, 4))
    with pytest.raises(ModelError, match=r"2 \(LayerNorm\) in the head has no convolutional form"):
        conv_head(norm, probe=torch.rand(2, 2, 8, 8))
    maxima = nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(12, 4))
    with pytest.raises(ModelError, match=r"1 makes \(2, 2\) maxima of \(6, 6\) places"):
        conv_head(maxima, probe=torch.rand(2, 2, 8, 8))
    flat = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten())
    with pytest.raises(ModelError, match="no linear layer takes them in"):
        conv_head(flat, probe=torch.rand(2, 2, 8, 8))


def test_a_global_maximum_becomes_a_sliding_one() -> None:
    model = nets.seeded(nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(3, 4)), 0)
    x = torch.randn(2, 2, 8, 9, dtype=torch.float64)
    assert apart(conv_head(model, probe=x)(x).flatten(1), model(x)) < 1e-10


# -------------------------------------------------------------------------------------------------------------- to_gap


@cases
def test_a_gap_net_keeps_the_trunk_and_gets_a_new_head(case: str) -> None:
    model, probe = made(case)
    with drawing(model):
        net = to_gap(model, 6, probe=probe)
    assert isinstance(net.head, GAPLinear) and net.head.bias is not None and net.report is not None
    maps = net.class_maps(probe)
    assert net(probe).shape == (2, 6) and apart(maps.flatten(2).mean(2) + net.head.bias, net(probe)) < 1e-10
    assert net.report.before == sum(p.numel() for p in model.parameters())
    assert net.report.after == sum(p.numel() for p in net.parameters())
    assert net.report.after == net.report.kept + sum(p.numel() for p in net.head.parameters())
    assert net.report.grid == net.report.grid_before == tuple(maps.shape[2:])
    assert net.report.saved == net.report.before - net.report.after
    theirs = list(model.parameters())[: len(list(net.features.parameters()))]
    assert all(torch.equal(p, q) for p, q in zip(theirs, net.features.parameters(), strict=True))
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_the_trunks_output_is_the_models_own() -> None:
    model = nets.seeded(Vgg(), 0)
    x = torch.randn(2, 2, 12, 12, dtype=torch.float64)
    net = to_gap(model, 5, probe=x)
    assert apart(net.features(x), model.features(x)) == 0
    assert [n for n, _ in net.features.named_parameters()] == [n for n, _ in model.features.named_parameters()]
    lenet, y = nets.seeded(Lenet(), 0), torch.randn(2, 1, 32, 32, dtype=torch.float64)
    act = to_gap(lenet, 5, probe=y).features(y)
    assert apart(lenet.fc3(torch.relu(lenet.fc2(torch.relu(lenet.fc1(act.flatten(1)))))), lenet(y)) < 1e-12


def test_a_gap_net_of_one_linear_layer_equals_the_model_it_came_from() -> None:
    model = nets.gap_linear()
    net = to_gap(model, nets.CLASSES, probe=model.x())
    with torch.no_grad():
        net.head.linear.load_state_dict(model.head.state_dict())
    assert apart(net(model.x()), model(model.x())) < 1e-12


def test_a_converted_net_explains_at_once() -> None:
    model, x = made("vgg")
    net = to_gap(model, 4, probe=x)
    e = cl.explain(net, x, target=2, method="cam", layer="features")
    assert apart(e.map, net.class_maps(x)[:, 2]) < 1e-12
    finer = to_gap(model, 4, finer=True, probe=x)
    e = cl.explain(finer, x, target=2, method="cam")  # no pool last: the layer is found
    assert apart(e.map, finer.class_maps(x)[:, 2]) < 1e-12
    lenet, y = made("lenet")
    traced = to_gap(lenet, 4, probe=y)
    e = cl.explain(traced, y, target=2, method="cam", layer="features")
    assert apart(e.map, traced.class_maps(y)[:, 2]) < 1e-12


@pytest.mark.parametrize(
    "case, changed, grid",
    [
        ("vgg", ("5",), (6, 6)), ("shortcut", ("conv", "down"), (12, 10)), ("1d", ("2",), (32,)),
        ("squeeze", ("2",), (12, 10)),
    ],
)  # fmt: skip
def test_finer_takes_the_last_step_down_out(case: str, changed: tuple[str, ...], grid: tuple[int, ...]) -> None:
    model, probe = made(case)
    with drawing(model):
        net = to_gap(model, 6, finer=True, probe=probe)
    assert net.report is not None and net.report.changed == changed and net.report.grid == grid
    assert tuple(net.class_maps(probe).shape[2:]) == grid and net(probe).shape == (2, 6)
    if case == "vgg":
        assert apart(net.features(probe), model.features[:5](probe)) < 1e-12


def test_finer_needs_a_step_to_take() -> None:
    flat = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 36, 4))
    with pytest.raises(ModelError, match="no pool and no strided convolution"):
        to_gap(flat, 4, finer=True, probe=torch.rand(2, 2, 8, 8))


def test_a_step_far_from_the_last_maps_is_not_taken_out() -> None:
    merging = nn.Sequential(nn.Conv2d(2, 3, 4, stride=4), nn.PixelUnshuffle(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                            nn.Linear(12, 4))  # fmt: skip
    with pytest.raises(ModelError, match="the last one, 0, is not what makes them 4×4"):
        to_gap(merging, 4, finer=True, probe=torch.rand(2, 2, 32, 32))


def test_maps_are_taken_before_a_pool_that_leaves_one_place() -> None:
    head = (nn.AdaptiveAvgPool2d(1), nn.GroupNorm(1, 3), nn.Conv2d(3, 6, 1), nn.SiLU(), nn.Flatten(), nn.Linear(6, 4))
    model, x = nets.seeded(nn.Sequential(nn.Conv2d(2, 3, 3), *head), 0), torch.randn(2, 2, 8, 9, dtype=torch.float64)
    net = to_gap(model, 4, probe=x)
    assert net.report is not None and net.report.grid == (6, 7) and net.report.kept == 57
    with pytest.raises(ModelError, match=r"2 \(GroupNorm\)"):
        conv_head(model, probe=x)
    plain_head = nets.seeded(nn.Sequential(nn.Conv2d(2, 3, 3), head[0], *head[2:]), 0)
    assert apart(conv_head(plain_head, probe=x)(x).flatten(1), plain_head(x)) < 1e-10


def test_freeze_freezes_the_trunk_and_only_the_copy() -> None:
    model, probe = made("vgg")
    model.train()
    net = to_gap(model, 6, freeze=True, probe=probe)
    assert net.training and net.head.training and not any(m.training for m in net.features.modules())
    assert not any(p.requires_grad for p in net.features.parameters())
    assert all(p.requires_grad for p in [*net.head.parameters(), *model.parameters()])
    open_ = to_gap(model, 6, probe=probe)
    assert all(p.requires_grad for p in open_.parameters()) and open_.training


def test_the_size_is_found_where_none_is_given() -> None:
    for model, channels, size in ((Lenet(), 1, 32), (plain(2), 2, 32), (nn.Sequential(*plain(3)), 2, 16)):
        net = to_gap(model, 3)
        assert net.report is not None and net.report.after < net.report.before + 50
        x = torch.rand(2, channels, *(size,) * (3 if channels == 2 and size == 16 else 2))
        assert net(x).shape == (2, 3)


def test_a_size_that_the_model_cuts_into_more_rows_is_not_its_size() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4 * 16 * 16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.conv(x)).view(-1, 4 * 16 * 16))

    net = to_gap(Rows(), 3)
    assert net.report is not None and net.report.grid == (16, 16)


def test_a_compiled_model_is_read_without_compiling_it() -> None:
    net = to_gap(torch.compile(Lenet(), backend="eager"), 3)
    assert net.report is not None and net.report.kept == 4 * 25 * 3 + 4 + 25 * 3 + 3


def test_a_model_converted_in_inference_mode_can_be_trained() -> None:
    model, probe = made("vgg")
    with torch.inference_mode():
        net, dense = to_gap(model, 3, probe=probe), conv_head(model, probe=probe)
    (net(probe).sum() + dense(probe).sum()).backward()
    assert all(p.grad is not None for p in [*net.parameters(), *dense.parameters()])


def test_nothing_random_happens_to_the_callers_stream_but_the_new_weights() -> None:
    model, probe = made("vgg")
    torch.manual_seed(5)
    expected = GAPLinear(6, 5).linear.weight.double()
    torch.manual_seed(5)
    assert torch.equal(to_gap(model, 5, probe=probe).head.linear.weight, expected)


@pytest.mark.parametrize(
    "model, said",
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU()), "no convolution.*Flatten, Linear, ReLU"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), r"returns \(2, 4, .*not one row of logits"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 4)), "pass probe="),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), r"2 \(Flatten\)"),
        (Odd("channels last"), r"\(2, 6, 6, 3\), come channels last"),
        (Odd("over pictures"), r"accounts for its output.*fc \(Linear\)"),
        (nets.token_net(), r"head cannot be told.*last \(Linear\)"),
    ],
    ids=["no convolution", "no logits", "no size", "no classifier", "last", "softmax", "tokens"],
)
def test_what_cannot_be_converted_is_named(model: nn.Module, said: str) -> None:
    probe = model.x() if isinstance(model, nets.Net) else torch.rand(2, 2, 8, 8) if isinstance(model, Odd) else None
    with untouched(model), pytest.raises(ModelError, match=said):
        to_gap(model, 4, probe=probe)


# ---------------------------------------------------------------------------------------------------------- torchvision


def test_a_probe_that_does_not_fit_is_named() -> None:
    with pytest.raises(ModelError, match=r"could not be run on the probe.*channels"):
        to_gap(Vgg(), 4, probe=torch.rand(2, 3, 12, 12))


def build(torchvision: Any, name: str, classes: int = 1000) -> nn.Module:
    how = {} if name.startswith(("squeeze", "alex")) else {"init_weights": False}
    how = {} if name.startswith(("res", "mobile", "dense", "shuffle")) else how
    return getattr(torchvision.models, name)(weights=None, num_classes=classes, **how)


@pytest.mark.heavy
def test_vgg16_sheds_nine_tenths_and_becomes_convolutional(torchvision: Any) -> None:
    model = nets.seeded(build(torchvision, "vgg16"), 0, 2**0.5)
    with drawing(model):
        net, finer = to_gap(model, 1000), to_gap(model, 1000, finer=True)
    assert net.report is not None and finer.report is not None
    assert (net.report.before, net.report.kept, net.report.after) == (138_357_544, 14_714_688, 15_227_688)
    assert (net.report.grid, finer.report.grid, finer.report.changed) == ((7, 7), (14, 14), ("30",))
    x = torch.rand(1, 3, 224, 224, dtype=torch.float64)
    with untouched(model):
        dense = conv_head(model)
    assert apart(dense(x).flatten(1), model(x)) < 1e-10
    assert dense(torch.rand(1, 3, 256, 320, dtype=torch.float64)).shape == (1, 1000, 2, 4)


@pytest.mark.parametrize(
    "name, size, kept, grid, finer",
    [
        ("alexnet", 224, 2_469_696, (6, 6), (13, 13)),
        ("squeezenet1_1", 64, 722_496, (3, 3), (7, 7)),
        ("resnet18", 64, 11_176_512, (2, 2), (4, 4)),
        ("mobilenet_v2", 64, 2_223_872, (2, 2), (4, 4)),
        ("shufflenet_v2_x0_5", 64, 341_792, (2, 2), (4, 4)),
    ],
)
def test_torchvisions_nets_convert(
    torchvision: Any, name: str, size: int, kept: int, grid: tuple[int, ...], finer: tuple[int, ...]
) -> None:
    model = build(torchvision, name).eval()
    probe = torch.rand(1, 3, size, size)
    with drawing(model):
        net = to_gap(model, 5, probe=probe)
    assert net.report is not None and (net.report.kept, net.report.grid) == (kept, grid)
    if name != "shufflenet_v2_x0_5":
        assert to_gap(model, 5, finer=True, probe=probe).report.grid == finer
    assert cl.explain(net, probe, target=1, method="cam", layer="features").map.shape[1:] == grid


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1", "resnet18", "mobilenet_v2"])
def test_torchvisions_nets_become_convolutional(torchvision: Any, name: str) -> None:
    model = build(torchvision, name, 6).double().eval()
    size = 224 if name == "alexnet" else 64
    x = torch.rand(1, 3, size, size, dtype=torch.float64)
    with untouched(model):
        dense = conv_head(model, probe=x)
    assert apart(dense(x).flatten(1), model(x)) < 1e-10
    assert dense(torch.rand(1, 3, size + 64, size + 32, dtype=torch.float64)).shape[2:] in ((3, 2), (5, 3))
