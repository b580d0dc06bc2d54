"""Two-tower models by prompts: the model's own scores, texts embedded once, pictures made ready as by its processor."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import guest
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import camlucida as cl
from camlucida.cli.app import app
from camlucida.errors import ModelError, TargetError
from camlucida.models.open_clip_source import _tokens
from camlucida.models.zero_shot import zero_shot

WORDS = ["<pad>", "<s>", "</s>", "a", "dog", "cat", "red", "square"]
PROMPTS = ["a dog", "a cat", "a red square"]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
EYE = {**SMALL, "image_size": 32, "patch_size": 8}


def tokenizer(tr: Any) -> Any:
    """Words by their numbers, with a beginning and an end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return tr.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=9
    )


def towers(tr: Any, kind: str) -> nn.Module:
    torch.manual_seed(1)
    text = {**SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 9, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2, "projection_size": 16, "projection_dim": 16}  # fmt: skip
    both = {"text_config": text, "vision_config": {**EYE, "projection_dim": 16}, "projection_dim": 16}
    net: nn.Module = getattr(tr, f"{kind}Model")(getattr(tr, f"{kind}Config")(**both)).eval()
    for p in net.parameters():
        if p.dim() > 1:
            p.data.mul_(4)
    if kind == "Siglip":
        net.logit_scale.data.fill_(1.5)
        net.logit_bias.data.fill_(-2.0)
    return net


@pytest.fixture(scope="module")
def folders(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny CLIP and a tiny SigLIP, as save_pretrained writes them."""
    tr, found = transformers, {}
    for kind in ("CLIP", "Siglip"):
        folder = tmp_path_factory.mktemp(kind)
        towers(tr, kind).save_pretrained(folder)
        tokenizer(tr).save_pretrained(folder)
        numbers = {"do_resize": True, "do_rescale": True, "do_normalize": True, "image_mean": [0.48, 0.46, 0.41],
                   "image_std": [0.27, 0.26, 0.28], "resample": 3, "rescale_factor": 1 / 255}  # fmt: skip
        crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
        shape = crop if kind == "CLIP" else {"size": {"height": 32, "width": 32}}
        numbers |= {"image_processor_type": f"{kind}ImageProcessor", **shape}
        (folder / "preprocessor_config.json").write_text(json.dumps(numbers))
        found[kind] = folder
    return found


def photo() -> Image.Image:
    smooth = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(smooth).resize((80, 60), Image.Resampling.BICUBIC)


def given(tr: Any, count: int = 2, prompts: list[str] = PROMPTS) -> dict[str, Tensor]:
    texts = tokenizer(tr)(prompts, padding="max_length", max_length=9, return_tensors="pt")
    return {"pixel_values": torch.randn(count, 3, 32, 32), **texts}


# ------------------------------------------------------------------------------------------------------ by the loader


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_the_logits_are_the_models_own(transformers: Any, folders: dict[str, Path], kind: str) -> None:
    tr = transformers
    model = cl.load(f"clip/{folders[kind]}", prompts=PROMPTS)
    processor = tr.AutoImageProcessor.from_pretrained(folders[kind], backend="pil")
    x = processor(images=photo(), return_tensors="pt")["pixel_values"]
    texts = tokenizer(tr)(PROMPTS, padding="max_length", max_length=9, return_tensors="pt")
    with torch.no_grad():
        own = towers(tr, kind)(pixel_values=x, **texts).logits_per_image
    e = cl.explain(model, photo(), target="a cat")
    assert torch.allclose(model(x).detach(), own, atol=1e-5)  # the same tensor
    assert torch.allclose(e.logits, own, atol=1e-2 * float(own.abs().max()))  # its own preprocessing, but for rounding
    assert model.labels == tuple(PROMPTS) and e.label() == "a cat" and "pretrained weights" in model.notes[0]
    assert any("sigmoid" in note for note in model.notes) == (kind == "Siglip")


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_every_target_and_method_takes_prompts_for_classes(folders: dict[str, Path], kind: str) -> None:
    model = cl.load(f"clip/{folders[kind]}", prompts=PROMPTS)
    methods = ["gradcam", "gradeclip", "attentionrelevance", "legrad", "scorecam"]
    targets = ["a dog", cl.against(0, 2), cl.finer(1), cl.top1]
    found = cl.sweep(model, photo(), targets=targets, methods=methods)
    assert len(found) == 20 and all(e.map.shape == (1, 4, 4) for e in found)
    assert all(e.layer.startswith("model.vision_model.") for e in found)
    texts = sum(p.numel() for n, p in model.net.named_parameters() if "text_model" in n)
    assert texts > 0 and not any(p.grad is not None for p in model.parameters())


def test_prompts_are_words_of_the_command_line_too(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo().save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    named = ["--model", f"clip/{folders['CLIP']}"]
    asked = [*named, *(word for prompt in PROMPTS for word in ("--prompt", prompt))]
    found = CliRunner().invoke(app, ["explain", "photo.png", *asked, "--target", PROMPTS[1], "-o", "out", "--json"])
    assert found.exit_code == 0 and json.loads(found.stdout)["explanations"][0]["label"] == PROMPTS[1]
    assert CliRunner().invoke(app, ["layers", *asked]).exit_code == 0
    without = CliRunner().invoke(app, ["explain", "photo.png", *named, "-o", "out"])
    assert without.exit_code == 2 and "--prompt" in without.stderr


def test_the_text_tower_runs_once_and_never_again(folders: dict[str, Path]) -> None:
    model = cl.load(f"clip/{folders['CLIP']}", prompts=PROMPTS)
    ran: list[int] = []
    model.net.model.text_model.register_forward_hook(lambda *_: ran.append(1))
    cl.explain(model, photo(), target="a dog")
    assert not ran


def test_weights_may_be_random_or_of_a_file(folders: dict[str, Path]) -> None:
    folder = folders["CLIP"]
    x = torch.randn(1, 3, 32, 32)
    plain, drawn, file = (
        cl.load(f"clip/{folder}", weights, prompts=PROMPTS)
        for weights in (None, "random", folder / "model.safetensors")
    )
    assert torch.allclose(plain(x), file(x), atol=1e-5) and not torch.allclose(plain(x), drawn(x), atol=1e-3)
    assert "learnt nothing" in drawn.notes[0] and "sha256" in file.notes[0]


def test_what_cannot_be_loaded_is_refused(folders: dict[str, Path], tmp_path: Path, transformers: Any) -> None:
    folder = folders["CLIP"]
    wrong = {
        "texts: say load": {"prompts": ()},
        "given twice": {"prompts": ["a dog", "a dog"]},
        "longer than the 9 tokens": {"prompts": ["a dog a dog a dog a dog"]},
    }
    for told, how in wrong.items():
        with pytest.raises(ModelError, match=told):
            cl.load(f"clip/{folder}", **how)
    with pytest.raises(ModelError, match="neither a folder"):
        cl.load(f"clip/{tmp_path / 'nowhere'}", prompts=PROMPTS)
    alone = transformers.ViTModel(transformers.ViTConfig(**EYE))
    alone.save_pretrained(tmp_path)
    tokenizer(transformers).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no tower for pictures beside one for texts"):
        cl.load(f"clip/{tmp_path}", prompts=PROMPTS)


# --------------------------------------------------------------------------------------------- a model that one holds


def test_a_model_that_one_holds_is_a_classifier_of_its_texts(transformers: Any) -> None:
    net, inputs = towers(transformers, "CLIP"), given(transformers)
    classifier = zero_shot(net, inputs)
    with torch.no_grad():
        own = net(**inputs).logits_per_image
    assert torch.allclose(classifier(inputs["pixel_values"]), own, atol=1e-5)
    with torch.no_grad():
        net.logit_scale.add_(1.0)  # what is made is a snapshot
    assert torch.allclose(classifier(inputs["pixel_values"]), own, atol=1e-5)


def test_a_model_that_scores_in_another_way_is_refused(transformers: Any) -> None:
    net, inputs = towers(transformers, "CLIP"), given(transformers)
    forward = net.forward
    net.forward = lambda **kw: type("Answer", (), {"logits_per_image": forward(**kw).logits_per_image * 1.01})
    with pytest.raises(ModelError, match="in another way than scale"):
        zero_shot(net, inputs)
    with pytest.raises(ModelError, match="no tower"):
        zero_shot(nn.Flatten(), inputs)
    with pytest.raises(ModelError, match="one picture batch"):
        zero_shot(towers(transformers, "CLIP"), {"input_ids": inputs["input_ids"]})


@pytest.mark.parametrize("prompts", [["a dog"], PROMPTS])
def test_pictures_and_texts_together_find_the_tower_of_pictures(transformers: Any, prompts: list[str]) -> None:
    """One text of 9 tokens for one picture would fit a grid of 2×2 and a prefix of 5, and runs last."""
    net, inputs = towers(transformers, "CLIP"), given(transformers, 1, prompts)
    e = cl.explain(net, inputs, output="logits_per_image", target=0)
    assert e.layer == "vision_model.encoder.layers.1.layer_norm1" and e.map.shape == (1, 4, 4)
    classifier = cl.explain(zero_shot(net, inputs), inputs["pixel_values"], target=0)
    assert classifier.layer == "model." + e.layer
    assert torch.allclose(e.map, classifier.map, atol=1e-6 + 1e-3 * float(e.map.abs().max()))


@pytest.mark.parametrize("method", ["occlusion", "attentionrelevance"])
def test_as_many_texts_as_pictures_are_not_taken_for_the_pictures_own(transformers: Any, method: str) -> None:
    """What asks again takes one picture, and with it the text of the same number: noticed, not drawn."""
    net, inputs = towers(transformers, "CLIP"), given(transformers, 2, PROMPTS[:2])
    for target in (0, lambda y: y[:, 0]):
        with pytest.raises(TargetError, match="zero_shot"):
            cl.explain(net, inputs, output="logits_per_image", target=target, method=method)
    assert cl.explain(zero_shot(net, inputs), inputs["pixel_values"], target=0, method=method).map.shape[0] == 2
    three = given(transformers, 2)
    assert cl.explain(net, three, output="logits_per_image", target=0, method=method).map.shape[0] == 2


# ---------------------------------------------------------------------------------------------------------- open_clip


@pytest.fixture(scope="module")
def tiny(torchvision: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """open_clip with a tiny model among its own."""
    library = guest("open_clip")
    folder = tmp_path_factory.mktemp("configs")
    tower = {"width": 16, "layers": 2}
    config = {"embed_dim": 8, "vision_cfg": {"image_size": 32, "patch_size": 8, "head_width": 8, **tower},
              "text_cfg": {"context_length": 12, "vocab_size": 49408, "heads": 2, **tower}}  # fmt: skip
    (folder / "tiny-of-camlucida.json").write_text(json.dumps(config))
    library.add_model_config(folder / "tiny-of-camlucida.json")
    return library


def test_open_clip_is_loaded_and_scores_as_itself(tiny: Any) -> None:
    model = cl.load("open_clip/tiny-of-camlucida", "random", prompts=PROMPTS)
    x = torch.randn(2, 3, 32, 32)
    tokens = tiny.get_tokenizer("tiny-of-camlucida")(PROMPTS)
    with torch.no_grad():
        own, _ = model.net.model.get_logits(x, tokens)
    assert torch.allclose(model(x).detach(), own, atol=1e-5)
    assert model.preprocess.size == (32, 32) and model.preprocess.interpolation == "bicubic"
    for method in ("gradcam", "gradeclip", "attentionrelevance"):
        e = cl.explain(model, photo(), target="a red square", method=method)
        assert e.layer == "model.visual.transformer.resblocks.1.ln_1" and e.map.shape == (1, 4, 4)


@pytest.mark.parametrize("ends", [True, False])
def test_no_tokenizer_of_open_clip_cuts_a_prompt_unseen(ends: bool) -> None:
    """One as those of transformers, which has no `encode` and truncates; with a last token of its own, or without."""

    def tokenizer(texts: list[str], context_length: int = 5) -> Tensor:
        rows = [[3 + len(word) for word in text.split()][: context_length - ends] + [1] * ends for text in texts]
        return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])

    library = ModuleType("open_clip")
    library.get_tokenizer = lambda _: tokenizer  # type: ignore[attr-defined]
    fits = "a small dog runs" + " off" * (not ends)
    assert _tokens(library, "any", ["a cat", fits]).shape == (2, 5)
    for more in (" home", " home and far away over the hills"):
        with pytest.raises(ModelError, match=r"'a small dog.* is longer than the 5 tokens"):
            _tokens(library, "any", ["a cat", fits + more])


def test_open_clip_lists_what_it_has(tiny: Any) -> None:
    listed = cl.list_models("open_clip/ViT-B-32*")
    assert "open_clip/ViT-B-32.laion2b_s34b_b79k" in listed
    tiny.get_pretrained_cfg(*listed[0].removeprefix("open_clip/").split(".", 1))  # names that it takes


def test_open_clip_names_are_checked(tiny: Any) -> None:
    for name, told in {
        "ViT-B-33": "no model 'ViT-B-33'.*ViT-B-32",
        "ViT-B-32": "names no weights: say one of open_clip/ViT-B-32.openai",
        "ViT-B-32.opanai": "no weights 'opanai' of ViT-B-32.*openai",
        "tiny-of-camlucida": "weights='random'",
    }.items():
        with pytest.raises(ModelError, match=told):
            cl.load(f"open_clip/{name}", prompts=PROMPTS)
    with pytest.raises(ModelError, match="longer than the 12 tokens"):
        cl.load("open_clip/tiny-of-camlucida", "random", prompts=["a dog and " * 5])
