"""Layers: found by any of their names, and found by themselves on the architectures people load."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import camlucida as cl
from camlucida.core.capture import Inputs
from camlucida.core.layers import _share, resolve, survey
from camlucida.errors import LayerError

# ------------------------------------------------------------------------------------------------- by name


class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv3 = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU()
        self.downsample = nn.Sequential(nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv3(self.conv1(x)) + self.downsample(x))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.layer3 = nn.Sequential(*(Bottleneck() for _ in range(2)))
        self.layer4 = nn.Sequential(*(Bottleneck() for _ in range(3)))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer4(self.layer3(self.conv1(x))).mean((2, 3)))


@pytest.mark.parametrize(
    "ask, name",
    [
        ("layer4", "layer4"),
        ("layer4.2.conv3", "layer4.2.conv3"),
        ("layer4_bottleneck2_conv3", "layer4.2.conv3"),
        ("layer4_2_conv3", "layer4.2.conv3"),
        ("layer3_basicblock1_downsample_0", "layer3.1.downsample.0"),
        ("layer*", "layer4.2.downsample.0"),
        ("layer?", "layer4"),
        ("*.conv1", "layer4.2.conv1"),
        ("input", "input"),
    ],
)
def test_a_layer_answers_to_all_its_names(ask: str, name: str) -> None:
    assert resolve(Residual(), ask) == name


def test_a_layer_answers_as_a_module_also_inside_wrappers() -> None:
    net = Residual()
    assert resolve(net, net.layer4[1]) == "layer4.1" == resolve(nn.DataParallel(net), net.layer4[1])


@pytest.mark.parametrize("ask", ["layr4", "layer4.7", "layer4_bottleneck9", "fc.weight", "layer4[-1].__class__", ""])
def test_a_wrong_name_is_refused_with_the_nearest_ones(ask: str) -> None:
    with pytest.raises(LayerError, match=r"no layer .*(Did you mean|Known)"):
        resolve(Residual(), ask)


@pytest.mark.parametrize(
    "build, old, new",
    [
        ("vgg11", "features_18", "features.18"),
        ("densenet121", "features_denseblock4_denselayer16", "features.denseblock4.denselayer16"),
        ("densenet121", "features_transition1_pool", "features.transition1.pool"),
        ("squeezenet1_1", "features_12_expand3x3_activation", "features.12.expand3x3_activation"),
        ("resnet50", "layer4_bottleneck2_conv3", "layer4.2.conv3"),
        ("resnet18", "layer1_basicblock0_relu", "layer1.0.relu"),
        ("alexnet", "features_11", "features.11"),
    ],
)
def test_names_of_the_original_article_are_understood(torchvision: Any, build: str, old: str, new: str) -> None:
    with torch.device("meta"):
        net = getattr(torchvision.models, build)(weights=None)
    assert resolve(net, old) == new


def test_numbers_count_places_from_the_end() -> None:
    net, x = Residual().eval(), torch.randn(1, 3, 12, 12)
    assert [cl.explain(net, x, layer=i).layer for i in (-1, -2, -3)] == ["layer4", "layer3", "conv1"]
    with pytest.raises(LayerError, match=r"place -4 does not exist.*layer4"):
        cl.explain(net, x, layer=-4)


# ------------------------------------------------------------------------------------------------- by itself


def choice(net: nn.Module, size: tuple[int, ...] = (64, 64)) -> tuple[str, str, tuple[int, ...]]:
    """What is chosen without asking; and the map it gives is finite, not flat, and of that grid."""
    x = torch.randn(1, 3, *size)
    e = cl.explain(net.eval(), x, method="hirescam")
    assert e.map.isfinite().all() and e.map.std() > 0
    quick, whole = (survey(net, Inputs((x,)), again=True, complete=c) for c in (False, True))
    assert quick.choice == whole.choice and quick.whole == whole.whole
    assert quick.places == whole.places[-len(quick.places) :]
    return e.layer, e.facts.layout, tuple(e.map.shape[1:])


@pytest.mark.parametrize(
    "build, layer, grid",
    [
        ("resnet18", "layer4", (2, 2)),
        ("vgg11", "features.19", (4, 4)),
        ("alexnet", "features.11", (3, 3)),
        ("squeezenet1_1", "classifier.2", (3, 3)),
        ("densenet121", "features", (2, 2)),
        ("mobilenet_v2", "features", (2, 2)),
        ("mobilenet_v3_small", "features", (2, 2)),
        ("efficientnet_b0", "features", (2, 2)),
        ("convnext_tiny", "features", (2, 2)),
        ("swin_t", "norm", (2, 2)),
    ],
)
def test_torchvision_models_need_no_layer(torchvision: Any, build: str, layer: str, grid: tuple[int, ...]) -> None:
    how = {"init_weights": False} if build == "vgg11" else {}  # its hundred million numbers take a while to draw
    net = getattr(torchvision.models, build)(weights=None, num_classes=7, **how)
    found, _, shape = choice(net)
    assert (found, shape) == (layer, grid)


def test_torchvisions_transformer_needs_no_layer(torchvision: Any) -> None:
    net = torchvision.models.VisionTransformer(64, 16, 3, 2, 32, 64, num_classes=5)
    nn.init.normal_(net.heads.head.weight, std=0.1)  # it starts at zero: no evidence anywhere
    assert choice(net) == ("encoder.layers.encoder_layer_2.ln_1", "tokens(prefix=1, grid=4×4)", (4, 4))


@pytest.mark.parametrize(
    "build, how, layer, layout",
    [
        ("resnet18", {}, "layer4", "channels first"),
        ("densenet121", {}, "features", "channels first"),
        ("mobilenetv2_050", {}, "bn2", "channels first"),
        ("mobilenetv3_small_050", {}, "blocks", "channels first"),
        ("efficientnet_b0", {}, "bn2", "channels first"),
        ("convnext_atto", {}, "stages", "channels first"),
        ("vit_tiny_patch16_224", {"img_size": 64}, "blocks.11.norm1", "tokens(prefix=1, grid=4×4)"),
        ("deit_tiny_distilled_patch16_224", {"img_size": 64}, "blocks.11.norm1", "tokens(prefix=2, grid=4×4)"),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 70, "depth": 2}, "blocks.1.norm1", "tokens(prefix=5, grid=5×5)"),
        ("vit_tiny_patch16_224", {"img_size": (32, 96)}, "blocks.11.norm1", "tokens(prefix=1, grid=2×6)"),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2}, "norm", "channels last"),
        ("swin_tiny_patch4_window7_224", {"img_size": (64, 128), "window_size": 2}, "norm", "channels last"),
    ],
)
def test_timm_models_need_no_layer(timm: Any, build: str, how: dict[str, Any], layer: str, layout: str) -> None:
    size = how.get("img_size", 64)
    net = timm.create_model(build, num_classes=7, **how)
    assert choice(net, size if isinstance(size, tuple) else (size, size))[:2] == (layer, layout)


def test_rows_that_are_windows_are_no_map_of_a_picture(timm: Any) -> None:
    net = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=2, num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    with pytest.raises(LayerError, match=r"gave 64 rows for 1 picture.*use layer='norm'"):
        cl.explain(net, x, layer="layers.0.blocks.0.attn.qkv")
    names = [p.name for p in survey(net, Inputs((x,))).places]
    assert names[-2:] == ["layers", "norm"] and not any("blocks" in n for n in names)


@pytest.mark.parametrize(
    "kind, layer, grid",
    [
        ("ViT", "vit.layers.1.layernorm_before", (4, 4)),
        ("Swin", "swin.layernorm", (2, 2)),
        ("ConvNext", "convnext.encoder.stages.3", (2, 2)),
        ("ResNet", "resnet.encoder.stages.3", (2, 2)),
        ("DeiT", "deit.layers.1.layernorm_before", (4, 4)),
    ],
)
def test_transformers_models_need_no_layer(transformers: Any, kind: str, layer: str, grid: tuple[int, ...]) -> None:
    small: dict[str, Any] = {
        "ViT": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
        },
        "Swin": {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2},
        "ConvNext": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "image_size": 64},
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]},
    }
    small["DeiT"] = small["ViT"]
    config = getattr(transformers, f"{kind}Config")(num_labels=5, **small[kind])
    net = getattr(transformers, f"{kind}ForImageClassification")(config)
    found, _, shape = choice(net)
    assert (found, shape) == (layer, grid)


def test_volumes_and_signals_need_no_layer() -> None:
    volume = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 6, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    e = cl.explain(volume, torch.randn(2, 1, 8, 10, 12), target=1)
    assert e.layer == "4" and e.map.shape == (2, 4, 5, 6) and e.heatmap().shape == (8, 10, 12)


def test_the_model_is_looked_at_once_for_each_input_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    from camlucida.core import layers

    looks: list[tuple[int, ...]] = []
    real = layers._look
    monkeypatch.setattr(layers, "_look", lambda net, i, *how: looks.append(tuple(i.x.shape)) or real(net, i, *how))
    net = Residual().eval()
    for size in (12, 12, 16, 12):
        cl.explain(net, torch.randn(2, 3, size, size))
    assert [s[-1] for s in looks] == [12, 16]
    cl.explain(Residual().eval(), torch.randn(2, 3, 12, 12))
    assert len(looks) == 3  # another model object is another model


def test_a_quick_look_asks_the_last_layers_alone_and_a_complete_one_all() -> None:
    net, x = Residual().eval(), torch.randn(1, 3, 12, 12)
    quick = survey(net, Inputs((x,)), complete=False)
    assert not quick.complete and quick.choice.name == "layer4" and quick.choice.share == 1.0
    early, first = quick.of("conv1"), survey(net, Inputs((x,)), complete=False)
    assert early is not None and early.share is None and early.grid == (10, 10) and first is quick
    assert cl.explain(net, x, layer=0).layer == "conv1"
    whole = survey(net, Inputs((x,)), complete=False)
    assert whole.complete and whole.numbered(0).share  # known by now


def test_where_the_choice_is_not_among_the_last_layers_all_are_asked() -> None:
    class Block(nn.Module):
        def __init__(self, *last: nn.Module) -> None:
            super().__init__()
            self.body = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(5)), *last)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    pooled = Block(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Block(), Block(), pooled, nn.Linear(4, 5))
    assert choice(net, (12, 12)) == ("2", "channels first", (10, 10))
    assert survey(net, Inputs((torch.randn(1, 3, 12, 12),)), again=True, complete=False).complete


def test_what_hands_on_an_early_tensor_is_not_taken_for_a_late_layer() -> None:
    class Beside(nn.Module):
        def forward(self, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return both[0], both[1].sigmoid()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.deep = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4)))
            self.beside, self.fc = Beside(), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            first = self.stem(x)
            return self.fc(self.beside((first, self.deep(first)))[1].mean((2, 3)))

    assert choice(Net(), (12, 12)) == ("deep", "channels first", (10, 10))


def test_each_target_of_ones_own_finds_its_own_layer() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.a(x).relu().mean((2, 3)), self.b(x).relu().mean((2, 3))], 1)

    net, x = Two(), torch.randn(1, 3, 8, 8)
    assert cl.explain(net, x, target=lambda y: y[:, 3]).layer == "b"
    assert cl.explain(net, x, target=lambda y: y[:, 0]).layer == "a"


def test_old_names_reach_through_inner_wrappers() -> None:
    net = nn.Sequential(nn.DataParallel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), nn.Flatten())
    assert resolve(net, "0_1") == "0.1" == resolve(net, "0.1")


def test_the_survey_tells_what_each_layer_offers() -> None:
    seen = survey(Residual().eval(), Inputs((torch.randn(1, 3, 12, 12),)))
    layer4 = seen.of("layer4")
    assert layer4 is not None and layer4.grid == (10, 10) and layer4.share == 1.0 and layer4.kind == "Sequential"
    assert seen.of("fc") is None and [p.name for p in seen.places] == ["conv1", "layer3", "layer4"]


def test_a_model_without_space_is_refused_kindly() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    with pytest.raises(LayerError, match="no layer of this model keeps both space and a gradient"):
        cl.explain(net, torch.randn(1, 3, 4, 4))


def test_a_newly_built_net_whose_last_layer_is_zero_is_told_apart() -> None:
    net = Residual().eval()
    nn.init.zeros_(net.fc.weight)
    with pytest.raises(LayerError, match=r"does not depend on the picture.*starts at zero"):
        cl.explain(net, torch.randn(1, 3, 12, 12))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kept", [0.0, 1e-3, 0.02, 0.5, 1.0])
def test_the_share_of_the_places_that_count_is_that_of_all_channels(dims: int, kept: float) -> None:
    generator = torch.Generator().manual_seed(dims)
    for channels in (1, 3, 40):
        shape = (2, channels, *(6,) * dims)
        grad = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < kept)
        assert _share(grad) == pytest.approx(float((grad != 0).any(1).double().mean()))
    lone = torch.zeros(2, 40, *(6,) * dims)
    lone[0, 39].flatten()[0] = 1e-30  # the last channel alone
    assert _share(lone) == pytest.approx(1 / (2 * 6**dims))
