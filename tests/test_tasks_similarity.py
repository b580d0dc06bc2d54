"""Similarity of embeddings: the formula by hand, each picture with its own reference, no map of rounding."""

from typing import Any

import pytest
import torch
from fingerprint import untouched
from torch import Tensor, nn

import camlucida as cl
from camlucida.errors import LayerError, TargetError
from camlucida.tasks.similarity import embeddings, similar


def tower(width: int = 6) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, width, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()


def cosine(a: Tensor, b: Tensor) -> float:
    """By loop, in double precision."""
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / (sum(float(x) ** 2 for x in a) ** 0.5 * sum(float(y) ** 2 for y in b) ** 0.5)


@pytest.mark.parametrize("contrast", [False, True])
def test_the_score_is_the_cosine_by_hand(contrast: bool) -> None:
    e, to, than = torch.randn(3, 5).double(), torch.randn(3, 5), torch.randn(5)
    found = similar(to, than if contrast else None)(e)
    for i in range(3):
        assert float(found[i]) == pytest.approx(cosine(e[i], to[i]) - contrast * cosine(e[i], than), abs=1e-6)
    dot = similar(to[0], by="dot")(e)
    assert torch.allclose(dot, e @ to[0].double())


def test_the_map_is_that_of_the_gradient_of_the_cosine() -> None:
    net, x, other = tower(), torch.randn(2, 3, 16, 16).double(), torch.randn(2, 3, 16, 16).double()
    e = cl.explain(net, x, target=cl.similar(cl.embed(net, other)), layer="2")
    with torch.no_grad():
        act, reference = net[:3](x), net(other)
    act.requires_grad_()
    y = net[3:](act)
    scores = [(y[i] @ reference[i]) / (y[i].norm() * reference[i].norm()) for i in range(2)]
    (grad,) = torch.autograd.grad(sum(scores), act)
    assert torch.allclose(e.map, (grad.mean((2, 3), keepdim=True) * act).sum(1), atol=1e-12)
    assert torch.allclose(e.scores, torch.stack(scores), atol=1e-12)
    assert e.classes is None and "cosine similarity" in repr(e)


@pytest.mark.parametrize("method", ["scorecam", "rise:samples=16", "occlusion"])
def test_each_picture_keeps_its_own_reference_when_it_is_asked_again(method: str) -> None:
    net, x = tower(), torch.randn(2, 3, 16, 16).double()
    to = torch.randn(2, 6)
    both = cl.explain(net, x, target=cl.similar(to), method=method)
    for i in range(2):
        alone = cl.explain(net, x[i : i + 1], target=cl.similar(to[i]), method=method)
        assert torch.allclose(both.map[i], alone.map[0], atol=1e-9)
    assert not torch.allclose(both.map[0], both.map[1])


def test_a_picture_against_itself_is_no_map_of_rounding() -> None:
    """The cosine is at its maximum there: what a gradient would show is noise."""
    net, x = tower().float(), torch.randn(2, 3, 16, 16)
    with pytest.raises(LayerError, match="gradient"):
        cl.explain(net, x, target=cl.similar(cl.embed(net, x)))
    to = cl.embed(net, x)
    e = cl.explain(net, x, target=cl.similar(torch.stack([to[0], torch.randn(6)])), layer="2")
    assert e.statuses[0] == "zero gradient" and e.statuses[1] == "ok"
    assert cl.explain(net, x, target=cl.similar(to, by="dot")).status == "ok"
    assert cl.explain(net, x, target=cl.similar(to), method="occlusion").status == "ok"  # covering it lowers the cosine


def test_embedding_leaves_the_model_as_it_was_and_holds_no_graph() -> None:
    net = nn.Sequential(tower().float(), nn.BatchNorm1d(6), nn.Dropout(0.9)).train()
    x = torch.randn(4, 3, 16, 16, requires_grad=True)
    with untouched(net):
        found = cl.embed(net, x)
    assert found.shape == (4, 6) and not found.requires_grad
    assert torch.equal(found, cl.embed(net, x)) and net.training


def test_a_loaded_model_brings_its_own_preprocessing(tmp_path: Any) -> None:
    from PIL import Image

    from camlucida.models import Model

    picture = Image.effect_noise((40, 30), 80).convert("RGB")
    look = cl.Preprocess((16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, crop=1.0)
    net = tower().float()
    picture.save(tmp_path / "a.png")
    found = cl.embed(Model(net, look), [picture, tmp_path / "a.png"])
    assert torch.allclose(found, net(look(picture)[0][None]).detach().expand(2, -1), atol=1e-6)
    assert torch.allclose(cl.embed(net, picture, preprocess=look), found[:1], atol=1e-6)


def test_which_part_of_an_answer_is_the_embedding() -> None:
    pooled, tokens = torch.randn(2, 5), torch.randn(2, 9, 5)
    for answer in (pooled, pooled[..., None, None], {"tokens": tokens, "pooled": pooled}, (tokens, pooled, None)):
        assert torch.equal(embeddings(answer), pooled)
    both = {"image_embeds": pooled, "text_embeds": torch.randn(2, 5)}
    assert torch.equal(embeddings(both, "image_embeds"), pooled)
    assert torch.equal(embeddings(tokens, lambda y: y[:, 0]), tokens[:, 0])
    with pytest.raises(TargetError, match=r"2 parts .* output="):
        embeddings(both)
    for none in (tokens, torch.randn(2), torch.randn(2, 1), {"ids": torch.ones(2, 5, dtype=torch.long)}):
        with pytest.raises(TargetError, match=r"no parts .* output="):
            embeddings(none)


def test_a_concept_is_the_mean_direction() -> None:
    vectors = torch.randn(4, 3) * torch.tensor([[1.0], [100.0], [1.0], [0.01]])
    expected = sum(v / v.norm() for v in vectors) / 4
    assert torch.allclose(cl.concept(vectors), expected, atol=1e-6)


@pytest.mark.parametrize("wrong", [torch.zeros(4), torch.tensor([1.0, float("nan")]), torch.ones(2, 2, 2), "cat.jpg",
                                   torch.ones(3, dtype=torch.long)])  # fmt: skip
def test_what_is_no_vector_is_refused(wrong: Any) -> None:
    with pytest.raises(TargetError, match="vector"):
        similar(wrong)


def test_vectors_that_do_not_fit_are_refused() -> None:
    net, x = tower().float(), torch.randn(3, 3, 16, 16)
    for wrong in (torch.randn(2, 6), torch.randn(7)):
        with pytest.raises(TargetError, match="one vector"):
            cl.explain(net, x, target=cl.similar(wrong))
    with pytest.raises(TargetError, match="cosine"):
        similar(torch.ones(3), by="l2")
