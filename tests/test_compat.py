"""The original's interface: same calls, same masks where the original was right, and no failure where it failed."""

import copy
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from camlucida import compat
from camlucida.compat import GradCAM, GradCAMpp, Normalize, visualize_cam
from camlucida.errors import InputError, LayerError, TargetError
from camlucida.view import table

try:
    from torchvision import models as tv
except (ImportError, RuntimeError) as problem:  # RuntimeError: a wheel built for another torch
    tv, why_not = None, f"torchvision cannot be imported here: {problem}"
else:
    why_not = ""
needs_torchvision = pytest.mark.skipif(tv is None, reason=why_not)

CLASSES = 6


# ------------------------------------------------------------------- five families, small, with their layers' names


def conv(cin: int, cout: int, side: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, side, stride, padding=side // 2)


def named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


class Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(3, 8), nn.ReLU(inplace=True), nn.MaxPool2d(2), conv(8, 12), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(3)
        self.classifier = nn.Sequential(nn.Linear(108, 16), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(16, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class Block(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(cin, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = conv(4, 4, 3, stride), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = conv(4, cout, 1), nn.BatchNorm2d(cout)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or cin != cout:
            self.downsample = nn.Sequential(conv(cin, cout, 1, stride), nn.BatchNorm2d(cout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class Resnet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = conv(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Block(8, 12), Block(12, 12))
        self.layer4 = nn.Sequential(Block(12, 16, 2), Block(16, 16), Block(16, 16))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer4(self.layer1(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(self.avgpool(x).flatten(1))


class DenseLayer(nn.Module):
    def __init__(self, cin: int) -> None:
        super().__init__()
        self.norm1, self.relu1, self.conv1 = nn.BatchNorm2d(cin), nn.ReLU(inplace=True), conv(cin, 4, 1)
        self.norm2, self.relu2, self.conv2 = nn.BatchNorm2d(4), nn.ReLU(inplace=True), conv(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        new = self.conv2(self.relu2(self.norm2(self.conv1(self.relu1(self.norm1(x))))))
        return torch.cat([x, new], 1)


class Densenet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = named(
            conv0=conv(3, 8, 3, 2), norm0=nn.BatchNorm2d(8), relu0=nn.ReLU(inplace=True),
            denseblock1=named(**{f"denselayer{i}": DenseLayer(4 + 4 * i) for i in range(1, 3)}),
            transition1=named(norm=nn.BatchNorm2d(16), relu=nn.ReLU(inplace=True), conv=conv(16, 8, 1)),
            denseblock2=named(**{f"denselayer{i}": DenseLayer(4 + 4 * i) for i in range(1, 13)}),
            norm5=nn.BatchNorm2d(56),
        )  # fmt: skip
        self.classifier = nn.Linear(56, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.features(x), inplace=True)  # writes over what `norm5` gave, as torchvision's
        return self.classifier(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Fire(nn.Module):
    def __init__(self, cin: int) -> None:
        super().__init__()
        self.squeeze, self.squeeze_activation = conv(cin, 4, 1), nn.ReLU(inplace=True)
        self.expand1x1, self.expand1x1_activation = conv(4, 6, 1), nn.ReLU(inplace=True)
        self.expand3x3, self.expand3x3_activation = conv(4, 6), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        small, large = self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))
        return torch.cat([small, large], 1)


class Squeezenet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        head = [conv(3, 8, 3, 2), nn.ReLU(inplace=True), Fire(8), *[nn.Identity() for _ in range(9)], Fire(12)]
        self.features = nn.Sequential(*head)
        last = [conv(12, CLASSES, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)]
        self.classifier = nn.Sequential(nn.Dropout(), *last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x)).flatten(1)


def made(kind: type[nn.Module]) -> nn.Module:
    """A net of random weights and random statistics; the same one every time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = kind()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.normal_(module.bias, 0, 0.2)
    return net.eval()


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


FAMILIES = [  # family, net, the original's name of a layer, dotted name
    ("vgg", Vgg, "features_4", "features.4"),
    ("alexnet", Vgg, "features_3", "features.3"),
    ("resnet", Resnet, "layer4", "layer4"),
    ("resnet", Resnet, "layer4_bottleneck2_conv3", "layer4.2.conv3"),
    ("resnet", Resnet, "layer1_basicblock0_relu", "layer1.0.relu"),
    ("densenet", Densenet, "features_norm5", "features.norm5"),
    ("densenet", Densenet, "features", "features"),
    ("densenet", Densenet, "features_denseblock2_denselayer12_conv2", "features.denseblock2.denselayer12.conv2"),
    ("squeezenet", Squeezenet, "features_12_expand3x3_activation", "features.12.expand3x3_activation"),
]


# ------------------------------------------------------------------------------------------ written out by hand


def read_by_hand(model: nn.Module, layer: str, x: torch.Tensor, k: int | None) -> tuple[torch.Tensor, ...]:
    """Activation, gradient and logits of one picture, with a hook and autograd, on a copy in float64."""
    model, kept = copy.deepcopy(model).double().eval().requires_grad_(True), []

    def keep(module: nn.Module, args: object, out: torch.Tensor) -> torch.Tensor:
        kept.append(out.clone())
        return kept[0].clone()

    model.get_submodule(layer).register_forward_hook(keep)
    with torch.enable_grad():
        logit = model(x.double())
        (grad,) = torch.autograd.grad(logit[0, int(logit.argmax()) if k is None else k], kept[0])
    return kept[0].detach(), grad, logit.detach()


def normalised(raw: torch.Tensor, size: torch.Size) -> torch.Tensor:
    heat = F.interpolate(raw.clamp(min=0)[None, None], size, mode="bilinear", align_corners=False)
    return (heat - heat.min()) / (heat.max() - heat.min())


def gradcam_by_hand(model: nn.Module, layer: str, x: torch.Tensor, k: int | None = None) -> torch.Tensor:
    act, grad, _ = read_by_hand(model, layer, x, k)
    raw = sum(grad[0, c].mean() * act[0, c] for c in range(act.shape[1]))
    return normalised(raw, x.shape[2:])


def gradcampp_by_hand(model: nn.Module, layer: str, x: torch.Tensor, k: int | None = None) -> torch.Tensor:
    """Equation 19 of the paper, place by place; at a rectified layer, so that no denominator vanishes."""
    act, grad, logit = read_by_hand(model, layer, x, k)
    score = logit.max() if k is None else logit[0, k]
    raw = torch.zeros(act.shape[2:], dtype=act.dtype)
    for a, g in zip(act[0], grad[0], strict=True):
        weight = 0.0
        for one in g.flatten().tolist():
            if one > 0:
                weight += one**2 / (2 * one**2 + float(a.sum()) * one**3) * one * float(score.exp())
        raw += weight * a
    return normalised(raw, x.shape[2:])


def telling(model: nn.Module, layer: str, x: torch.Tensor) -> int:
    """A class whose map is not blank, so that the comparison means something."""
    return next(k for k in range(CLASSES) if gradcam_by_hand(model, layer, x, k).isfinite().all())


def close(mask: torch.Tensor, by_hand: torch.Tensor) -> None:
    assert float(by_hand.max()) == 1  # a blank reference would prove nothing
    torch.testing.assert_close(mask.double(), by_hand, rtol=0, atol=2e-4)


# ------------------------------------------------------------------------------------------------- masks and logits


@pytest.mark.parametrize(("family", "kind", "name", "dotted"), FAMILIES)
def test_the_mask_is_grad_cam_and_the_logit_the_models_answer(family, kind, name, dotted):
    net, x = made(kind), pictures(1, 3, 32, 32)
    k = telling(net, dotted, x)
    mask, logit = GradCAM(dict(type=family, arch=net, layer_name=name, input_size=(32, 32)))(x, k)
    assert mask.shape == (1, 1, 32, 32)
    assert not mask.requires_grad and not logit.requires_grad
    close(mask, gradcam_by_hand(net, dotted, x, k))
    with torch.no_grad():
        torch.testing.assert_close(logit, net(x))


@pytest.mark.parametrize(
    ("kind", "name", "dotted"),
    [(Vgg, "features_4", "features.4"), (Resnet, "layer4", "layer4"), (Squeezenet, "features_12", "features.12")],
)
def test_grad_cam_pp_is_the_papers(kind, name, dotted):
    net, x = made(kind), pictures(1, 3, 40, 24)
    for k in range(CLASSES):
        mask, _ = GradCAMpp(dict(type="?", arch=net, layer_name=name))(x, class_idx=k)
        _, grad, _ = read_by_hand(net, dotted, x, k)
        if (grad > 0).any():
            close(mask, gradcampp_by_hand(net, dotted, x, k))
        else:
            assert torch.equal(mask, torch.zeros_like(mask))


def test_the_two_methods_differ():
    args = dict(type="resnet", arch=made(Resnet), layer_name="layer1")
    assert not torch.allclose(GradCAM(args)(pictures(1, 3, 32, 32))[0], GradCAMpp(args)(pictures(1, 3, 32, 32))[0])


@pytest.mark.parametrize("cam", [GradCAM, GradCAMpp])
@pytest.mark.parametrize("size", [(224, 224), (33, 47), (5, 90), (16, 16)])
def test_the_mask_has_the_size_of_the_input_whatever_it_is(cam, size):
    args = dict(type="resnet", arch=made(Resnet), layer_name="layer4", input_size=(224, 224))
    mask, _ = cam(args)(pictures(1, 3, *size))
    assert mask.shape == (1, 1, *size)
    assert 0 <= float(mask.min()) <= float(mask.max()) <= 1


@pytest.mark.parametrize("cam", [GradCAM, GradCAMpp])
def test_every_picture_of_a_batch_stands_on_its_own(cam):
    cam, x = cam(dict(type="vgg", arch=made(Vgg), layer_name="features_4")), pictures(3, 3, 32, 32)
    x[1] *= 10  # normalised together, this one would drown the others
    mask, logit = cam(x)
    assert mask.shape == (3, 1, 32, 32) and logit.shape == (3, CLASSES)
    for i in range(3):
        alone, answer = cam(x[i : i + 1])
        torch.testing.assert_close(mask[i : i + 1], alone, rtol=0, atol=1e-4)
        torch.testing.assert_close(logit[i : i + 1], answer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("as_what", [list, tuple, torch.tensor])
def test_a_class_for_each_picture(as_what):
    net, x = made(Vgg), pictures(3, 3, 32, 32)
    cam = GradCAM(dict(type="vgg", arch=net, layer_name="features_4"))
    wanted = [telling(net, "features.4", x[i : i + 1]) for i in range(3)]
    wanted[1] += 1
    mask, _ = cam(x, class_idx=as_what(wanted))
    for i, k in enumerate(wanted):
        torch.testing.assert_close(mask[i : i + 1], cam(x[i : i + 1], k)[0], rtol=0, atol=1e-4)
    same, _ = cam(x, class_idx=torch.tensor(2))
    torch.testing.assert_close(same, cam(x, [2, 2, 2])[0])
    assert not torch.allclose(mask, same)


def test_class_zero_is_a_class_and_not_the_best_one():
    net, x = made(Vgg), pictures(1, 3, 32, 32)
    best = int(net(x).argmax())
    assert best != 0  # else this would show nothing
    cam = GradCAM(dict(type="vgg", arch=net, layer_name="features_4"))
    close(cam(x, class_idx=0)[0], gradcam_by_hand(net, "features.4", x, 0))
    torch.testing.assert_close(cam(x)[0], cam(x, class_idx=best)[0])


# -------------------------------------------------------------------------------------- blank maps: zeros, never NaN


def head(weight: float) -> nn.Module:
    """A one-channel net whose map is its input times ``weight``."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    nn.init.constant_(net[0].weight, 1.0)
    nn.init.constant_(net[3].weight, weight)
    return net


@pytest.mark.parametrize("cam", [GradCAM, GradCAMpp])
@pytest.mark.parametrize(
    ("weight", "x"),
    [
        (1.0, torch.ones(1, 1, 8, 8)),  # flat
        (1.0, torch.zeros(1, 1, 8, 8)),  # nothing there
        (-1.0, torch.arange(64.0).reshape(1, 1, 8, 8)),  # all negative
        (1.0, torch.full((1, 1, 8, 8), torch.nan)),
        (1.0, torch.ones(1, 1, 8, 8).index_fill(3, torch.tensor(0), torch.inf)),
    ],
)
def test_a_blank_map_is_a_mask_of_zeros(cam, weight, x):
    mask, _ = cam(dict(type="vgg", arch=head(weight), layer_name="0"))(x, class_idx=0)
    assert torch.equal(mask, torch.zeros_like(x))


def test_rounding_noise_on_a_flat_map_is_not_blown_up_to_a_picture():
    noise = 3e-7 * torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    mask, _ = GradCAM(dict(type="vgg", arch=head(1.0), layer_name="0"))(1 + noise, class_idx=0)
    assert torch.equal(mask, torch.zeros_like(noise))


def test_a_blank_picture_leaves_the_rest_of_its_batch_alone():
    x = torch.stack([torch.ones(1, 8, 8), torch.arange(64.0).reshape(1, 8, 8), torch.full((1, 8, 8), torch.nan)])
    mask, _ = GradCAM(dict(type="vgg", arch=head(1.0), layer_name="0"))(x, class_idx=0)
    assert float(mask[0].max()) == 0 == float(mask[2].max())
    torch.testing.assert_close(mask[1], x[1] / 63)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_maps_show_the_same(scale):
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    mask, _ = GradCAM(dict(type="vgg", arch=head(scale), layer_name="0"))(x, class_idx=0)
    torch.testing.assert_close(mask, x / 63)


# ---------------------------------------------------------------------------------------- models as people have them


def test_a_training_model_with_frozen_parameters_under_no_grad_is_left_as_it_was():
    net, x = made(Resnet), pictures(2, 3, 32, 32)
    cam = GradCAM(dict(type="resnet", arch=net, layer_name="layer4"))
    mask, logit = cam(x, class_idx=1)
    net.train().requires_grad_(False)
    net.layer1.eval()
    state, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    for outside in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with outside():
            again, answer = cam(x, class_idx=1)
        assert torch.equal(again, mask) and torch.equal(answer, logit)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in net.modules())


def test_dropout_of_a_training_model_does_not_reach_the_mask():
    net, x = made(Vgg).train(), pictures(1, 3, 32, 32)
    k = telling(net, "features.4", x)
    mask, logit = GradCAM(dict(type="vgg", arch=net, layer_name="features_4"))(x, k)
    close(mask, gradcam_by_hand(net, "features.4", x, k))
    torch.testing.assert_close(logit, net.eval()(x).detach())


def test_no_gradient_is_left_where_the_original_left_one():
    net, x = made(Vgg), pictures(1, 3, 32, 32).requires_grad_()
    GradCAM(dict(type="vgg", arch=net, layer_name="features_4"))(x)
    assert x.grad is None and all(p.grad is None for p in net.parameters())


def test_two_objects_on_one_model_do_not_disturb_each_other():
    net, x = made(Resnet), pictures(1, 3, 32, 32)
    one, two = (GradCAM(dict(type="resnet", arch=net, layer_name=name)) for name in ("layer1", "layer4"))
    k, m = telling(net, "layer1", x), telling(net, "layer4", x)
    first, second = one(x, k)[0], two(x, m)[0]
    assert torch.equal(one(x, k)[0], first) and torch.equal(two(x, m)[0], second)
    close(first, gradcam_by_hand(net, "layer1", x, k))
    close(second, gradcam_by_hand(net, "layer4", x, m))


def test_threads_on_one_object_give_the_same_bits_as_one_thread():
    cam = GradCAM(dict(type="vgg", arch=made(Vgg).train(), layer_name="features_4"))
    xs = [pictures(1, 3, 32, 32, seed=i) for i in range(16)]
    alone = [cam(x) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(cam, xs))
    for (mask, logit), (also, answer) in zip(alone, together, strict=True):
        assert torch.equal(mask, also) and torch.equal(logit, answer)
    assert all(m.training for m in cam.model_arch.modules())


def test_a_data_parallel_model_goes_by_the_names_inside():
    net, x = made(Vgg), pictures(1, 3, 32, 32)
    mask, _ = GradCAM(dict(type="vgg", arch=nn.DataParallel(net), layer_name="features_4"))(x)
    assert torch.equal(mask, GradCAM(dict(type="vgg", arch=net, layer_name="features_4"))(x)[0])


def test_a_model_in_half_precision_gives_a_mask_in_full():
    net, x = made(Vgg).bfloat16(), pictures(1, 3, 32, 32).bfloat16()
    mask, logit = GradCAM(dict(type="vgg", arch=net, layer_name="features_4", input_size=(32, 32)), verbose=True)(x)
    assert mask.dtype == torch.float32 and logit.dtype == torch.bfloat16
    assert float(mask.max()) == 1


@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_with_retain_graph_the_logit_has_its_graph(outside):
    net = made(Resnet).train()
    state = copy.deepcopy(net.state_dict())
    with outside():
        x = pictures(1, 3, 32, 32)
        _, logit = GradCAM(dict(type="resnet", arch=net, layer_name="layer4"))(x, retain_graph=True)
        _, plain = GradCAM(dict(type="resnet", arch=net, layer_name="layer4"))(x)
    torch.testing.assert_close(logit, plain)
    logit[0, 2].backward(retain_graph=True)
    logit[0, 3].backward()
    assert net.conv1.weight.grad is not None
    assert net.training and all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_forward_is_the_call():
    cam, x = GradCAM(dict(type="vgg", arch=made(Vgg), layer_name="features_4")), pictures(1, 3, 32, 32)
    for one, other in zip(cam.forward(x, 1, False), cam(x, 1, False), strict=True):
        assert torch.equal(one, other)


# ------------------------------------------------------------------------------------------ the dictionary, and errors


def test_the_size_is_told_once_and_only_when_asked(capfd):
    net, before = made(Vgg), torch.get_rng_state()
    args = dict(type="vgg", arch=net, layer_name="features_4", input_size=(224, 160))
    cam = GradCAM(args, verbose=True)
    assert capfd.readouterr().out == "saliency_map size : torch.Size([112, 80])\n"
    assert torch.equal(torch.get_rng_state(), before)
    cam(pictures(1, 3, 32, 32))
    GradCAM(args)
    GradCAMpp({k: v for k, v in args.items() if k != "input_size"}, verbose=True)
    assert capfd.readouterr() == ("", "")
    GradCAMpp(args, True)
    assert capfd.readouterr().out.count("saliency_map size :") == 1


@pytest.mark.parametrize("family", [{"type": "vgg"}, {"model_type": "vgg"}, {"model_type": "VGG16"}, {}])
def test_the_family_goes_by_either_key_and_is_not_needed(family):
    net = made(Vgg)
    cam = GradCAM(dict(arch=net, layer_name="features_4", **family))
    assert cam.model_arch is net and cam.layer == "features.4"


@pytest.mark.parametrize("key", ["arch", "layer_name"])
def test_a_missing_key_is_named(key):
    args = dict(type="vgg", arch=made(Vgg), layer_name="features_4")
    del args[key]
    with pytest.raises(InputError, match=f"no '{key}'"):
        GradCAM(args)


def test_a_wrong_layer_is_refused_at_once_and_the_right_one_named():
    with pytest.raises(LayerError, match=r"'features_44'.*Did you mean.*features\.4"):
        GradCAM(dict(type="vgg", arch=made(Vgg), layer_name="features_44"))


def test_a_layer_without_places_is_refused_when_called():
    cam = GradCAM(dict(type="vgg", arch=made(Vgg), layer_name="classifier_0"))
    with pytest.raises(LayerError, match=r"classifier\.0"):
        cam(pictures(1, 3, 32, 32))


@pytest.mark.parametrize("wrong", [CLASSES, -1, [0, 1], 1.5, True])
def test_a_class_that_does_not_exist_is_refused(wrong):
    with pytest.raises(TargetError):
        GradCAM(dict(type="vgg", arch=made(Vgg), layer_name="features_4"))(pictures(3, 3, 32, 32), wrong)


@pytest.mark.parametrize("x", [pictures(3, 32, 32), pictures(32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)])
def test_an_input_that_is_no_batch_of_floats_is_refused(x):
    with pytest.raises(InputError):
        GradCAM(dict(type="vgg", arch=made(Vgg), layer_name="features_4"))(x)


# ------------------------------------------------------------------------------------------------- layers by old names

NAMES = [
    (compat.find_vgg_layer, Vgg, {"features": "features", "features_4": "features.4", "classifier_0": "classifier.0"}),
    (compat.find_alexnet_layer, Vgg, {"features_0": "features.0", "classifier": "classifier"}),
    (
        compat.find_resnet_layer,
        Resnet,
        {
            "conv1": "conv1", "layer1": "layer1", "avgpool": "avgpool", "fc": "fc",
            "layer1_basicblock0": "layer1.0", "layer1_basicblock0_relu": "layer1.0.relu",
            "layer1_bottleneck0_downsample": "layer1.0.downsample",
            "layer1_bottleneck0_downsample_0": "layer1.0.downsample.0",
            "layer4_bottleneck2_conv3": "layer4.2.conv3",
        },
    ),
    (
        compat.find_densenet_layer,
        Densenet,
        {
            "features": "features", "features_transition1": "features.transition1",
            "features_transition1_norm": "features.transition1.norm", "classifier": "classifier",
            "features_denseblock2_denselayer12": "features.denseblock2.denselayer12",
            "features_denseblock2_denselayer12_norm1": "features.denseblock2.denselayer12.norm1",
        },
    ),
    (
        compat.find_squeezenet_layer,
        Squeezenet,
        {
            "features_12": "features.12", "features_12_expand3x3": "features.12.expand3x3",
            "features_12_expand3x3_activation": "features.12.expand3x3_activation",
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("find", "kind", "names"), NAMES)
def test_layers_are_found_by_their_old_and_their_dotted_names(find, kind, names):
    net = made(kind)
    for old, dotted in names.items():
        assert find(net, old) is net.get_submodule(dotted), old
        assert find(net, dotted) is net.get_submodule(dotted)


@pytest.mark.parametrize(("find", "kind"), [row[:2] for row in NAMES])
def test_a_layer_that_does_not_exist_is_an_error_with_advice(find, kind):
    for wrong in ("features_99", "layer4_bottleneck9", "layer5", "features_", "_features", "", "input"):
        with pytest.raises(LayerError, match=r"Did you mean|Known|name a layer"):
            find(made(kind), wrong)


# ------------------------------------------------------------------------------------------------------- Normalize


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5)])
def test_normalize_is_the_formula_and_undo_its_inverse(shape):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    normalize, x = Normalize(mean=mean, std=std), torch.rand(shape, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    done = normalize(x)
    for c in range(3):
        torch.testing.assert_close(done[..., c, :, :], (x[..., c, :, :] - mean[c]) / std[c])
    assert torch.equal(normalize.do(x), done)
    torch.testing.assert_close(normalize.undo(done), x)
    assert torch.equal(x, before) and done.shape == x.shape
    assert repr(normalize) == f"Normalize(mean={mean}, std={std})"
    assert normalize(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    "x", [torch.rand(4, 5), torch.rand(1, 4, 5, 5), torch.rand(4, 5, 3), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)]
)
def test_normalize_refuses_what_is_no_picture_of_its_channels(x):
    normalize = Normalize([0.5] * 3, [0.5] * 3)
    for act in (normalize, normalize.do, normalize.undo):
        with pytest.raises(InputError):
            act(x)
    with pytest.raises(InputError):
        Normalize([0.5] * 3, [0.5])(torch.rand(1, 3, 4, 4))


# ----------------------------------------------------------------------------------------------------- visualize_cam


def test_the_heatmap_is_jet_in_rgb_and_the_result_the_sum_over_its_maximum():
    mask = torch.tensor([[0.0, 0.5, 1.0]]).expand(2, 3)
    img = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(0))
    before = img.clone()
    heatmap, result = visualize_cam(mask[None, None], img[None])
    assert heatmap.shape == result.shape == (3, 2, 3) and heatmap.dtype == torch.float32
    jet = torch.from_numpy(table("jet").copy()).float() / 255
    for column, row in enumerate((0, 128, 255)):
        assert torch.equal(heatmap[:, 0, column], jet[row])
    assert heatmap[2, 0, 0] > heatmap[0, 0, 0] and heatmap[0, 0, 2] > heatmap[2, 0, 2]  # cold is blue, hot is red
    both = heatmap + img
    torch.testing.assert_close(result, both / both.max())
    assert torch.equal(img, before)
    for one, other in zip(visualize_cam(mask, img), (heatmap, result), strict=True):
        assert torch.equal(one, other)


def test_alpha_weighs_the_heatmap():
    mask, img = torch.rand(1, 1, 8, 8), torch.rand(1, 3, 8, 8)
    heatmap, result = visualize_cam(mask, img, alpha=0.25)
    both = 0.25 * heatmap + img[0]
    torch.testing.assert_close(result, both / both.max())
    torch.testing.assert_close(visualize_cam(mask, img, 0.0)[1], img[0] / img.max())
    assert torch.equal(visualize_cam(mask, torch.zeros_like(img), 0.0)[1], torch.zeros(3, 8, 8))


def test_a_batch_comes_out_as_a_batch_each_by_its_own_maximum():
    masks, imgs = torch.rand(3, 1, 8, 6), torch.rand(3, 3, 8, 6) * torch.tensor([0.1, 1, 0.5])[:, None, None, None]
    heatmaps, results = visualize_cam(masks, imgs)
    assert heatmaps.shape == results.shape == (3, 3, 8, 6)
    for i in range(3):
        heatmap, result = visualize_cam(masks[i : i + 1], imgs[i : i + 1])
        assert torch.equal(heatmaps[i], heatmap) and torch.equal(results[i], result)


@pytest.mark.parametrize(
    ("mask", "img"),
    [
        (torch.rand(1, 1, 7, 7), torch.rand(1, 3, 8, 8)),
        (torch.rand(1, 1, 6, 8), torch.rand(1, 3, 8, 6)),  # as many pixels, another shape
        (torch.rand(2, 1, 8, 8), torch.rand(1, 3, 8, 8)),
        (torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8)),
        (torch.rand(8), torch.rand(3, 8, 8)),
        (torch.rand(8, 8), torch.rand(8, 8)),
        (torch.rand(0, 1, 8, 8), torch.rand(0, 3, 8, 8)),
        (torch.rand(1, 1, 8, 8), torch.rand(1, 3, 8, 8) * 255),
        (torch.rand(1, 1, 8, 8), torch.rand(1, 3, 8, 8) * 5 - 2.2),
        (torch.rand(1, 1, 8, 8) * 9, torch.rand(1, 3, 8, 8)),
        (torch.rand(1, 1, 8, 8) * torch.nan, torch.rand(1, 3, 8, 8)),
    ],
)
def test_visualize_cam_refuses_what_does_not_fit(mask, img):
    with pytest.raises(InputError):
        visualize_cam(mask, img)


def test_the_original_script_runs_from_end_to_end():
    net, torch_img = made(Vgg), torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    normed = Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])(torch_img)
    model_dict = dict(type="vgg", arch=net, layer_name="features_4", input_size=(224, 224))
    cams = GradCAM(model_dict, True), GradCAMpp(model_dict, True)
    rows = [visualize_cam(cam(normed)[0], torch_img) for cam in cams]
    grid = torch.stack([torch_img.squeeze().cpu(), *[picture for row in rows for picture in row]], 0)
    assert grid.shape == (5, 3, 224, 224) and 0 <= float(grid.min()) <= float(grid.max()) <= 1


# ------------------------------------------------------------------------------------------------------- torchvision


@needs_torchvision
@pytest.mark.parametrize(
    ("find", "net", "names"),
    [
        (compat.find_vgg_layer, "vgg16", {"features_29": "features.29", "classifier_0": "classifier.0"}),
        (compat.find_vgg_layer, "vgg19_bn", {"features_42": "features.42"}),
        (compat.find_alexnet_layer, "alexnet", {"features_11": "features.11"}),
        (compat.find_resnet_layer, "resnet18", {"layer1_basicblock0_relu": "layer1.0.relu"}),
        (
            compat.find_resnet_layer,
            "resnet101",
            {
                "layer4_bottleneck2_conv3": "layer4.2.conv3",
                "layer1_bottleneck0_downsample_0": "layer1.0.downsample.0",
                "layer3_bottleneck22": "layer3.22",
            },
        ),
        (
            compat.find_densenet_layer,
            "densenet161",
            {
                "features_norm5": "features.norm5",
                "features_transition1_norm": "features.transition1.norm",
                "features_denseblock2_denselayer12_norm1": "features.denseblock2.denselayer12.norm1",
            },
        ),
        (compat.find_squeezenet_layer, "squeezenet1_1", {"features_12_expand3x3": "features.12.expand3x3"}),
    ],
)
def test_torchvision_layers_go_by_their_old_names(find, net, names):
    with torch.device("meta"):
        model = getattr(tv, net)(weights=None, **({"init_weights": False} if net.startswith("vgg") else {}))
    for old, dotted in names.items():
        assert find(model, old) is model.get_submodule(dotted)


@needs_torchvision
@pytest.mark.parametrize(
    ("net", "layer", "dotted"),
    [
        ("resnet18", "layer4", "layer4"),
        ("resnet18", "layer4_basicblock1_conv2", "layer4.1.conv2"),
        ("squeezenet1_1", "features_12_expand3x3_activation", "features.12.expand3x3_activation"),
        ("densenet121", "features_norm5", "features.norm5"),
    ],
)
def test_torchvision_masks_are_grad_cam(net, layer, dotted):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(tv, net)(weights=None).eval()
    x = pictures(1, 3, 96, 64)
    close(GradCAM(dict(type=net, arch=model, layer_name=layer))(x, 7)[0], gradcam_by_hand(model, dotted, x, 7))


def test_a_loaded_model_is_looked_through() -> None:
    from camlucida import Preprocess
    from camlucida.models import Model

    look = Preprocess((8, 8), mean=(0.5,), std=(0.5,))
    loaded = Model(head(1.0), look, name="mine", labels=("only",))
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    mask, _ = GradCAM(dict(arch=loaded, layer_name="0"))(x, class_idx=0)
    assert torch.equal(mask, GradCAM(dict(arch=head(1.0), layer_name="0"))(x, class_idx=0)[0])
