"""The command line, as people and as programs use it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import camlucida as cl
from camlucida import models
from camlucida.cli import run, screen, write
from camlucida.cli.app import app
from camlucida.errors import LayerError, ModelError, OutputError
from camlucida.models import builtin_source
from camlucida.registry import list_methods

NETS = """
import torch
from torch import nn
from camlucida.frame import Preprocess

def net():
    torch.manual_seed(1)
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6))
    made.preprocess = Preprocess((32, 32), (0.5,) * 3, (0.5,) * 3)
    made.labels = ["tench, Tinca tinca", "tiger cat, dog", "crane, bird", "dog", "crane, machine", "hen\\x1b[31m"]
    return made

def unnamed():
    made = net()
    made.labels = []
    return made

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.preprocess = net(), net().preprocess

    def forward(self, x):
        y = self.inner(x)
        return {"aux": y.flip(1), "main": y[:, :4]}

def grey():
    made = net()
    made[0] = nn.Conv2d(1, 8, 3)
    return made
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def picture(path: str | bytes, seed: int = 0, size: tuple[int, int] = (60, 40)) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    with open(path, "wb") as file:
        Image.fromarray(pixels).save(file, "PNG")


def call(*words: str, model: str = "nets.py:net") -> Result:
    asked = [*words, *(["--model", model] if model else [])]
    return CliRunner().invoke(app, asked)


def explain(*words: str, model: str = "nets.py:net") -> Result:
    return call("explain", *words, model=model)


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# --------------------------------------------------------------------------------------------------------- explain


def test_one_picture_gets_a_table_a_line_and_a_file() -> None:
    picture("one.png")
    result = explain("one.png", "-o", "out")
    assert result.exit_code == 0 and result.stderr == ""
    best = cl.explain(cl.load("nets.py:net"), "one.png")
    rows = result.stdout.splitlines()
    assert rows[0] == "one.png" and rows[1].split() == ["class", "label", "probability"]
    assert len([r for r in rows if r.endswith("%")]) == 5
    assert f"{best.label()} {best.probability():.0%} · Grad-CAM · 3 · ok → out/one.png" in result.stdout
    with Image.open("out/one.png") as sheet:
        assert sheet.format == "PNG" and np.array_equal(np.asarray(sheet), np.asarray(best.panel()))
    assert [p.name for p in Path("out").iterdir()] == ["one.png"]


@pytest.mark.parametrize(("word", "part"), [("main", "main"), ("1", "main"), ("0", "aux")])
def test_the_part_of_the_answer_that_is_meant_is_named_by_key_or_place(word: str, part: str) -> None:
    picture("one.png")
    result = explain("one.png", "-o", "out", "--output", word, "--target", "2", model="nets.py:Two")
    meant = cl.explain(cl.load("nets.py:Two"), "one.png", target=2, output=part)
    assert result.exit_code == 0 and f"class 2 {meant.probability():.0%} · Grad-CAM · inner.3" in result.stdout


def test_an_answer_of_several_parts_is_told_with_its_parts() -> None:
    picture("one.png")
    for words in ([], ["--output", "mian"]):
        result = explain("one.png", "-o", "out", *words, model="nets.py:Two")
        assert result.exit_code == 2 and "aux (1, 6), main (1, 4)" in " ".join(result.stderr.split())


def test_several_targets_and_methods_share_a_sheet_and_are_asked_for_in_one_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        asked.append(len(kwargs["targets"]) * len(kwargs["methods"]))
        return real(*args, **kwargs)

    real = run.sweep
    monkeypatch.setattr(run, "sweep", counted)
    picture("one.png")
    result = explain("one.png", "--target", "1,dog", "--method", "grad-cam,layercam", "-o", "out")
    assert result.exit_code == 0 and asked == [4]
    shown = [row.split(" · ")[1] for row in result.stdout.splitlines() if " · " in row]
    assert shown == ["Grad-CAM", "LayerCAM"] * 2
    found = [
        cl.explain(cl.load("nets.py:net"), "one.png", target=t, method=m)
        for t in (1, 3)
        for m in ("gradcam", "layercam")
    ]
    with Image.open("out/one.png") as sheet:
        assert np.array_equal(np.asarray(sheet), np.asarray(write.grid(found)))
    explain("one.png", "--target", "1,dog", "--method", "grad-cam,layercam", "--format", "panel", "-o", "pages")
    with Image.open("pages/one.png") as sheet:
        assert np.array_equal(np.asarray(sheet), np.asarray(write.stacked([e.panel() for e in found])))


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_files_of_numbers_are_one_for_each_map_and_load_again(form: str) -> None:
    picture("one.png")
    result = explain("one.png", "--top", "2", "--method", "cam,hirescam", "--format", form, "--json", "-o", "out")
    record = lines(result)[0]
    assert sorted(Path("out").iterdir()) == sorted(map(Path, record["outputs"]))
    assert [Path(f).name for f in record["outputs"]] == [
        f"one-top{k}-{m}.{form}" for k in (1, 2) for m in ("cam", "hirescam")
    ]
    for file, told in zip(record["outputs"], record["explanations"], strict=True):
        back = cl.load_explanation(file)
        assert (back.method, back.layer, float(back.scores[0])) == (told["method"], told["layer"], told["score"])
        alone = cl.explain(cl.load("nets.py:net"), "one.png", target=told["class"], method=told["method"])
        assert torch.allclose(back.map, alone.map, rtol=1e-5)


def test_an_overlay_has_the_size_of_the_picture() -> None:
    picture("one.png")
    assert explain("one.png", "--format", "overlay", "--target", "2", "-o", "out").exit_code == 0
    with Image.open("out/one.png") as laid:
        assert laid.size == (60, 40)


def test_json_is_all_there_is_on_standard_output() -> None:
    picture("one.png")
    picture("two.png", 1)
    Path("bad.png").write_text("<html>")
    result = explain("one.png", "bad.png", "two.png", "--json", "--target", "3", "--score", "probability", "-o", "out")
    one, bad, two = lines(result)
    assert result.exit_code == 1
    assert set(one) == {"picture", "model", "notes", "outputs", "predictions", "confident", "explanations"}
    assert one["picture"] == "one.png" and one["outputs"] == ["out/one.png"] and len(one["predictions"]) == 5
    told = one["explanations"][0]
    assert set(told) == {
        "target", "class", "label", "score", "probability", "method", "title", "layer", "layout", "status", "cost"
    }  # fmt: skip
    assert (told["class"], told["label"], told["target"]) == (3, "dog", "class 3, probability")
    assert told["score"] == pytest.approx(told["probability"]) and told["cost"] > 0
    assert set(bad) == {"picture", "error"} and "bad.png" in result.stderr
    assert two["explanations"][0]["score"] != told["score"]


def test_a_folder_gives_its_own_pictures_by_name_with_a_line_each() -> None:
    Path("many", "deeper").mkdir(parents=True)
    for i, name in enumerate(["c.png", "A.PNG", "b.png", "d.png", "e.png", ".hidden.png", "deeper/x.png"]):
        picture(f"many/{name}", i)
    Path("many/notes.txt").write_text("no picture")
    result = explain("many", "-o", "out")
    assert result.exit_code == 0
    names = ["A.PNG", "b.png", "c.png", "d.png", "e.png"]
    assert [row.split(":")[0] for row in result.stdout.splitlines()] == [f"many/{name}" for name in names]
    assert all("Grad-CAM · 3 · ok → out/" in row for row in result.stdout.splitlines())
    assert result.stderr == "5 of 5 done\n"
    assert sorted(p.name for p in Path("out").iterdir()) == ["A.png", "b.png", "c.png", "d.png", "e.png"]


def test_many_pictures_with_many_maps_still_get_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")  # narrow: the lines are longer
    for i in range(5):
        picture(f"{i}.png", i)
    result = explain(*(f"{i}.png" for i in range(5)), "--top", "3", "--format", "npz", "-o", "out")
    rows = result.stdout.splitlines()
    assert len(rows) == 5
    assert all(" · 3 maps · " in row and row.endswith(f"out/{i}-top1-gradcam.npz (+2)") for i, row in enumerate(rows))


def test_pictures_of_one_name_get_files_of_their_own() -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        picture(f"{folder}/x.png")
    result = explain("a", "b", "a/x.png", "--json", "-o", "out")
    files = [f for record in lines(result) for f in record["outputs"]]
    assert len(set(files)) == 3 == len(list(Path("out").iterdir()))


# ---------------------------------------------------------------------------------------------- targets and layers


@pytest.mark.parametrize(
    ("words", "classes"),
    [
        (["--target", "2,4,2"], [2, 4]),
        (["--target", "tench, Tinca tinca"], [0]),
        (["--target", "Tinca tinca,DOG"], [0, 3]),
        (["--target", "tiger cat", "--target", "0"], [1, 0]),
        (["--target", "crane, bird"], [2]),
    ],
)
def test_targets_are_named_by_index_or_label(words: Sequence[str], classes: list[int]) -> None:
    picture("one.png")
    record = lines(explain("one.png", "--json", "-o", "out", *words))[0]
    assert [e["class"] for e in record["explanations"]] == classes


def test_top_takes_each_pictures_own_best() -> None:
    picture("one.png")
    record = lines(explain("one.png", "--json", "-o", "out", "--top", "3"))[0]
    assert [e["class"] for e in record["explanations"]] == [p["class"] for p in record["predictions"][:3]]


def test_a_layer_is_named_or_counted() -> None:
    picture("one.png")
    for word, layer in (("1", "1"), ("-1", "3"), ("-2", "2")):
        record = lines(explain("one.png", "--json", "-o", "out", "--layer", word))[0]
        assert record["explanations"][0]["layer"] == layer


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--layer", "nosuch"], "this model has no layer 'nosuch'"),
        (["--layer", "-9"], "place -9 does not exist"),
        (["--layer", "6"], "use layer='3'"),
        (["--target", "6"], "class 6 does not exist: this model has 6 classes, 0 to 5"),
        (["--target", "-1"], "class -1 does not exist"),
        (["--target", "tiger ca"], "there is no class 'tiger ca'. Did you mean 'tiger cat'"),
        (["--target", "crane"], "'crane' is the name of classes 2 and 4: give the index"),
        (["--target", ","], "--target names no class"),
        (["--target", "1", "--top", "2"], "use one of them"),
        (["--top", "7"], "the model has 6 classes"),
        (["--top", "0"], "--top"),
        (["--method", "gradcan"], "there is no method 'gradcan'. Did you mean 'gradcam'"),
        (["--method", ","], "no method was named"),
        (["--score", "logits"], "there is no score 'logits'. Did you mean 'logit'"),
        (["--format", "bmp"], "--format"),
        (["--weights", "none.pth"], "there is no weights file 'none.pth'"),
        (["--device", "nonsense"], "cannot move the model to device 'nonsense'"),
        (["empty"], "folder 'empty' holds no picture of its own"),
        (["-o", "nets.py/deep"], "nets.py' is not a folder"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_question_that_makes_no_sense_ends_with_2_before_anything_is_written(
    words: list[str], expected: str, here: Path
) -> None:
    picture("one.png")
    Path("empty").mkdir()
    before = sorted(here.rglob("*"))
    result = explain("one.png", *words)
    assert result.exit_code == 2 and result.stdout == ""
    assert expected in " ".join(result.stderr.replace("│", " ").split()), result.stderr
    assert [p for p in sorted(here.rglob("*")) if "__pycache__" not in str(p)] == before


def test_a_label_asked_of_a_model_without_labels() -> None:
    picture("one.png")
    result = explain("one.png", "--target", "dog", model="nets.py:unnamed")
    assert result.exit_code == 2 and "classes have no names: give an index, not 'dog'" in result.stderr


@pytest.mark.parametrize("command", ["explain", "layers"])
def test_no_model_names_both_forms(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = builtin_source.Place(Path("nowhere"), Path("nowhere"))
    monkeypatch.setattr(builtin_source, "place", lambda: nowhere)  # a copy without its built-in model
    result = call(command, *(["one.png"] if command == "explain" else []), model="")
    assert result.exit_code == 2
    assert "timm/NAME" in result.stderr and "FILE.py:CALLABLE" in result.stderr


def test_an_output_folder_that_cannot_be_is_said_before_the_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    picture("one.png")
    monkeypatch.setattr(run, "load", lambda *a, **k: pytest.fail("the model was loaded"))
    result = explain("one.png", "-o", "one.png")
    assert result.exit_code == 2 and "'one.png' is not a folder" in result.stderr.replace(os.getcwd() + "/", "")


def test_a_picture_is_never_written_over() -> None:
    picture("one.png")
    before = Path("one.png").read_bytes()
    for extra in ([], ["--format", "overlay"]):
        result = explain("one.png", "-o", ".", *extra)
        assert result.exit_code == 2 and "one.png would overwrite one.png: choose another --out" in result.stderr
    assert Path("one.png").read_bytes() == before


# --------------------------------------------------------------------------------------------------- what goes wrong


def test_a_bad_picture_among_good_ones_is_named_and_the_rest_are_done() -> None:
    picture("good.png")
    picture("fine.png", 1)
    Path("torn.png").write_bytes(Path("good.png").read_bytes()[:300])
    result = explain("missing.png", "good.png", "torn.png", "fine.png", "-o", "out")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "error: missing.png: no such file"
    assert result.stderr.splitlines()[1].startswith("error: torn.png: damaged")
    assert sorted(p.name for p in Path("out").iterdir()) == ["fine.png", "good.png"]
    alone = explain("good.png", "-o", "alone")
    assert alone.exit_code == 0
    assert Path("alone/good.png").read_bytes() == Path("out/good.png").read_bytes()


def test_ctrl_c_tells_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(model: Any, picture: Any, **kwargs: Any) -> Any:
        if picture.name == "c.png":
            raise KeyboardInterrupt
        return real(model, picture, **kwargs)

    real = run.sweep
    monkeypatch.setattr(run, "sweep", stopped)
    for name in "abcd":
        picture(f"{name}.png")
    result = explain("a.png", "b.png", "c.png", "d.png", "-o", "out")
    assert result.exit_code == 130 and result.stderr == "error: interrupted: 2 of 4 done\n"
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.png", "b.png"]


def test_a_full_disk_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, put: Any) -> Path:
        if "b" in path.name:
            raise OutputError(f"cannot write {path}: no space left on the device")
        return real(path, put)

    real = write.write_whole
    monkeypatch.setattr(write, "write_whole", full)
    for name in "abc":
        picture(f"{name}.png")
    result = explain("a.png", "b.png", "c.png", "-o", "out")
    assert result.exit_code == 1 and [p.name for p in Path("out").iterdir()] == ["a.png"]
    assert result.stderr == "error: cannot write out/b.png: no space left on the device (1 of 3 done)\n"


def test_an_error_inside_the_net_is_the_nets() -> None:
    picture("one.png")
    for words in (["explain", "one.png", "-o", "out"], ["layers", "--size", "3x32x32"]):
        result = call(*words, model="nets.py:grey")
        assert result.exit_code == 2 and "error: the model fails on " in result.stderr, result.stderr
        assert "RuntimeError" in result.stderr and "Traceback" not in result.stderr
    assert not Path("out").exists()


def test_a_bug_of_ours_is_called_one_and_debug_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise AssertionError("two\nlines")

    picture("one.png")
    monkeypatch.setattr(run, "sweep", broken)
    result = explain("one.png", "-o", "out")
    said = "error: this is a bug in camlucida: AssertionError: two lines (please report it, with --debug)\n"
    assert result.exit_code == 70 and result.stderr == said
    result = explain("one.png", "-o", "out", "--debug")
    assert result.exit_code == 70 and "Traceback" in result.stderr and "in broken" in result.stderr
    assert "Traceback" in explain("one.png", "--layer", "x", "--debug").stderr


def test_a_layer_error_on_a_later_picture_only_fails_that_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(model: Any, picture: Any, **kwargs: Any) -> Any:
        if picture.name == "b.png":
            raise LayerError("not here")
        return real(model, picture, **kwargs)

    real = run.sweep
    monkeypatch.setattr(run, "sweep", odd)
    for name in "abc":
        picture(f"{name}.png")
    result = explain("a.png", "b.png", "c.png", "-o", "out")
    assert result.exit_code == 1 and result.stderr == "error: b.png: not here\n"
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.png", "c.png"]


ODD = [b"caf\xe9.png", b"esc\x1b[31m.png", b"new\nline.png", b"%s{0}[red].png", "\u202egnp.png".encode(), b"-dash.png"]


@pytest.mark.parametrize("name", ODD, ids=[repr(n) for n in ODD])
def test_odd_names_are_shown_safely_and_kept_in_json(name: bytes) -> None:
    picture(name)
    word = os.fsdecode(name)
    for extra in ([], ["--json"]):
        result = CliRunner().invoke(app, ["explain", "-m", "nets.py:net", "-o", "out", *extra, "--", word])
        assert result.exit_code == 0, result.stderr
        assert all(c.isprintable() or c == "\n" for c in result.stdout)
    assert lines(result)[0]["picture"] == word
    assert len(list(Path("out").iterdir())) == 1


def test_labels_reach_the_terminal_without_their_control_characters() -> None:
    picture("one.png")
    result = explain("one.png", "--target", "5", "-o", "out")
    assert "\x1b" not in result.stdout and "hen\\x1b[31m" in result.stdout


# ------------------------------------------------------------------------------------------------ layers and methods


def test_layers_marks_the_one_that_explain_takes() -> None:
    rows = lines(call("layers", "--json"))
    assert [r["layer"] for r in rows if r["choice"]] == ["3"]
    assert rows[0]["grid"] == [30, 30] and rows[-1]["shape"] == [1, 8, 28, 28] and rows[-1]["used"] > 0
    every = lines(call("layers", "--json", "--all"))
    assert len(every) > len(rows)
    assert lines(call("layers", "--json", "--size", "20"))[-1]["grid"] == [16, 16]
    shown = call("layers", "nets.py:net", model="")
    assert shown.exit_code == 0
    assert [r.split()[:3] for r in shown.stdout.splitlines() if "→" in r] == [["→", "3", "ReLU"]]


@pytest.mark.parametrize(
    ("axes", "size", "grid"), [(1, "40", [38]), (1, "2x50", [48]), (2, "20", [18, 18]), (2, "2x9x12", [7, 10]),
                               (3, "8", [6, 6, 6]), (3, "2x8x9x10", [6, 7, 8])],
)  # fmt: skip
def test_layers_are_seen_with_whatever_the_model_takes(axes: int, size: str, grid: list[int]) -> None:
    Path("any.py").write_text(
        f"from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Conv{axes}d(2, 4, 3), nn.ReLU(), "
        f"nn.AdaptiveAvgPool{axes}d(1), nn.Flatten(), nn.Linear(4, 3))\n"
    )
    assert lines(call("layers", "--json", "--size", size, model="any.py:net"))[-1]["grid"] == grid
    if axes != 2:
        unsaid = call("layers", model="any.py:net")
        assert unsaid.exit_code == 2 and f"--size 2x{'256' if axes == 1 else '32x64x64'}" in unsaid.stderr.replace(
            "\n", ""
        )
    for wrong in ("0", "3x", "axb", "-4", "2x" + "x".join(["999999"] * max(2, axes))):
        assert call("layers", f"--size={wrong}", model="any.py:net").exit_code == 2


def test_two_models_for_layers_are_one_too_many() -> None:
    assert call("layers", "nets.py:net").exit_code == 2


def test_methods_lists_the_registry() -> None:
    rows = lines(call("methods", "--json", model=""))
    assert [r["name"] for r in rows] == list(list_methods())
    assert all(r["paper"] and r["formula"] for r in rows)
    shown = call("methods", model="")
    assert shown.exit_code == 0 and all(name in shown.stdout for name in list_methods())


def test_methods_tells_all_of_those_named() -> None:
    shown = call("methods", "rise,Grad-CAM++", model="")
    assert shown.exit_code == 0 and "petsiuk2018" in shown.stdout and "samples=4000" in shown.stdout
    assert "Grad-CAM++  Σ_k" in shown.stdout and "deviates" in shown.stdout and "Eigen-CAM" not in shown.stdout
    (row,) = lines(call("methods", "eigencam", "--json", model=""))
    assert row["insensitive"].startswith("the class") and row["options"] == {}
    wrong = call("methods", "ryse", model="")
    assert wrong.exit_code == 2 and "Did you mean 'rise'" in wrong.stderr


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sources that list without their libraries, and one that cannot."""

    def broken() -> list[str]:
        raise ModelError("hf/… needs transformers: pip install camlucida[hf]")

    for source in models._names():
        monkeypatch.delattr(models._room(source), "names", raising=False)
    monkeypatch.setattr(models._room("timm"), "names", lambda: [f"net_{i}" for i in range(900)], raising=False)
    monkeypatch.setattr(models._room("torchvision"), "names", lambda: ["net_7", "esc\x1b[31m"], raising=False)
    monkeypatch.setattr(models._room("hf"), "names", broken, raising=False)


def test_models_are_listed_one_a_line_and_troubles_told_beside(registries: None) -> None:
    shown = call("models", "net_7", model="")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines() == [
        "timm/net_7",
        *(f"timm/net_7{i}" for i in range(10)),
        *(f"timm/net_7{i:02}" for i in range(100)),
        "torchvision/net_7",
    ]
    assert shown.stderr == "hf/NAME: hf/… needs transformers: pip install camlucida[hf]\n"
    assert len(call("models", model="").stdout.splitlines()) == 902
    assert "torchvision/esc\\x1b[31m\n" in call("models", "esc", model="").stdout


def test_models_as_json_say_their_source_and_their_trouble(registries: None) -> None:
    rows = lines(call("models", "*net_7", "--json", model=""))
    assert rows == [
        {"source": "hf", "error": "hf/… needs transformers: pip install camlucida[hf]"},
        {"source": "timm", "name": "timm/net_7"},
        {"source": "torchvision", "name": "torchvision/net_7"},
    ]


def test_a_pattern_that_nothing_fits_is_an_error(registries: None) -> None:
    shown = call("models", "nothing", model="")
    assert shown.exit_code == 2 and "error: no model fits 'nothing'" in shown.stderr
    shown = call("models", "hf/*", model="")
    assert shown.exit_code == 2 and shown.stderr == "error: hf/… needs transformers: pip install camlucida[hf]\n"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_on_a_terminal_each_source_says_how_many_it_has(
    width: int, registries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", str(width))):
        monkeypatch.setenv(name, value)
    rows = [re.sub(r"\x1b\[[\d;]*m", "", row) for row in call("models", model="").stdout.splitlines()]
    assert max(map(len, rows)) <= width and [r.split()[1] for r in rows if r.startswith("timm/")] == ["900"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_tables_keep_to_the_width_of_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for words, model in ((["layers", "--all"], "nets.py:net"), (["methods"], "")):
        result = call(*words, model=model)
        assert max(map(len, result.stdout.splitlines())) <= width, result.stdout


# ---------------------------------------------------------------------------------------------------------- progress


class _Stream(list[str]):
    """A standard error that may say it is a terminal."""

    encoding = "utf-8"

    def __init__(self, terminal: bool) -> None:
        self.terminal = terminal

    def write(self, text: str) -> int:
        self.append(text)
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(("wanted", "terminal"), [(True, True), (False, True), (True, False)])
def test_a_bar_runs_on_a_terminal_only(wanted: bool, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _Stream(terminal)
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", seen)
        with screen.progress(3, wanted) as step:
            step()
    assert bool(seen) == (wanted and terminal)


# ------------------------------------------------------------------------------------------------------- subprocesses


def python(*words: str | bytes, **environment: str) -> "subprocess.CompletedProcess[str]":
    root = Path(cl.__file__).parent.parent
    env = os.environ | {"PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore"} | environment
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, timeout=120)


LIGHT = """
import sys
from camlucida.cli.main import main
try:
    main({words!r})
except SystemExit as end:
    heavy = ["torch", "numpy", "PIL", "safetensors", "jaxtyping", "camlucida.core", "camlucida.images", "timm"]
    print(end.code, [m for m in heavy if m in sys.modules])
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["explain", "--help"], ["explain", "--nonsense"]])
def test_help_does_not_wait_for_torch(words: list[str]) -> None:
    done = python("-c", LIGHT.format(words=words))
    assert done.stdout.splitlines()[-1] == f"{2 if '--nonsense' in words else 0} []", done.stderr
    assert words != ["--version"] or done.stdout.splitlines()[0] == f"camlucida {cl.__version__}"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_typer_or_rich_it_says_what_to_install(missing: str) -> None:
    done = python("-c", f"import sys; sys.modules[{missing!r}] = None; from camlucida.cli.main import main; main()")
    assert done.returncode == 2 and "pip install camlucida[cli]" in done.stderr and "Traceback" not in done.stderr


def test_a_real_run_in_a_terminal_that_knows_only_ascii() -> None:
    picture(b"caf\xe9.png")
    Path("bad.jpg").write_text("no picture")
    words: list[str | bytes] = ["explain", "-m", "nets.py:net", "-o", "out", b"caf\xe9.png", "bad.jpg"]
    done = python("-m", "camlucida.cli.main", *words, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 1, done.stderr
    assert "caf\\udce9.png" in done.stdout and "\\xb7 Grad-CAM \\xb7" in done.stdout and done.stdout.isascii()
    assert done.stderr.startswith("error: bad.jpg: not a picture I can read") and done.stderr.count("\n") == 1
    assert len(list(Path("out").iterdir())) == 1


@pytest.mark.material
def test_a_trained_net_sees_the_dog_and_can_be_asked_for_the_cat(material: Path) -> None:
    Path("real.py").write_text(f"""
import importlib.util, json
from types import SimpleNamespace
from camlucida.frame import Preprocess

def net():
    spec = importlib.util.spec_from_file_location("real_models", {str(material / "weights" / "models.py")!r})
    room = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(room)
    with open({str(material / "pictures" / "labels.json")!r}) as file:
        labels = json.load(file)["imagenet_names"]
    return SimpleNamespace(net=room.load("mobilenet_v2"), labels=labels,
                           preprocess=Preprocess((224, 224), (0.5,) * 3, (0.5,) * 3))
""")
    scene = str(material / "pictures" / "cat_and_dog.jpg")
    result = explain(scene, "--target", "tabby cat,bull mastiff", "--json", "-o", "out", model="real.py:net")
    record = lines(result)[0]
    assert record["predictions"][0]["label"] == "bull mastiff"
    assert [(e["class"], e["status"]) for e in record["explanations"]] == [(281, "ok"), (243, "ok")]


def test_a_picture_without_what_is_asked_for_costs_itself_alone() -> None:
    Path("spots.py").write_text(
        "import sys\nsys.path.insert(0, " + repr(str(Path(__file__).parent)) + ")\n"
        "from spots import Spots\nfrom camlucida import Preprocess\nfrom camlucida.models import Model\n\n"
        "def net():\n    look = Preprocess((64, 64), (0.0,) * 3, (1.0,) * 3, crop=1.0)\n"
        "    return Model(Spots(), look, name='spots')\n"
    )
    blank, red = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64))
    red.paste((255, 0, 0), (8, 8, 24, 24))
    for name, image in (("a.png", blank), ("b.png", red), ("c.png", blank)):
        image.save(name)
    result = explain("a.png", "b.png", "c.png", "-o", "out", model="spots.py:net")
    assert result.exit_code == 1 and [p.name for p in Path("out").iterdir()] == ["b.png"], result.stderr
    assert result.stderr.count("no detections") == 2 and "Traceback" not in result.stderr
