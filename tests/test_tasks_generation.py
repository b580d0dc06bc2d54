"""Tokens that a vision-language model says: the score by loop, the layer before the text, and no other grid."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import camlucida as cl
from camlucida.core.capture import Inputs
from camlucida.core.layers import survey
from camlucida.errors import LayerError, MethodError, TargetError
from camlucida.tasks.generation import answer, token_at

EYE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
       "image_size": 32, "patch_size": 8}  # fmt: skip
TONGUE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
          "vocab_size": 50}  # fmt: skip
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PLACE = 49  # the token that stands for a place of the picture


def captioner(tr: Any) -> nn.Module:
    """An encoder, and a decoder that attends to it."""
    text = {**TONGUE, **ENDS, "sep_token_id": 2, "max_position_embeddings": 32, "encoder_hidden_size": 16}
    return tr.BlipForConditionalGeneration(tr.BlipConfig(text_config=text, vision_config=EYE))


def prefixed(tr: Any) -> nn.Module:
    """The picture's tokens before the words, in one decoder; its logits are longer than the words."""
    return tr.GitForCausalLM(tr.GitConfig(vision_config=EYE, **TONGUE, **ENDS, max_position_embeddings=64))


def assistant(tr: Any) -> nn.Module:
    """The picture's tokens in the middle of the words."""
    text = tr.LlamaConfig(**TONGUE, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0)
    config = tr.LlavaConfig(
        vision_config=tr.CLIPVisionConfig(**EYE, projection_dim=16), text_config=text, image_token_index=PLACE,
        image_token_id=PLACE, image_seq_length=16,
    )  # fmt: skip
    return tr.LlavaForConditionalGeneration(config)


def paired(tr: Any) -> nn.Module:
    """Two models joined: each layer of the decoder makes keys and values of the picture by itself."""
    eye = tr.ViTConfig(**EYE)
    tongue = tr.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=32, add_cross_attention=True,
                           is_decoder=True, bos_token_id=1, eos_token_id=2)  # fmt: skip
    both = tr.VisionEncoderDecoderConfig.from_encoder_decoder_configs(eye, tongue)
    return tr.VisionEncoderDecoderModel(config=both)


KINDS = {"captioner": captioner, "prefixed": prefixed, "assistant": assistant, "paired": paired}
LAYER = {"captioner": "vision_model", "prefixed": "git.visual_projection", "assistant": "model.multi_modal_projector",
         "paired": "encoder.layernorm"}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS)


def made(transformers: Any, kind: str) -> nn.Module:
    net: nn.Module = KINDS[kind](transformers).eval()
    for p in net.parameters():
        if p.dim() > 1:
            p.data.mul_(4)  # as drawn they hardly look at the picture
    return net


def given(kind: str, count: int = 2) -> tuple[dict[str, Tensor], Tensor]:
    """What a model is called with, and the words among it."""
    x, words = torch.randn(count, 3, 32, 32), torch.randint(3, 48, (count, 6))
    if kind == "paired":
        return {"pixel_values": x, "decoder_input_ids": words}, words
    if kind == "assistant":
        words = torch.cat([torch.full((count, 1), 1), torch.full((count, 16), PLACE), words], 1)
    return {"pixel_values": x, "input_ids": words, "attention_mask": torch.ones_like(words)}, words


def by_loop(logits: Tensor, words: Tensor, places: list[int]) -> float:
    """``Σ log p(word | before)`` of one row, in double precision; the logits end where the words end."""
    total, extra = 0.0, logits.shape[0] - len(words)
    for j in places:
        row = logits[j + extra - 1].double()
        total += float(row[words[j]]) - float(torch.logsumexp(row, 0))
    return total


# ----------------------------------------------------------------------------------------------------------- the score


@every_kind
def test_the_score_is_the_log_probability_by_loop(transformers: Any, kind: str) -> None:
    net = made(transformers, kind)
    inputs, words = given(kind)
    with torch.no_grad():
        logits = net(**inputs).logits
    length = words.shape[1]
    labels = words.clone()
    labels[:, : length - 3] = -100
    labels[1, -1] = -100  # a row that ends earlier
    found = cl.sweep(
        net, inputs, targets=[token_at(words, -2), token_at(words, [length - 1, length - 2]), answer(labels)]
    )
    for i in range(2):
        expected = [[length - 2], [length - 1 - i], list(range(length - 3, length - i))]
        for e, places in zip(found, expected, strict=True):
            assert float(e.scores[i]) == pytest.approx(by_loop(logits[i], words[i], places), abs=1e-4)


def test_a_score_is_any_of_those_of_classes() -> None:
    y, words = torch.randn(2, 4, 7), torch.tensor([[1, 2, 3, 4], [6, 5, 4, 3]])
    margin = token_at(words, 2, score="against:0")({"logits": y})
    assert torch.allclose(margin, torch.stack([y[0, 1, 3] - y[0, 1, 0], y[1, 1, 4] - y[1, 1, 0]]))
    assert torch.equal(token_at(words, 1, score="logit")(y), torch.stack([y[0, 0, 2], y[1, 0, 5]]))
    half = token_at(words, 1)({"logits": y.half()})
    assert half.dtype == torch.float32 and torch.allclose(half, token_at(words, 1)(y), atol=1e-2)
    assert torch.equal(token_at(words[:1], 1)(y[:1].expand(3, -1, -1)), token_at(words[:1], 1)(y[:1]).expand(3))


# ----------------------------------------------------------------------------------------------------------- the layer


@every_kind
def test_the_layer_is_the_last_of_the_picture_alone(transformers: Any, kind: str) -> None:
    """Of one picture, too, where a table of positions has as many rows as there are pictures."""
    for count in (2, 1):
        net = made(transformers, kind)
        inputs, words = given(kind, count)
        e = cl.explain(net, inputs, target=token_at(words))
        assert (e.layer, tuple(e.map.shape), e.status) == (LAYER[kind], (count, 4, 4), "ok")


def test_the_map_is_that_of_plain_autograd(transformers: Any) -> None:
    net = made(transformers, "assistant")
    inputs, words = given("assistant")
    e = cl.explain(net, inputs, target=token_at(words), method="hirescam")
    kept: list[Tensor] = []
    handle = net.model.multi_modal_projector.register_forward_hook(lambda *a: kept.append(a[-1]))
    y = net(**inputs).logits[:, -2].log_softmax(1).gather(1, words[:, -1:]).sum()
    handle.remove()
    (grad,) = torch.autograd.grad(y, kept[0])
    expected = (grad * kept[0]).detach().sum(2).reshape(2, 4, 4)
    assert torch.allclose(e.map, expected, atol=1e-6 + 1e-4 * float(expected.abs().max()))


def test_a_part_of_the_picture_moves_its_own_place_of_the_map_layer(transformers: Any) -> None:
    """The grid is the picture's: what changes with a patch lies at the patch."""
    net = made(transformers, "assistant")
    inputs, words = given("assistant", 1)
    moved = inputs | {"pixel_values": inputs["pixel_values"].clone()}
    moved["pixel_values"][:, :, 8:16, 24:32] += 3  # row 1, column 3
    layout = cl.tokens(1, (4, 4))
    layer = ("model.vision_tower.embeddings", layout)
    maps = [cl.explain(net, i, target=token_at(words), layer=layer, method="hirescam").map for i in (inputs, moved)]
    acts = [net.model.vision_tower.embeddings(i["pixel_values"]) for i in (inputs, moved)]
    changed = layout(acts[0] - acts[1])[0].norm(dim=0)
    assert changed.argmax() == 1 * 4 + 3 and maps[0].shape == maps[1].shape == (1, 4, 4)


def test_a_sequence_that_words_take_part_in_is_no_grid(transformers: Any) -> None:
    """17 or 22 tokens would fit a grid of 4×4 and a prefix; only whoever says where the places are may read them."""
    net = made(transformers, "assistant")
    inputs, words = given("assistant")
    name = "model.language_model.layers.0"
    with pytest.raises(LayerError, match="a text takes part"):
        cl.explain(net, inputs, target=token_at(words), layer=name)
    where = (name, lambda h: h[:, 1:17].mT.reshape(len(h), -1, 4, 4))
    e = cl.explain(net, inputs, target=token_at(words), layer=where, method="hirescam")
    assert e.map.shape == (2, 4, 4) and e.status == "ok"
    heard = survey(net, Inputs((), inputs), token_at(words)).texts
    assert name in heard and "lm_head" in heard and not any("vision_tower" in n or "projector" in n for n in heard)


def test_keys_and_values_inside_a_decoder_are_no_end_of_the_eye(transformers: Any) -> None:
    net = made(transformers, "paired")
    inputs, words = given("paired")
    seen = survey(net, Inputs((), inputs), token_at(words))
    assert not any("crossattention" in p.name for p in seen.places)
    assert "decoder.transformer.h.1.crossattention" in seen.texts


def test_a_steered_convolution_still_gives_a_grid() -> None:
    """A net whose features a text multiplies, as FiLM does: its convolutions see a picture all the same."""

    class Steered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.first = nn.Embedding(9, 6), nn.Conv2d(3, 6, 3, 2, 1)
            self.last, self.head = nn.Conv2d(6, 6, 3, 1, 1), nn.Linear(6, 4)

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            steered = self.first(x) * self.words(ids).mean(1)[..., None, None]
            return self.head(self.last(steered.relu()).mean((2, 3)))

    e = cl.explain(Steered(), (torch.randn(2, 3, 16, 16), torch.randint(9, (2, 5))), target=1)
    assert e.layer == "last" and e.map.shape == (2, 8, 8)


def test_several_pictures_of_one_question_have_an_axis_of_their_own(transformers: Any) -> None:
    """SmolVLM takes (b, pictures, c, h, w); one picture each keeps its grid."""
    tr = transformers
    text = tr.LlamaConfig(**TONGUE, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0)
    config = tr.SmolVLMConfig(vision_config=dict(EYE), text_config=text, image_token_id=PLACE, scale_factor=2)
    net = tr.SmolVLMForConditionalGeneration(config).eval()
    words = torch.cat([torch.full((2, 1), 1), torch.full((2, 4), PLACE), torch.randint(3, 48, (2, 5))], 1)
    inputs = {"pixel_values": torch.randn(2, 1, 3, 32, 32), "input_ids": words}
    e = cl.explain(net, inputs, target=token_at(words))
    assert (e.layer, tuple(e.map.shape)) == ("model.connector", (2, 1, 2, 2))


# ------------------------------------------------------------------------------------------------------------- methods


@every_kind
@pytest.mark.parametrize("method", ["scorecam", "attentionrelevance"])
def test_other_methods_work_or_say_why_not(transformers: Any, kind: str, method: str) -> None:
    net = made(transformers, kind)
    inputs, words = given(kind)
    target = token_at(words, -1)
    if kind == "assistant" and method == "attentionrelevance":
        with pytest.raises(MethodError, match="attends among 17 tokens"):  # the projector has lost the class token
            cl.explain(net, inputs, target=target, method=method)
        layer = "model.vision_tower.encoder.layers.1"
        assert cl.explain(net, inputs, target=target, method=method, layer=layer).map.shape == (2, 4, 4)
        return
    both = cl.explain(net, inputs, target=target, method=method)
    for i in range(2):
        row = {k: v[i : i + 1] for k, v in inputs.items()}
        alone = cl.explain(net, row, target=token_at(words[i : i + 1]), method=method)
        assert torch.allclose(both.map[i], alone.map[0], atol=1e-5 + 1e-3 * float(alone.map.abs().max()))


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda w: token_at(w, 4), "token 4 does not exist"),
        (lambda w: token_at(w, -5), "token -5 does not exist"),
        (lambda w: token_at(w, [1, 2, 3]), "3 places for 2 rows"),
        (lambda w: token_at(w[0]), "words are token numbers"),
        (lambda w: token_at(w.float()), "words are token numbers"),
        (lambda w: token_at(w, score="loud"), "no score 'loud'"),
        (lambda w: answer(torch.full_like(w, -100)), "no token that counts"),
        (lambda w: answer(-w), "whole number from 0"),
    ],
)
def test_words_that_are_none_are_refused(ask: Any, told: str) -> None:
    with pytest.raises(TargetError, match=told):
        ask(torch.tensor([[1, 2, 3, 4], [5, 6, 1, 2]]))


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (torch.zeros(2, 3, 9), "scored 3 tokens, and 4"),
        (torch.zeros(2, 4, 3), "token 6 does not exist"),
        (torch.zeros(3, 4, 9), "2 rows of words for 3 pictures"),
        (torch.zeros(2, 9), "scores of tokens are"),
        ({"logits": torch.zeros(2, 4, 9), "loss": torch.tensor(1.0)}, "given labels"),
    ],
)
def test_words_that_do_not_go_with_the_logits_are_refused(output: Any, told: str) -> None:
    with pytest.raises(TargetError, match=told):
        token_at(torch.tensor([[1, 2, 3, 4], [5, 6, 1, 6]]))(output)


def test_the_first_token_has_no_score_unless_the_picture_comes_before_it() -> None:
    words = torch.tensor([[1, 2, 3]])
    with pytest.raises(TargetError, match="has none before it"):
        token_at(words, 0)(torch.zeros(1, 3, 9))
    assert float(token_at(words, 0)(torch.zeros(1, 7, 9))) == pytest.approx(-torch.tensor(9.0).log().item())


def test_what_was_asked_is_said_in_words() -> None:
    words = torch.tensor([[1, 2, 3], [1, 5, 3]])
    assert str(token_at(words)) == "token 3, log probability"
    assert str(token_at(words, 1, score="logit")) == "a token per picture, logit"
    assert str(answer(words)) == "all that is said, log probability"
