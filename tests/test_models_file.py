"""Models in one file: loaded by what the card says, and never more than that."""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import drawn
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import camlucida as cl
from camlucida import models
from camlucida.errors import ModelError
from camlucida.frame import IMAGENET, Preprocess
from camlucida.gap import nin_cifar, nin_imagenet, small_gap, to_gap
from camlucida.gap.card import KEY, Card, save_model
from camlucida.gap.data import read_table
from camlucida.gap.recipe import Recipe
from camlucida.gap.train import train
from camlucida.models.file_source import options

LOOK = Preprocess((32, 32), (0.5,) * 3, (0.25,) * 3, fit="squash")
NAMES = ("box", "disc", "tent")
CARD = Card("small_gap", {"width": 0.25}, NAMES, LOOK, accuracy={"top1": 0.9, "on": "9 pictures"}, confident=0.6)

NETS = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


def written(folder: Path, net: nn.Module, card: Card = CARD) -> str:
    return f"file:{save_model(folder / 'm.safetensors', net.eval(), card)}"


def test_a_trained_net_loads_and_explains_at_once(tmp_path: Path) -> None:
    place = drawn.folder(tmp_path / "set", 8)
    torch.manual_seed(0)
    recipe = Recipe(size=28, epochs=6, batch=8, lr=0.01, average=0.9)
    done = train(small_gap(3, width=0.25), read_table(place), preprocess=LOOK, recipe=recipe)
    model = cl.load(written(tmp_path, done.net))
    picture = drawn.draw("disc", 77)
    e = cl.explain(model, picture)
    assert e.label() == "disc" and model.labels == NAMES and model.preprocess == LOOK and not model.training
    assert torch.equal(model(LOOK(picture)[0][None]), done.net(LOOK(picture)[0][None]))
    assert e.facts.confident == 0.6 and e.confident() == (float(e.probabilities.max()) >= 0.6)  # type: ignore[union-attr]
    assert model.name == "file:m.safetensors" and "right on 90.0 % of 9 pictures" in model.notes


def test_each_net_of_ours_is_built_again(tmp_path: Path) -> None:
    kinds = {
        "small_gap": (small_gap(3, width=0.5, depth=2), {"width": 0.5, "depth": 2}),
        "nin_cifar": (nin_cifar(3, rectify=False), {"rectify": False}),
    }
    for name, (net, asked) in kinds.items():
        model = cl.load(written(tmp_path, net, replace(CARD, model=name, options=asked)))
        x = torch.rand(2, 3, 32, 32)
        assert torch.equal(model(x), net.eval()(x)), name
    big = replace(CARD, model="nin_imagenet", options={}, classes=tuple(map(str, range(10))))
    assert cl.load(written(tmp_path, nin_imagenet(10), big)).labels[9] == "9"


def test_grey_pictures_make_a_grey_net(tmp_path: Path) -> None:
    net = small_gap(3, width=0.25, in_channels=1)
    model = cl.load(written(tmp_path, net, replace(CARD, preprocess=Preprocess((32, 32), (0.5,), (0.25,)))))
    assert cl.explain(model, drawn.draw("box", 3)).pictures.space == (32, 32)


def test_a_net_of_timm_is_built_again_and_the_callers_random_numbers_are_left_alone(
    tmp_path: Path, timm: ModuleType
) -> None:
    net = to_gap(cl.load("timm/resnet10t", "random").net, 3)
    name = written(tmp_path, net, replace(CARD, model="timm/resnet10t", options={}, preprocess=IMAGENET))
    before = torch.get_rng_state()
    model = cl.load(name)
    assert torch.equal(before, torch.get_rng_state())
    x = torch.rand(1, 3, 64, 64)
    assert torch.allclose(model(x), net.eval()(x), atol=1e-6)


def test_half_precision_is_read_as_full(tmp_path: Path) -> None:
    save_model(tmp_path / "h.safetensors", small_gap(3, width=0.25), CARD, half=True)
    model = cl.load(f"file:{tmp_path / 'h.safetensors'}")
    assert {p.dtype for p in model.parameters()} == {torch.float32} and "float16 read as float32" in model.notes


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("lie", "expected"),
    [
        ({"options": {"width": 1e9}}, "width is from 0.05 to 16.0; it is '1000000000.0'"),
        ({"options": {"width": float(16)}}, r"would have [\d,]+ parameters, where the file has"),
        ({"options": {"depth": 10**9}}, "depth is from 1 to 64"),
        ({"options": {"depth": 64, "width": 0.25}}, "parameters, where the file has"),
        ({"options": {"depth": 2.5}}, "depth is from 1 to 64; it is '2.5'"),
        ({"options": {"width": True}}, "width is from"),
        ({"options": {"width": "wide"}}, "width is from"),
        ({"options": {"widht": 0.25}}, "has no option 'widht'. Did you mean 'width'"),
        ({"options": {"in_channels": 3}}, "has no option 'in_channels'"),
        ({"options": {}}, "parameters, where the file has"),
        ({"options": {"width": 0.125}}, "the weights fit"),
        ({"classes": ["a", "b"]}, "the weights fit"),
        ({"classes": [str(i) for i in range(90_000)]}, "parameters, where the file has"),
        ({"model": "os.system", "options": {}}, r"code is never run because a file names it.*load\('FILE.py:CALLABLE'"),
        ({"model": "nets.py:net", "options": {}}, "code is never run because a file names it"),
        ({"model": "file:m.safetensors"}, "code is never run"),
        ({"model": "timm/hf-hub:x/y", "options": {}}, "plain name of timm's registry"),
        ({"model": "timm/", "options": {}}, "plain name|code is never run"),
        ({"preprocess": {"mean": [0.5], "std": [0.5]}}, "the weights fit"),
    ],
)
def test_a_card_that_lies_is_an_error_in_words_and_costs_nothing(
    tmp_path: Path, lie: dict[str, Any], expected: str
) -> None:
    file = tmp_path / "m.safetensors"
    save_model(file, small_gap(3, width=0.25), CARD)
    told = json.loads(CARD.as_json())
    lie = lie | ({"preprocess": told["preprocess"] | lie["preprocess"]} if "preprocess" in lie else {})
    save_file(load_file(file), file, {KEY: json.dumps(told | lie)})
    began = time.monotonic()
    with pytest.raises(ModelError, match=f"(?s){expected}"):
        cl.load(f"file:{file}")
    assert time.monotonic() - began < 10


def test_a_giant_of_timm_is_not_built_for_a_tiny_file(tmp_path: Path, timm: ModuleType) -> None:
    card = replace(CARD, model="timm/vit_giant_patch14_224", options={}, preprocess=IMAGENET)
    with pytest.raises(ModelError, match=r"would have 1,\d+,\d+,\d+ parameters, where the file has"):
        cl.load(written(tmp_path, small_gap(3, width=0.25), card))
    grey = replace(card, model="timm/resnet18", preprocess=Preprocess((32, 32), (0.5,), (0.5,)))
    with pytest.raises(ModelError, match="three channels"):
        cl.load(written(tmp_path, small_gap(3, width=0.25), grey))


def test_a_file_without_a_card_says_what_to_do(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(ModelError, match=r"'plain.safetensors' has no card.*weights='plain.safetensors'"):
        cl.load(f"file:{tmp_path / 'plain.safetensors'}")
    torch.save({"a": torch.ones(1)}, tmp_path / "old.pth")
    with pytest.raises(ModelError, match=r"'old.pth' has no card"):
        cl.load(f"file:{tmp_path / 'old.pth'}")
    (tmp_path / "page.safetensors").write_text("<html>404</html>")
    with pytest.raises(ModelError, match="it is a web page"):
        cl.load(f"file:{tmp_path / 'page.safetensors'}")


def test_names_of_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no weights file 'absent'"):
        cl.load("file:absent")
    with pytest.raises(ModelError, match="leave weights= out"):
        cl.load(written(tmp_path, small_gap(3, width=0.25)), "random")
    with pytest.raises(ModelError, match=r"names no model: .*Did you mean 'file:m.safetensors'\?"):
        cl.load("m.safetensors")
    assert models.forms()["file"] == "file:PATH"


def test_spoilt_weights_are_refused(tmp_path: Path) -> None:
    net = small_gap(3, width=0.25)
    net.head.get_parameter("linear.weight").data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        cl.load(written(tmp_path, net))
    whole = Path(written(tmp_path, small_gap(3, width=0.25)).removeprefix("file:"))
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"cut off|cannot be read"):
        cl.load(f"file:{whole}")


# ----------------------------------------------------------------------------------------------------- your own code


def test_your_own_code_takes_labels_preprocessing_and_confidence_from_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    save_model(tmp_path / "m.safetensors", net, replace(CARD, model="nets.py:net", options={}))
    model = cl.load("nets.py:net", "m.safetensors")
    assert (model.labels, model.preprocess, model.confident) == (NAMES, LOOK, 0.6)
    assert "right on 90.0 % of 9 pictures" in model.notes and not any("ImageNet" in n for n in model.notes)
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(model(x), net(x))
    save_file(net.state_dict(), tmp_path / "plain.safetensors")
    plain = cl.load("nets.py:net", "plain.safetensors")
    assert (plain.labels, plain.preprocess, plain.confident) == ((), IMAGENET, None)


def test_options_come_in_their_own_types() -> None:
    assert options("small_gap", {"width": 1, "dropout": 0}) == {"width": 1.0, "dropout": 0.0}
    assert options("nin_cifar", {"rectify": False}) == {"rectify": False}
    assert options("timm/resnet18", {"finer": True}) == {"finer": True}
    with pytest.raises(ModelError, match="rectify is true or false; it is '1'"):
        options("nin_cifar", {"rectify": 1})


# ----------------------------------------------------------------------------------------------------- low confidence


def unsure(tmp_path: Path, least: float | None) -> models.Model:
    torch.manual_seed(0)
    return cl.load(written(tmp_path, small_gap(3, width=0.25), replace(CARD, confident=least)))


def test_low_confidence_is_told_wherever_an_explanation_is(tmp_path: Path) -> None:
    picture = drawn.draw("box", 1)
    low, high, open_ = (cl.explain(unsure(tmp_path, least), picture) for least in (0.99, 0.01, None))
    assert (low.confident(), high.confident(), open_.confident()) == (False, True, None)
    assert low.caption().endswith(" · low confidence")
    assert "low" not in high.caption() + open_.caption() and high.summary()["confidence"] == "as usual"
    assert low.summary()["confidence"].startswith("low: no class reaches 0.99") and "confidence" not in open_.summary()
    best = float(low.probabilities.max())  # type: ignore[union-attr]
    assert cl.explain(unsure(tmp_path, best), picture).confident() is True  # at the bound itself


def test_each_picture_of_a_batch_has_its_own(tmp_path: Path) -> None:
    model = unsure(tmp_path, 0.5)
    model.net.head.linear.weight.data.mul_(40)
    e = cl.explain(model, [drawn.draw(k, i) for i, k in enumerate(NAMES)], target=0)
    sure = e.probabilities.amax(1)  # type: ignore[union-attr]
    least = float(sure.median())
    model.confident = least
    e = cl.explain(model, [drawn.draw(k, i) for i, k in enumerate(NAMES)], target=0)
    assert [e.confident(i) for i in range(3)] == [bool(p >= least) for p in sure]
    assert [one.confident() for one in e] == [e.confident(i) for i in range(3)]
    assert sorted("low" in e.caption(i) for i in range(3)) == [False, False, True]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_it_is_kept_on_disk_and_old_files_load(tmp_path: Path, suffix: str) -> None:
    e = cl.explain(unsure(tmp_path, 0.99), drawn.draw("box", 1))
    e.save(tmp_path / f"e{suffix}")
    back = cl.load_explanation(tmp_path / f"e{suffix}")
    assert back.facts == e.facts and back.confident() is False and back.caption() == e.caption()
    facts = {k: v for k, v in vars(e.facts).items() if k != "confident"}
    assert type(e.facts)(**facts).confident is None  # as a file of an older version gives them


def test_a_card_cannot_flood_the_terminal_and_boasts_only_in_shares(tmp_path: Path) -> None:
    net = small_gap(2, width=0.25)
    boast = replace(CARD, options={"width": 0.25}, notes=("x" * 10_000_000, *("y",) * 50), accuracy={"top1": 10**400})
    notes = models.load(written(tmp_path, net, replace(boast, classes=("a", "b")))).notes
    assert len(notes) < 30 and max(map(len, notes)) <= 1000 and not any("right on" in n for n in notes)


def test_a_file_may_lie_at_home_and_its_name_may_be_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_gap(2, width=0.25)
    written(tmp_path, net, replace(CARD, options={"width": 0.25}, classes=("a", "b")))
    name = next(tmp_path.glob("*.safetensors")).name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.load(f"file:~/{name}").labels == ("a", "b")
    for wrong in ("x" * 5000, "a\0b"):
        with pytest.raises(ModelError, match="there is no weights file"):
            models.load(f"file:{wrong}")
