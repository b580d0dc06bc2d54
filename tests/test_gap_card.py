"""Cards: what is written is read back, what lies is refused, and people can read it."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from camlucida.errors import ModelError, OutputError
from camlucida.frame import Preprocess
from camlucida.gap import small_gap
from camlucida.gap.card import KEY, Card, card_of, read_card, save_model
from camlucida.gap.recipe import Recipe
from camlucida.version import __version__

LOOK = Preprocess((64, 48), (0.5,) * 3, (0.25,) * 3, crop=0.9, fit="squash", interpolation="bicubic")
CARD = Card(
    "small_gap",
    {"width": 0.25, "depth": 2},
    ("cat", "dog | hound", "hén"),
    LOOK,
    recipe=Recipe(epochs=3).as_dict(),
    accuracy={"top1": 0.875, "per_class": {"cat": 1.0, "hén": None}, "on": "8 pictures", "calibration_error": 0.031},
    temperature=1.25,
    confident=0.4,
    origin="drawn <b>by hand</b>",
    licence="CC0",
    notes=("a note", "another\none"),
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    net = small_gap(3, width=0.25)
    file = save_model(tmp_path / "new" / "m.safetensors", net, CARD)
    assert read_card(file) == CARD and CARD.version == __version__
    state = load_file(file)
    assert (
        all(torch.equal(state[k], v) for k, v in net.state_dict().items()) and state.keys() == net.state_dict().keys()
    )
    with safe_open(file, "pt") as held:
        assert set(held.metadata()) == {KEY} == {"camlucida"}


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    net = small_gap(3, width=0.25)
    files = [save_model(tmp_path / name, net, CARD).read_bytes() for name in "ab"]
    assert files[0] == files[1]


def test_half_keeps_whole_numbers_and_what_does_not_fit_in(tmp_path: Path) -> None:
    net = small_gap(3, width=0.25)
    net.features.near[0].norm.running_var.fill_(1e6)  # type: ignore[index, union-attr]
    state = load_file(save_model(tmp_path / "m.safetensors", net, CARD, half=True))
    kinds = {k.rpartition(".")[2]: v.dtype for k, v in state.items()}
    assert kinds["num_batches_tracked"] == torch.int64 and kinds["weight"] == torch.float16
    whole = [k for k, v in state.items() if v.dtype == torch.float32]
    assert whole == ["features.near.0.norm.running_var"]
    small, large = (save_model(tmp_path / str(h), net, CARD, half=h).stat().st_size for h in (True, False))
    assert small < 0.6 * large
    weight = net.head.get_parameter("linear.weight")
    assert torch.allclose(state["head.linear.weight"].float(), weight, rtol=1e-3)


def test_shared_and_strided_tensors_are_written(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    net[0].bias.data = torch.arange(6.0)[::2]
    state = load_file(save_model(tmp_path / "m.safetensors", net, CARD))
    assert torch.equal(state["1.weight"], net[0].weight) and state["0.bias"].tolist() == [0, 2, 4]


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="a file is where a folder should be"):
        save_model(tmp_path / "file" / "m.safetensors", nn.Linear(1, 1), CARD)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_without_a_card_has_none_and_another_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors", {"format": "pt"})
    assert read_card(tmp_path / "a.safetensors") is None and read_card(tmp_path / "b.safetensors") is None
    (tmp_path / "c.safetensors").write_text("<html>")
    for name in ("c.safetensors", "absent"):
        with pytest.raises(ModelError, match=f"'{name}' cannot be read as a safetensors file"):
            read_card(tmp_path / name)


def test_what_is_no_number_is_null_and_read_back() -> None:
    card = replace(CARD, accuracy={"top1": math.nan, "per_class": {"cat": math.inf}})
    told = json.loads(card.as_json())
    assert told["accuracy"] == {"top1": None, "per_class": {"cat": None}}
    assert card_of(card.as_json()).accuracy["top1"] is None and "not known" in card.markdown()


def test_what_this_version_does_not_know_is_left_out_and_what_is_absent_has_its_default() -> None:
    told = json.loads(CARD.as_json())
    assert card_of(json.dumps(told | {"colour": "blue"})) == CARD
    few = {k: told[k] for k in ("model", "options", "classes", "preprocess")}
    assert card_of(json.dumps(few)) == Card(CARD.model, CARD.options, CARD.classes, LOOK)


LIES: list[tuple[dict[str, Any], str]] = [
    ({"model": 3}, "model is text, not '3'"),
    ({"model": None}, "model is text"),
    ({"options": []}, "options is a table"),
    ({"classes": "cat"}, "classes is a list"),
    ({"classes": ["cat", 3]}, "classes is text"),
    ({"classes": []}, "1 to 100,000 classes; this one has 0"),
    ({"temperature": 0}, "temperature is a number above 0"),
    ({"temperature": "hot"}, "temperature is a number"),
    ({"temperature": True}, "temperature is a number"),
    ({"confident": 1.5}, "confident is a probability"),
    ({"confident": "yes"}, "confident is a number"),
    ({"confident": 10**400}, "beyond all numbers"),
    ({"accuracy": 0.9}, "accuracy is a table"),
    ({"recipe": "good"}, "recipe is a table"),
    ({"notes": "none"}, "notes is a list"),
    ({"licence": 1}, "licence is text"),
    ({"preprocess": 1}, "preprocess is a table"),
    ({"preprocess": {}}, "preprocessing cannot be done"),
]
LOOKS: list[tuple[dict[str, Any], str]] = [
    ({"size": [1e9, 1e9]}, "sides of at most 4096"),
    ({"size": [0, 64]}, "preprocessing cannot be done"),
    ({"size": [64]}, "preprocessing cannot be done"),
    ({"size": 64}, "size is a list"),
    ({"mean": [0.5] * 4}, "preprocessing cannot be done"),
    ({"std": [0.0] * 3}, "preprocessing cannot be done"),
    ({"std": [1e400] * 3}, "not finite"),
    ({"crop": 7}, "preprocessing cannot be done"),
    ({"fit": "stretch"}, "fit"),
    ({"interpolation": ["bilinear"]}, "interpolation is text"),
]


@pytest.mark.parametrize(("lie", "expected"), LIES + [({"preprocess": lie}, said) for lie, said in LOOKS])
def test_a_card_that_lies_is_refused(tmp_path: Path, lie: dict[str, Any], expected: str) -> None:
    told = json.loads(CARD.as_json())
    if isinstance(lie.get("preprocess"), dict) and lie["preprocess"]:
        lie = {"preprocess": told["preprocess"] | lie["preprocess"]}
    file = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(1)}, file, {KEY: json.dumps(told | lie)})
    with pytest.raises(ModelError, match=f"(?s)the card in 'm.safetensors' makes no sense: .*{expected}"):
        read_card(file)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '{"model": "small_gap"}', "NaN"])
def test_what_is_no_card_is_refused(text: str) -> None:
    with pytest.raises(ModelError):
        card_of(text)


def test_people_can_read_it() -> None:
    text = CARD.markdown()
    assert text.startswith("# Model card\n") and text.count("\n## ") == 2
    for line in (
        "| model | small_gap, width = 0.25, depth = 2 |",
        "| pictures | 48 × 64 pixels, 3 channels, squash (0.9), mean 0.5, 0.5, 0.5, "
        "standard deviation 0.25, 0.25, 0.25 |",
        "| right (top-1) | 87.5 % |",
        "| calibration error | 3.1 % |",
        "| mean of the classes | not known |",
        "| temperature | 1.25 |",
        "| low confidence | below 40.0 % |",
        "| origin | drawn &lt;b>by hand&lt;/b> |",
        "| cat | 100.0 % |",
        "| dog \\| hound | not known |",
        "| epochs | 3 |",
        "| flip | 0.5 |",
        "another one",
    ):
        assert line in text.splitlines(), line


def test_a_strange_card_can_be_read_by_people_too() -> None:
    text = replace(CARD, accuracy={"top1": "all", "per_class": 3}, recipe={"augment": 4, "x": {"y": [1]}}).markdown()
    assert "| right (top-1) | not known |" in text and "| x | {'y': [1]} |" in text


def test_a_card_is_checked_when_it_is_made() -> None:
    with pytest.raises(ModelError, match="confident"):
        replace(CARD, confident=-0.1)
    assert asdict(CARD)["preprocess"]["fit"] == "squash"


def test_shares_that_are_none_are_not_known_and_strange_preprocessing_is_refused() -> None:
    for top1 in (10**400, True, 1.5, -1):
        text = replace(CARD, accuracy={"top1": top1}).markdown()
        assert "| right (top-1) | not known |" in text
    for change in ({"crop": 1e-320}, {"std": (1e-300,) * 3}):
        with pytest.raises(ModelError, match=r"crop and std are 0\.001 or more"):
            replace(CARD, preprocess=replace(CARD.preprocess, **change))
