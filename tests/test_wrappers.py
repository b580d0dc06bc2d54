"""Transformers and detectors inside whatever people wrap them in give the map that they give bare."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import pytest
import torch
from fingerprint import untouched
from torch import Tensor, nn

import camlucida as cl

Ask = tuple[nn.Module, Tensor, Any]


def vit(request: pytest.FixtureRequest) -> Ask:
    timm: ModuleType = request.getfixturevalue("timm")
    net = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5)
    return net, torch.randn(2, 3, 64, 64), cl.classes([1, 3])


def swin(request: pytest.FixtureRequest) -> Ask:
    timm: ModuleType = request.getfixturevalue("timm")
    how = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
    net = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **how)
    return net, torch.randn(2, 3, 64, 64), cl.classes([1, 3])


def hf_vit(request: pytest.FixtureRequest) -> Ask:
    transformers: ModuleType = request.getfixturevalue("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=64, patch_size=16, num_labels=5, **sizes)
    return transformers.ViTForImageClassification(config), torch.randn(2, 3, 64, 64), cl.classes([1, 3])


def detr(request: pytest.FixtureRequest) -> Ask:
    transformers: ModuleType = request.getfixturevalue("transformers")
    body = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 6, "num_labels": 4}
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=body, **sizes, **heads
    )
    return transformers.DetrForObjectDetection(config), torch.rand(2, 3, 64, 96), cl.detection(label=2, least=0.0)


def _checkpointed(net: nn.Module) -> nn.Module:
    if hasattr(net, "set_grad_checkpointing"):
        net.set_grad_checkpointing(True)
    elif getattr(net, "supports_gradient_checkpointing", False):
        name = "activation_checkpointing_enable"  # its name from transformers 5 on
        getattr(net, name if hasattr(net, name) else "gradient_checkpointing_enable")()
    else:
        pytest.skip("it has no gradient checkpointing")
    return net


def _frozen(net: nn.Module) -> nn.Module:
    return net.requires_grad_(False)


def _in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


def _compiled(net: nn.Module) -> Any:
    return torch.compile(net, backend="eager")


WRAPPERS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[], AbstractContextManager[Any]]]] = {
    "data parallel": (nn.DataParallel, nullcontext),
    "compiled": (_compiled, nullcontext),
    "compiled in place": (_in_place, nullcontext),
    "compiled, data parallel": (lambda net: nn.DataParallel(_compiled(net)), nullcontext),
    "checkpointed": (_checkpointed, nullcontext),
    "frozen": (_frozen, nullcontext),
    "training": (lambda net: net.train(), nullcontext),
    "no grad outside": (lambda net: net, torch.no_grad),
    "inference outside": (lambda net: net, torch.inference_mode),
}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("make", [vit, swin, hf_vit, detr], ids=lambda f: f.__name__)
def test_a_wrapper_changes_nothing(
    request: pytest.FixtureRequest, make: Callable[[pytest.FixtureRequest], Ask], wrapper: str, method: str
) -> None:
    net, x, target = make(request)
    bare = cl.explain(net.eval(), x, target=target, method=method)
    assert bare.map.isfinite().all() and bare.map.std() > 0
    wrap, outside = WRAPPERS[wrapper]
    wrapped = wrap(net)
    if "compiled" in wrapper:
        with torch.no_grad():
            wrapped(x)  # it has run before
    with outside(), untouched(net):
        e = cl.explain(wrapped, x, target=target, method=method)
    assert (e.layer, e.facts.layout) == (bare.layer, bare.facts.layout)
    assert torch.allclose(e.scores, bare.scores, rtol=1e-4)
    assert torch.allclose(e.map, bare.map, rtol=1e-4, atol=1e-5 * float(bare.map.abs().max()))


@pytest.mark.parametrize("make", [vit, swin, hf_vit, detr], ids=lambda f: f.__name__)
def test_half_precision_ranks_the_places_as_full_precision_does(
    request: pytest.FixtureRequest, make: Callable[[pytest.FixtureRequest], Ask]
) -> None:
    net, x, target = make(request)
    full = cl.explain(net.eval(), x, target=target, method="layercam")
    half = cl.explain(net.bfloat16(), x.bfloat16(), target=target, method="layercam", layer=full.layer)
    for one, other in zip(full.map, half.map.float(), strict=True):
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.9
    with torch.autocast("cpu", torch.bfloat16):
        auto = cl.explain(net.float(), x, target=target, method="layercam")
    assert auto.layer == full.layer and auto.map.dtype == torch.float32
