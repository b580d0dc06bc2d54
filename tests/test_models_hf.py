"""Models of transformers from folders: tiny nets of many kinds, drawn at random, saved and loaded again."""

import json
import os
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import camlucida as cl
from camlucida.errors import InputError, ModelError
from camlucida.models import hf_source

LABELS = {0: "cat", 1: "dog", 2: "hen"}
SMALL: dict[str, dict[str, Any]] = {
    "vit": dict(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32, patch_size=8
    ),
    "deit": dict(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32, patch_size=8
    ),
    "beit": dict(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32, patch_size=8
    ),
    "swin": dict(embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4, image_size=32, patch_size=4),
    "convnext": dict(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2),
    "resnet": dict(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic"),
    "mobilenet_v1": dict(depth_multiplier=0.25, min_depth=4),
    "mobilevit": dict(hidden_sizes=[8, 8, 8], neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 8], num_attention_heads=2),
    "levit": dict(
        image_size=64, hidden_sizes=[8, 8, 8], num_attention_heads=[1, 1, 1], depths=[1, 1, 1], key_dim=[4, 4, 4]
    ),
    "segformer": dict(
        hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8
    ),
}  # fmt: skip
PIXELS: dict[str, dict[str, Any]] = {  # how each kind's own processor is told its size
    "vit": dict(size={"height": 32, "width": 32}),
    "deit": dict(size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32}),
    "beit": dict(size={"height": 32, "width": 32}, do_center_crop=False),
    "convnext": dict(size={"shortest_edge": 56}, crop_pct=0.875),
    "resnet": dict(size={"shortest_edge": 64}, crop_pct=0.875, do_normalize=False),
    "mobilenet_v1": dict(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, resample=3),
    "mobilevit": dict(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}),
    "levit": dict(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
    "segformer": dict(size={"height": 32, "width": 64}, do_rescale=True),
}


def saved(transformers: ModuleType, kind: str, folder: Path, **more: Any) -> Any:
    """A tiny net of a kind, and its processor, in a folder as a user has them."""
    config = transformers.AutoConfig.for_model(kind, id2label=LABELS, architectures=[], **SMALL[kind], **more)
    net = transformers.AutoModelForImageClassification.from_config(config).eval()
    net.save_pretrained(folder)
    found = transformers.models.auto.image_processing_auto.IMAGE_PROCESSOR_MAPPING[type(config)]
    processor = found["pil"](**PIXELS.get(kind, PIXELS["vit"]))
    processor.save_pretrained(folder)
    return net, processor


@pytest.mark.parametrize("kind", SMALL)
def test_a_folder_gives_the_same_pixels_answers_and_labels(kind: str, transformers: ModuleType, tmp_path: Path) -> None:
    net, processor = saved(transformers, kind, tmp_path)
    model = cl.load(f"hf/{tmp_path}")
    noise = np.random.default_rng(0).integers(0, 256, (100, 140, 3), dtype=np.uint8)
    for picture in (Image.fromarray(noise), Image.fromarray(noise).rotate(90, expand=True)):
        theirs = processor(images=picture, return_tensors="pt")["pixel_values"]
        ours, _ = model.preprocess(picture)
        assert (ours - theirs[0]).abs().max() < 0.02, kind  # a grey level in 255, over a deviation of a quarter
        assert torch.allclose(model(theirs).logits, net(theirs).logits, atol=1e-5)
    assert model.labels == tuple(LABELS.values()) and not model.training
    assert model.notes == (f"pretrained weights {tmp_path}",)


def test_a_picture_is_explained_with_nothing_told(transformers: ModuleType, tmp_path: Path) -> None:
    saved(transformers, "resnet", tmp_path)
    e = cl.explain(cl.load(f"hf/{tmp_path}"), Image.new("RGB", (60, 40), "red"))
    assert e.label() in LABELS.values() and e.map.shape == (1, 8, 8)


def test_random_weights_and_those_of_a_file(transformers: ModuleType, tmp_path: Path) -> None:
    net, _ = saved(transformers, "vit", tmp_path)
    x = torch.rand(1, 3, 32, 32)
    drawn = cl.load(f"hf/{tmp_path}", "random")
    assert drawn.notes == ("random initialisation: the net has learnt nothing",)
    assert not torch.allclose(drawn(x).logits, net(x).logits)
    save_file({f"module.{k}": v for k, v in net.state_dict().items()}, tmp_path / "w.safetensors")
    model = cl.load(f"hf/{tmp_path}", tmp_path / "w.safetensors")
    assert torch.equal(model(x).logits, net(x).logits) and "taken off" in model.notes[1]


def test_a_head_that_would_be_drawn_is_refused_unless_partial(transformers: ModuleType, tmp_path: Path) -> None:
    net, _ = saved(transformers, "vit", tmp_path)
    net.vit.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"leave 2 tensors of \w+ as they were drawn: classifier\.bias, classifier"):
        cl.load(f"hf/{tmp_path}")
    assert "partial: 2 tensors left as they were drawn" in cl.load(f"hf/{tmp_path}", partial=True).notes


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def test_pickles_are_refused_and_run_nothing_even_where_one_insists(transformers: ModuleType, tmp_path: Path) -> None:
    net, _ = saved(transformers, "vit", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"as pickles, not as safetensors: hf/.*\+pickle if you trust its maker"):
        cl.load(f"hf/{tmp_path}")
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(cl.load(f"hf/{tmp_path}+pickle")(x).logits, net(x).logits)
    for make in (torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))):
        make(net.state_dict() | {"x": Payload(tmp_path / "marker")}, tmp_path / "pytorch_model.bin")
        with pytest.raises(ModelError):
            cl.load(f"hf/{tmp_path}+pickle")
        assert not (tmp_path / "marker").exists()


def test_code_of_its_own_runs_only_where_one_insists(
    transformers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    net, _ = saved(transformers, "vit", tmp_path)
    (tmp_path / "own.py").write_text(
        f"open({str(tmp_path / 'marker')!r}, 'w').close()\n"
        "from transformers import ViTConfig, ViTForImageClassification\n"
        "class OwnConfig(ViTConfig):\n    model_type = 'own'\n"
        "class Own(ViTForImageClassification):\n    config_class = OwnConfig\n"
    )
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForImageClassification": "own.Own"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"Python code of its own, which would run here: hf/.*\+code if you trust it"):
        cl.load(f"hf/{tmp_path}")
    assert not (tmp_path / "marker").exists()
    x = torch.rand(1, 3, 32, 32)
    assert torch.allclose(cl.load(f"hf/{tmp_path}+code")(x).logits, net(x).logits, atol=1e-6)
    assert (tmp_path / "marker").exists()


def test_a_folder_without_a_processor_takes_ready_batches(transformers: ModuleType, tmp_path: Path) -> None:
    saved(transformers, "vit", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    model = cl.load(f"hf/{tmp_path}")
    assert cl.explain(model, torch.rand(1, 3, 32, 32)).map.shape == (1, 4, 4)
    with pytest.raises(InputError, match=r"its processor cannot be had.*preprocess="):
        cl.explain(model, Image.new("RGB", (60, 40)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("someone/something", r"'someone/something' could not be fetched: the network is needed once.*hf/\./FOLDER"),
        ("vit", "'vit' is a kind of model and not a trained one"),
        ("../nowhere", "neither a folder here nor a name of the hub"),
        ("a b", "neither a folder here nor a name of the hub"),
        ("someone/thing+danger", "neither a folder here nor a name of the hub"),
        ("", "neither a folder here nor a name of the hub"),
    ],
)
def test_names_that_lead_nowhere(name: str, expected: str, transformers: ModuleType) -> None:
    with pytest.raises(ModelError, match=expected) as caught:
        cl.load(f"hf/{name}")
    assert "\n" not in str(caught.value)


def test_a_library_that_does_not_fit_is_blamed_and_not_the_network(
    transformers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unfit(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("Could not import module 'ViTForImageClassification'.")

    monkeypatch.setattr(transformers.AutoModelForImageClassification, "from_config", unfit)
    with pytest.raises(ModelError, match=r"cannot build 'vit' as it is installed: .*torchvision does not fit torch"):
        cl.load("hf/vit", "random")


def test_a_model_of_another_task_is_refused(transformers: ModuleType, tmp_path: Path) -> None:
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="of kind 'bert', which classifies, segments or detects nothing in pictures"):
        cl.load(f"hf/{tmp_path}")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match="holds no model that can be read"):
        cl.load(f"hf/{tmp_path}")


def test_the_revision_is_handed_on(transformers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def from_pretrained(*args: Any, **kwargs: Any) -> None:
        seen.append((args, kwargs))
        raise OSError("no network")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    with pytest.raises(ModelError):
        cl.load("hf/microsoft/resnet-50@refs/pr/4")
    assert seen == [(("microsoft/resnet-50",), {"trust_remote_code": False, "revision": "refs/pr/4"})]


def test_names_are_those_kept_here_and_the_kinds(transformers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_source, "_kept", lambda: ["someone/net"])
    found = list(hf_source.names())
    assert found[0] == "someone/net" and {"vit", "swin", "resnet"} <= set(found)


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_a_cache_is_looked_through(transformers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = tmp_path / "models--someone--net" / "snapshots" / ("0" * 40) / "config.json"
    blob.parent.mkdir(parents=True)
    blob.write_text("{}")
    (tmp_path / "models--someone--net" / "refs").mkdir()
    (tmp_path / "models--someone--net" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert hf_source._kept() == ["someone/net"]
