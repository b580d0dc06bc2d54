"""The two heads: equal where their weights are, exact in what their maps add up to, and CAM by themselves."""

import nets
import pytest
import torch
from fingerprint import untouched
from replicas import apart
from torch import Tensor, nn

import camlucida as cl
from camlucida.errors import MethodError, ModelError
from camlucida.gap import GAPConv, GAPLinear, GAPNet, GAPRectified, GlobalAveragePooling

dimensions = pytest.mark.parametrize("dims", [1, 2, 3], ids=["1d", "2d", "3d"])
biases = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
HEADS = ["linear", "conv"]
heads = pytest.mark.parametrize("kind", HEADS)


def head(kind: str, dims: int, bias: bool = True, dropout: float = 0.0) -> GAPLinear | GAPConv:
    made = GAPLinear(4, 5, bias, dropout) if kind == "linear" else GAPConv(4, 5, bias, dropout, dims)
    return made.double().eval()


def acts(dims: int, b: int = 3) -> Tensor:
    return torch.randn(b, 4, *nets.SPACE[dims], dtype=torch.float64)


def net(kind: str, dims: int, bias: bool = True) -> tuple[GAPNet, Tensor]:
    features = nets.gap_linear(dims, 1, nn.Identity()).features
    return GAPNet(features, head(kind, dims, bias)).eval(), nets.gap_linear(dims).x(3)


def mean(maps: Tensor) -> Tensor:
    return maps.flatten(2).mean(2)


@dimensions
@biases
@heads
def test_the_mean_of_a_class_map_plus_the_bias_is_the_logit(kind: str, bias: bool, dims: int) -> None:
    made, act = head(kind, dims, bias), acts(dims)
    maps = made.class_maps(act)
    assert maps.shape == (3, 5, *nets.SPACE[dims])
    assert (made.bias is None) is not bias
    assert apart(mean(maps) + (0 if made.bias is None else made.bias), made(act)) < 1e-12


@dimensions
@heads
def test_class_maps_are_the_sum_of_weighted_channels_in_loops(kind: str, dims: int) -> None:
    made, act = head(kind, dims), acts(dims, 1)
    w = (made.linear if isinstance(made, GAPLinear) else made.conv).weight.flatten(1)
    for k in range(5):
        slow = sum(w[k, c] * act[0, c] for c in range(4))
        assert apart(made.class_maps(act)[0, k], slow) < 1e-12


@dimensions
@biases
def test_both_heads_are_equal_with_the_same_weights(bias: bool, dims: int) -> None:
    linear, act = head("linear", dims, bias, 0.25), acts(dims)
    conv = GAPConv.from_linear(linear, dims)
    back = GAPLinear.from_conv(conv)
    convolved = mean(conv.conv(act))  # the convolution first, the average after it, as the paper draws it
    for other in (conv(act), back(act), convolved):
        assert apart(other, linear(act)) < 1e-12
    assert apart(conv.class_maps(act), linear.class_maps(act)) < 1e-12
    assert torch.equal(back.linear.weight, linear.linear.weight)
    assert len({m.data_ptr() for m in (linear.linear.weight, conv.conv.weight, back.linear.weight)}) == 3  # copies
    assert back.dropout.p == conv.dropout.p == 0.25 and not conv.training
    assert [n for n, _ in conv.named_parameters()] == (["conv.weight", "conv.bias"] if bias else ["conv.weight"])


def test_plain_layers_become_heads_and_converting_touches_nothing() -> None:
    linear, conv, act = nn.Linear(4, 5).double(), nn.Conv2d(4, 5, 1).double().train(), acts(2)
    linear.weight.requires_grad_(False)
    with untouched(linear), untouched(conv):
        made, other = GAPConv.from_linear(linear), GAPLinear.from_conv(conv)
    assert apart(made(act), linear(act.mean((2, 3)))) < 1e-12 and apart(other(act), mean(conv(act))) < 1e-12
    assert not made.conv.weight.requires_grad and made.conv.bias is not None and made.conv.bias.requires_grad
    assert made.conv.weight.device.type == "cpu" and other.training


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 1, stride=2), nn.Conv2d(4, 6, 1, groups=2), nn.Conv1d(4, 6, 1, padding=1)],
)
def test_other_convolutions_are_refused(conv: nn.Conv2d) -> None:
    with pytest.raises(ModelError, match="1×1"):
        GAPLinear.from_conv(conv)


def test_four_axes_of_space_are_refused() -> None:
    with pytest.raises(ModelError, match="dims is 4"):
        GAPConv(4, 5, dims=4)


@dimensions
@heads
def test_masks_equal_cropping(kind: str, dims: int) -> None:
    made, act = head(kind, dims), acts(dims)
    padded = nn.functional.pad(act, (1, 2) * dims, value=7.0)
    mask = nn.functional.pad(torch.ones_like(act[:, 0]), (1, 2) * dims)
    assert apart(made(padded, mask), made(act)) < 1e-12


# ----------------------------------------------------------------------------------------- as heads of CAM: P1, P2, P13


@dimensions
@biases
@heads
@pytest.mark.parametrize("layer", [None, "features"])
def test_cam_of_a_class_is_its_class_map(kind: str, bias: bool, dims: int, layer: str | None) -> None:
    model, x = net(kind, dims, bias)
    maps = model.class_maps(x)
    with untouched(model):
        found = cl.sweep(model, x, targets=range(5), methods=["cam"], layers=[layer])
    for c, e in enumerate(found):
        assert apart(e.map, maps[:, c]) < 1e-12
        assert e.layer in ("features", "features.3")


@dimensions
@heads
def test_p01_gradcam_hirescam_and_xgradcam_are_the_class_map_over_z(kind: str, dims: int) -> None:
    model, x = net(kind, dims)
    maps = model.class_maps(x)
    for e in cl.sweep(model, x, targets=[3], methods=["gradcam", "hirescam", "xgradcam"], layers=["features"]):
        assert apart(e.map, maps[:, 3] / maps[0, 0].numel()) < (1e-8 if e.method == "xgradcam" else 1e-10)


@dimensions
@heads
def test_p02_hirescam_sums_to_the_logit_less_its_bias(kind: str, dims: int) -> None:
    model, x = net(kind, dims)
    e = cl.explain(model, x, target=2, method="hirescam", layer="features")
    assert model.head.bias is not None
    assert apart(e.map.flatten(1).sum(1) + model.head.bias[2], model(x)[:, 2]) < 1e-10


@dimensions
@heads
def test_p13_what_one_place_alone_adds_to_the_logit_is_its_part_of_the_class_map(kind: str, dims: int) -> None:
    made, act = head(kind, dims), acts(dims, 1)
    maps, z = made.class_maps(act).flatten(2), act[0, 0].numel()
    places = torch.eye(z, dtype=torch.float64).reshape(z, 1, *act.shape[2:])
    alone = made(act * places)  # one place at a time, all others zero
    assert made.bias is not None
    assert apart(z * (alone - made.bias).T[None], maps) < 1e-10


def test_the_rectified_head_is_the_published_one() -> None:
    made, act = GAPRectified(4, 5).double().eval(), acts(2)
    slow = torch.stack([torch.relu(made.conv(a[None]))[0].flatten(1).mean(1) for a in act])
    assert apart(made(act), slow) < 1e-12
    assert apart(mean(made.class_maps(act)), made(act)) < 1e-12
    model, x = GAPNet(nets.gap_linear(2, 1, nn.Identity()).features, made).eval(), nets.gap_linear(2).x(3)
    e = cl.explain(model, x, target=1)
    maps = model.class_maps(x)[:, 1]
    assert (maps == 0).any() and e.layer == "head.relu" and apart(e.map * maps[0].numel(), maps) < 1e-12
    with pytest.raises(MethodError, match="gradcam"):
        cl.explain(model, x, target=1, method="cam", layer="features")


def test_dropout_acts_in_training_only_and_on_channels() -> None:
    for kind in HEADS:
        made, act = head(kind, 2, True, 0.5), acts(2)
        assert torch.equal(made(act), made(act))
        made.train()
        assert not torch.equal(made(act), made(act))
        assert apart(made.class_maps(act), head_without(made).class_maps(act)) == 0


def head_without(made: GAPLinear | GAPConv) -> GAPLinear:
    plain = made if isinstance(made, GAPLinear) else GAPLinear.from_conv(made)
    plain.dropout.p = 0.0
    return plain


def test_frozen_features_stay_as_they_are_in_training() -> None:
    features = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).double()
    model = GAPNet(features, head("linear", 2), frozen=True).train()
    before = {k: v.clone() for k, v in features.state_dict().items()}
    x = torch.randn(4, 2, 6, 7, dtype=torch.float64)
    model(x).sum().backward()
    assert model.training and model.head.training and not any(m.training for m in features.modules())
    assert all(p.grad is None for p in features.parameters()) and all(
        p.grad is not None for p in model.head.parameters()
    )
    assert all(torch.equal(v, before[k]) for k, v in features.state_dict().items())
    assert isinstance(model.head.pool, GlobalAveragePooling)
