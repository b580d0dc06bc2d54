"""The model that comes along: its file is checked, its absence told kindly."""

import hashlib
from pathlib import Path

import drawn
import pytest
import torch

import camlucida as cl
from camlucida import models
from camlucida.errors import ModelError
from camlucida.frame import Preprocess
from camlucida.gap import small_gap
from camlucida.gap.card import Card, save_model
from camlucida.models import builtin_source

CARD = Card("small_gap", {"width": 0.25}, ("a", "b"), Preprocess((32, 32), (0.5,) * 3, (0.25,) * 3), confident=0.5)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> builtin_source.Place:
    """A stand-in for the real one."""
    torch.manual_seed(0)
    weights = save_model(tmp_path / "builtin.safetensors", small_gap(2, width=0.25), CARD)
    digest = tmp_path / "builtin.sha256"
    digest.write_text(f"{hashlib.sha256(weights.read_bytes()).hexdigest()}  builtin.safetensors\n")
    made = builtin_source.Place(weights, digest)
    monkeypatch.setattr(builtin_source, "place", lambda: made)
    return made


def test_it_loads_by_its_one_name_and_explains(place: builtin_source.Place) -> None:
    model = cl.load("builtin")
    assert (model.name, model.labels, model.confident) == ("builtin", ("a", "b"), 0.5)
    assert cl.explain(model, drawn.draw("box", 1)).status == "ok"
    assert models.forms()["builtin"] == "builtin"


def test_a_spoilt_file_is_refused(place: builtin_source.Place) -> None:
    content = bytearray(place.weights.read_bytes())
    content[-1] ^= 1
    place.weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"is not the one that belongs to this version.*install camlucida again"):
        cl.load("builtin")
    place.digest.write_text("")
    with pytest.raises(ModelError, match="is not the one"):
        cl.load("builtin")


@pytest.mark.parametrize("which", ["weights", "digest"])
def test_absence_is_told_with_a_way_out(place: builtin_source.Place, which: str) -> None:
    getattr(place, which).unlink()
    with pytest.raises(ModelError, match="comes without its built-in model: name another, timm/NAME"):
        cl.load("builtin")


def test_it_takes_no_other_weights_and_no_longer_name(place: builtin_source.Place) -> None:
    with pytest.raises(ModelError, match="leave weights= out"):
        cl.load("builtin", "random")
    for name in ("builtin/x", "builtins", "Builtin"):
        with pytest.raises(ModelError, match="names no model"):
            cl.load(name)


def test_the_real_one_is_what_its_hash_says() -> None:
    at = builtin_source.place()
    assert at.there
    model = cl.load("builtin")
    assert len(model.labels) > 1 and model.confident is not None
    assert at.weights.stat().st_size < 8 << 20
    e = cl.explain(model, drawn.draw("box", 1))
    assert e.status == "ok" and len(e.probabilities[0]) == len(model.labels)  # type: ignore[index]


def test_a_hash_that_is_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("w", b"weights"), ("hash", b"\xff\xfe")):
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(builtin_source, "place", lambda: builtin_source.Place(tmp_path / "w", tmp_path / "hash"))
    with pytest.raises(ModelError, match="install camlucida again"):
        builtin_source.build("", None, False)
