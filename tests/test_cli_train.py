"""`camlucida train` and `camlucida evaluate`, and what the shell says of low confidence."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import drawn
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import camlucida as cl
from camlucida.cli import train as training
from camlucida.cli.app import app
from camlucida.frame import Preprocess
from camlucida.gap import small_gap
from camlucida.gap.card import read_card
from camlucida.gap.data import read_table
from camlucida.gap.evaluate import evaluate
from camlucida.gap.recipe import Recipe
from camlucida.gap.train import Training, train
from camlucida.models import builtin_source

QUICK = ["--option", "width=0.25", "--size", "32", "--epochs", "2", "--batch", "8", "--lr", "0.01", "--average", "0.9"]

NETS = """
from torch import nn
from camlucida.frame import Preprocess

def net():
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    made.preprocess, made.labels = Preprocess((32, 32), (0.5,) * 3, (0.5,) * 3), []
    return made

def broken():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 3))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    drawn.folder(tmp_path / "set", 10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def quick(*words: str) -> Result:
    return call("train", "set", "--out", "out", *QUICK, *words)


def told(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


# ------------------------------------------------------------------------------------------------------------- train


def test_a_folder_becomes_a_model_with_its_card_and_history() -> None:
    result = quick("--origin", "drawn", "--licence", "CC0")
    assert result.exit_code == 0, result.stderr
    assert {p.name for p in Path("out").iterdir()} == {"model.safetensors", "model.md", "history.csv"}
    said = result.stderr.splitlines()
    assert [line.split(":")[0] for line in said] == ["epoch 1/2", "epoch 2/2"]
    assert "of 3 pictures held out right" in result.stdout and "→ out/model.safetensors" in result.stdout
    card = read_card("out/model.safetensors")
    assert card is not None and card.classes == drawn.KINDS and card.options == {"width": 0.25}
    assert (card.model, card.origin, card.licence) == ("small_gap", "drawn", "CC0")
    assert card.preprocess == Preprocess((32, 32), (0.5,) * 3, (0.25,) * 3, crop=1.0, fit="squash")
    recipe = card.recipe
    assert (recipe["size"], recipe["epochs"], recipe["batch"], recipe["lr"]) == (28, 2, 8, 0.01)
    assert card.accuracy["pictures"] == 3 and set(card.accuracy["per_class"]) == set(drawn.KINDS)
    assert card.notes == ("calibrated on 3 pictures only: its odds are rough",) and card.confident is not None
    assert Path("out/model.md").read_text(encoding="utf-8") == card.markdown()
    with open("out/history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["epoch"]) for r in rows] == [1, 2] and {"loss", "lr", "held_accuracy", "seconds"} <= set(rows[0])


def test_the_shell_trains_what_the_library_trains() -> None:
    assert quick("--hold-out", "0.2", "--seed", "3").exit_code == 0
    card = read_card("out/model.safetensors")
    assert card is not None
    torch.manual_seed(3)
    net = small_gap(3, width=0.25)
    pictures, held = read_table("set").hold_out(0.2, 3)
    recipe = Recipe(size=28, epochs=2, batch=8, lr=0.01, average=0.9, seed=3)
    done = train(net, pictures, held, preprocess=card.preprocess, recipe=recipe)
    state, mine = load_file("out/model.safetensors"), done.net.state_dict()
    assert card.recipe == recipe.as_dict() and done.held is not None
    for name, value in mine.items():
        factor = card.temperature if name.startswith("head.") else 1
        assert torch.allclose(state[name], value / factor if factor != 1 else value, rtol=1e-6), name
    assert card.temperature == pytest.approx(done.held.temperature())


def test_every_number_can_be_said_and_the_command_line_wins_over_the_file() -> None:
    Path("recipe.json").write_text(json.dumps({"epochs": 5, "lr": 0.5, "augment": {"turn": 3, "flip": 0.0}}))
    words = {
        "--train-size": "24", "--epochs": "1", "--batch": "9", "--lr": "0.02", "--optimizer": "sgd",
        "--weight-decay": "0.01", "--warmup": "0.3", "--trunk": "0.5", "--smoothing": "0.2", "--balance": "0.4",
        "--average": "0.8", "--patience": "3", "--seed": "7",
    }  # fmt: skip
    flat = [w for pair in words.items() for w in pair]
    base = ["train", "set", "--out", "out", "--option", "width=0.25", "--size", "32", "--recipe", "recipe.json"]
    result = call(*base, *flat, "--json")
    kept = told(result)
    card = read_card(kept["model"])
    assert card is not None and kept["epochs"] == 1
    for name, value in words.items():
        key = {"--train-size": "size"}.get(name, name[2:].replace("-", "_"))
        assert str(card.recipe[key]) == value, name
    assert (card.recipe["augment"]["turn"], card.recipe["augment"]["flip"]) == (3.0, 0.0)
    assert call(*base, "--epochs", "1", "--fresh").exit_code == 0
    again = read_card("out/model.safetensors")
    assert again is not None and again.recipe["lr"] == 0.5 and again.recipe["size"] == 28


def test_what_is_there_is_not_trained_over_unless_asked() -> None:
    assert quick().exit_code == 0
    before = Path("out/model.safetensors").read_bytes()
    result = quick()
    assert result.exit_code == 2 and "is there already: --fresh trains it anew" in result.stderr
    assert quick("--fresh", "--seed", "1").exit_code == 0
    assert Path("out/model.safetensors").read_bytes() != before


def test_the_same_command_takes_a_killed_run_up(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "camlucida.cli.main", "train", "set", "--out", "cut", "--threads", "1", *QUICK]
    words[words.index("--epochs") + 1] = "400"
    source = str(Path(cl.__file__).parent.parent)
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": source}, stderr=subprocess.DEVNULL) as run:
        for _ in range(600):
            if Path("cut/checkpoint.pt").exists() or run.poll() is not None:
                break
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
    assert not Path("cut/model.safetensors").exists()
    state = torch.load("cut/checkpoint.pt", weights_only=True)
    done = len(state["history"])
    recipe = {**state["for"]["recipe"], "epochs": done + 1}
    state["for"]["recipe"] = recipe  # so that one more epoch is the last one
    torch.save(state, "cut/checkpoint.pt")
    more = [w if w != "400" else str(done + 1) for w in words[5:]]
    result = call("train", "set", "--out", "cut", *more[more.index("--threads") :])
    assert result.exit_code == 0 and f"taken up after epoch {done} of {done + 1}" in result.stderr
    begun = f"epoch {done + 1}"
    assert next(line for line in result.stderr.splitlines() if line.startswith("epoch")).split("/")[0] == begun
    assert {p.name for p in Path("cut").iterdir() if not p.name.startswith(".")} == {
        "model.safetensors", "model.md", "history.csv"
    }  # fmt: skip


def test_an_interrupted_run_says_how_to_go_on_and_does(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Training.epoch

    def stopped(self: Training, watch: Any = None) -> None:
        if len(self.history) == 1:
            raise KeyboardInterrupt
        real(self, watch)

    monkeypatch.setattr(Training, "epoch", stopped)
    result = quick()
    assert result.exit_code == 130 and "1 of 2 epochs are done; the same command goes on" in result.stderr
    monkeypatch.setattr(Training, "epoch", real)
    assert {p.name for p in Path("out").iterdir()} == {"checkpoint.pt"}
    assert quick().exit_code == 0
    one = load_file("out/model.safetensors")
    assert call("train", "set", "--out", "whole", *QUICK).exit_code == 0
    assert all(torch.equal(v, one[k]) for k, v in load_file("whole/model.safetensors").items())


def test_half_of_the_bytes_and_judged_as_written() -> None:
    assert quick("--half").exit_code == 0
    card, state = read_card("out/model.safetensors"), load_file("out/model.safetensors")
    assert card is not None and state["head.linear.weight"].dtype == torch.float16
    held = read_table("set").hold_out(0.1)[1]
    model = cl.load("file:out/model.safetensors")
    assert card.confident == evaluate(model.net, held, card.preprocess).reached()


def test_without_held_out_pictures_nothing_is_claimed() -> None:
    kept = told(quick("--hold-out", "0", "--json"))
    assert kept["accuracy"] == {} and kept["confident"] is None and kept["temperature"] == 1.0
    assert kept["notes"] == ["not calibrated: no pictures were held out"]


def test_your_own_net_is_trained_and_its_card_loads_it() -> None:
    result = call("train", "set", "--out", "out", "--model", "nets.py:net", "--epochs", "1", "--batch", "8", "--json")
    kept = told(result)
    assert kept["notes"] == ["not calibrated: the net does not end in a linear head after a global average"]
    model = cl.load("nets.py:net", "out/model.safetensors")
    assert model.labels == drawn.KINDS and model.confident == kept["confident"]
    result = call("explain", "set/box/00.png", "--model", "file:out/model.safetensors")
    assert result.exit_code == 2 and "load('FILE.py:CALLABLE', weights=" in result.stderr


def test_a_net_of_timm_is_frozen_and_trained(timm: Any) -> None:
    words = ["--model", "timm/resnet10t", "--weights", "random", "--freeze", "--size", "32", "--epochs", "1"]
    kept = told(call("train", "set", "--out", "out", *words, "--batch", "8", "--fit", "letterbox", "--json"))
    model = cl.load(f"file:{kept['model']}")
    assert model.preprocess.fit == "letterbox" and model.preprocess.size == (32, 32) and model.labels == drawn.KINDS
    assert model.preprocess.mean != (0.5,) * 3  # timm's own


def test_training_goes_on_from_a_file_of_weights() -> None:
    assert quick().exit_code == 0
    result = call("train", "set", "--out", "next", *QUICK, "--weights", "out/model.safetensors", "--freeze")
    assert result.exit_code == 0 and "weights model.safetensors, sha256" in result.stderr
    one, two = (load_file(f"{f}/model.safetensors") for f in ("out", "next"))
    same = {k for k in one if torch.equal(one[k], two[k])}
    assert same == {k for k in one if k.startswith("features.")}


def test_pictures_that_cannot_be_read_are_told() -> None:
    Path("set/box/bad.png").write_text("<html>")
    result = quick("--hold-out", "0")
    assert result.exit_code == 0 and "1 pictures cannot be read and are left out" in result.stderr
    assert "bad.png" in result.stderr


def test_until_ends_a_run_that_goes_on_to_the_same_bits() -> None:
    assert quick("--until", "1").exit_code == 0 and Path("out/checkpoint.pt").exists()
    assert len(Path("out/history.csv").read_text().splitlines()) == 2
    result = quick()
    assert result.exit_code == 0 and "taken up after epoch 1 of 2" in result.stderr
    assert not Path("out/checkpoint.pt").exists()
    assert call("train", "set", "--out", "whole", *QUICK).exit_code == 0
    assert Path("out/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_fresh_costs_no_run_by_a_slip_and_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quick("--until", "1").exit_code == 0
    before = Path("out/checkpoint.pt").read_bytes()
    assert call("train", "nowhere", "--out", "out", "--fresh").exit_code == 2
    assert Path("out/checkpoint.pt").read_bytes() == before

    def stopped(self: Training, watch: Any = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "epoch", stopped)
    result = quick("--fresh")
    assert result.exit_code == 130 and "0 of 2 epochs are done; the same command without --fresh" in result.stderr


def test_weights_of_a_net_of_another_width_are_no_beginning() -> None:
    assert quick().exit_code == 0
    words = ["--size", "32", "--epochs", "1", "--option", "width=0.5", "--weights", "out/model.safetensors"]
    result = call("train", "set", "--out", "next", *words)
    assert result.exit_code == 2 and "fits 0 of the 80 tensors before the head" in result.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--option", "wide"], "--option is NAME=VALUE"),
        (["--option", "widht=1"], "no option 'widht'. Did you mean 'width'?"),
        (["--model", "small"], "names no model"),
        (["--model", "file:x"], "--model small_gap --weights FILE"),
        (["--model", "nets.py:net", "--option", "a=1"], "your own callable has its own"),
        (["--model", "nets.py:net", "--freeze"], "--freeze keeps what lies before the head of a"),
        (["--model", "nets.py:broken"], "the model fails in training"),
        (["--lr", "0"], "lr must be"),
        (["--optimizer", "adam"], "Did you mean 'adamw'?"),
        (["--hold-out", "2"], "share to hold out"),
        (["--split", "test"], "no folder 'test'"),
        (["--recipe", "absent.json"], "the recipe 'absent.json' cannot be read"),
        (["--recipe", "nets.py"], "the recipe 'nets.py' cannot be read"),
        (["--recipe", "list.json"], "must be one table in JSON"),
        (["--recipe", "typo.json"], "a recipe has no 'epoch'"),
        (["--recipe", "deep.json"], "the recipe 'deep.json' cannot be read"),
        (["--recipe", "bom.json"], "a recipe has no 'epoch'"),
        (["--seed", "99999999999999999999"], "seed must be 0 or more"),
        (["--patience", "2", "--hold-out", "0"], "patience waits for a better epoch"),
        (["--size", "5000"], "sides of at most 4096"),
        (["--device", "nowhere"], "cannot move the model to device 'nowhere'"),
        (["--out", "nets.py"], "is not a folder"),
        (["--weights", "absent.pth"], "there is no weights file"),
    ],
)
def test_what_makes_no_sense_is_one_line(words: list[str], expected: str) -> None:
    Path("list.json").write_text("[1]")
    Path("typo.json").write_text('{"epoch": 1}')
    Path("bom.json").write_text('{"epoch": 1}', encoding="utf-8-sig")
    Path("deep.json").write_text("[" * 200_000)
    result = call("train", "set", "--out", "out", "--epochs", "1", *words)
    assert result.exit_code == 2 and expected in result.stderr, result.stderr
    assert result.stderr.count("error: ") == 1 and "Traceback" not in result.stderr
    assert not Path("out/model.safetensors").exists()


def test_a_bar_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    drawn_on = Console(stderr=True, force_terminal=True, width=100)
    monkeypatch.setattr(training.screen, "err", lambda: drawn_on)
    assert quick().exit_code == 0


# ------------------------------------------------------------------------------------------------------------ evaluate


@pytest.fixture
def colours(here: Path) -> str:
    """A net that answers with the means of green, red and blue: right on every shape."""
    (here / "colours.py").write_text(
        "import torch\nfrom torch import nn\nfrom camlucida.frame import Preprocess\n"
        "from camlucida.models import Model\n\n"
        "class Means(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return 8 * x.mean((2, 3))[:, [1, 0, 2]]\n\n"
        "def net():\n"
        "    look = Preprocess((32, 32), (0.5,) * 3, (0.25,) * 3, fit='squash')\n"
        "    return Model(Means(), look, labels=['box', 'disc', 'tent'], confident=0.5)\n\n"
        "def nameless():\n"
        "    return Means()\n"
    )
    return "colours.py:net"


def test_a_model_is_judged_class_by_class(colours: str) -> None:
    kept = told(call("evaluate", "set", "--model", colours, "--json"))
    assert kept["pictures"] == 30 and kept["top1"] == kept["mean_per_class"] == 1.0 and kept["confusions"] == []
    assert kept["classes"] == [{"class": c, "pictures": 10, "right": 1.0} for c in drawn.KINDS]
    assert kept["none_of_these"] == {"pictures": 0, "low_confidence": None} and kept["left_out"] == 0
    text = call("evaluate", "set", "--model", colours).stdout
    assert "100% of 30 pictures right" in text and "none of the classes" not in text


def test_confusions_splits_and_pictures_of_none_of_the_classes_are_told(colours: str, here: Path) -> None:
    Image.new("RGB", (40, 40), (90, 90, 90)).save("grey.png")
    rows = [f"set/disc/{i:02}.png,box,test" for i in range(3)] + ["set/tent/00.png,disc,test"]
    rows += [f"set/box/{i:02}.png,box,test" for i in range(4)] + ["set/box/05.png,tent,train"]
    rows += ["grey.png,,test", "set/tent/01.png,,test"]
    Path("table.csv").write_text("file,class,split\n" + "\n".join(rows) + "\n")
    kept = told(call("evaluate", "table.csv", "--split", "test", "--model", colours, "--json"))
    assert kept["pictures"] == 8 and kept["top1"] == 0.5
    assert kept["confusions"] == [
        {"class": "box", "taken_for": "disc", "pictures": 3},
        {"class": "disc", "taken_for": "tent", "pictures": 1},
    ]
    assert [row["right"] for row in kept["classes"]] == [pytest.approx(4 / 7), 0.0, None]
    assert kept["none_of_these"] == {"pictures": 2, "low_confidence": 0.5} and kept["low_confidence"] == 0.0
    text = call("evaluate", "table.csv", "--split", "test", "--model", colours).stdout
    assert "low confidence: 50% of 2 pictures of none of the classes" in text
    assert any(line.split() == ["box", "disc", "3"] for line in text.splitlines())


def test_a_model_without_names_is_judged_in_alphabetical_order_if_the_count_fits(colours: str) -> None:
    kept = told(call("evaluate", "set", "--model", "colours.py:nameless", "--json"))
    assert kept["top1"] == 1.0 and kept["low_confidence"] is None
    drawn.folder(Path("two"), 2, ("box", "disc"))
    result = call("evaluate", "two", "--model", "colours.py:nameless")
    assert result.exit_code == 2 and "3 classes and no names for them; the pictures have 2" in result.stderr


def test_what_cannot_be_judged_is_told(colours: str) -> None:
    Path("set/box/bad.png").write_text("<html>")
    result = call("evaluate", "set", "--model", colours, "--json")
    assert result.exit_code == 1 and "bad.png" in result.stderr and json.loads(result.stdout)["left_out"] == 1
    drawn.folder(Path("other"), 1, ("box",))
    Path("other/hat").mkdir()
    drawn.draw("tent", 1).save("other/hat/0.png")
    result = call("evaluate", "other", "--model", colours)
    assert result.exit_code == 2 and "has a class 'hat' of its own" in result.stderr
    assert call("evaluate", "set").exit_code == 2


def test_of_many_classes_those_without_pictures_are_counted_only(colours: str) -> None:
    with open("colours.py", "a") as file:
        file.write(
            "\nclass Wide(Means):\n"
            "    def forward(self, x):\n"
            "        return torch.nn.functional.pad(super().forward(x), (0, 997), value=-99.0)\n\n"
            "def wide():\n"
            "    made = net()\n"
            "    return Model(Wide(), made.preprocess, labels=[*made.labels, *(f'c{i}' for i in range(997))])\n\n"
            "def broken():\n"
            "    made = wide()\n"
            "    made.net.forward = lambda x: torch.full((len(x), 1000), float('nan'))\n"
            "    return made\n"
        )
    result = call("evaluate", "set", "--model", "colours.py:wide")
    assert result.exit_code == 0 and "997 classes have no picture here" in result.stderr
    assert "disc" in result.stdout and "c5" not in result.stdout
    assert len(told(call("evaluate", "set", "--model", "colours.py:wide", "--json"))["classes"]) == 1000
    result = call("evaluate", "set", "--model", "colours.py:broken")
    assert result.exit_code == 2 and "answers 30 of 30 pictures with NaN" in result.stderr


def test_pictures_of_none_of_the_classes_can_be_asked_about_alone(colours: str) -> None:
    Image.new("RGB", (40, 40), (90, 90, 90)).save("grey.png")
    Path("table.csv").write_text("file,class\ngrey.png,\n")
    kept = told(call("evaluate", "table.csv", "--model", colours, "--json"))
    assert kept["pictures"] == 0 and kept["top1"] is None and kept["none_of_these"]["low_confidence"] == 1.0
    text = call("evaluate", "table.csv", "--model", colours).stdout
    assert text.strip() == "low confidence: 100% of 1 pictures of none of the classes"


# ----------------------------------------------------------------------------------------------------- low confidence


def test_low_confidence_stands_beside_the_predictions(colours: str) -> None:
    Image.new("RGB", (40, 40), (90, 90, 90)).save("grey.png")
    Path("nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "from camlucida.models import Model\nfrom camlucida.frame import Preprocess\n"
        "def net():\n"
        "    end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)\n"
        "    made = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), *end)\n"
        "    made[0].weight.data.copy_(torch.eye(3)[:, :, None, None])\n"
        "    made[0].bias.data.fill_(4.0)\n"
        "    made[4].weight.data.copy_(8 * torch.eye(3)[[1, 0, 2]])\n"
        "    look = Preprocess((32, 32), (0.5,) * 3, (0.25,) * 3, fit='squash')\n"
        "    return Model(made, look, labels=['box', 'disc', 'tent'], confident=0.5)\n"
    )
    files = ["grey.png", "set/box/00.png"]
    result = call("explain", *files, "--model", "nets.py:net", "--json", "-o", "out")
    assert [json.loads(line)["confident"] for line in result.stdout.splitlines()] == [False, True]
    text = call("explain", *files, "--model", "nets.py:net", "-o", "out").stdout
    assert text.count("low confidence") == 1 and text.index("low confidence") < text.index("set/box")
    short = call("explain", *files, "grey.png", "grey.png", "grey.png", "--model", "nets.py:net", "-o", "out").stdout
    assert [("low confidence" in line) for line in short.splitlines()] == [True, False, True, True, True]


def test_a_model_that_knows_no_bound_says_nothing() -> None:
    result = call("explain", "set/box/00.png", "--model", "nets.py:net", "--json", "-o", "out")
    assert told(result)["confident"] is None


def test_the_built_in_model_is_asked_where_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    absent = builtin_source.Place(tmp_path / "absent", tmp_path / "absent")
    monkeypatch.setattr(builtin_source, "place", lambda: absent)
    result = call("explain", "set/box/00.png", "-o", "out")
    assert result.exit_code == 2 and "which model?" in result.stderr
    assert quick().exit_code == 0
    weights, digest = Path("out/model.safetensors"), tmp_path / "hash"
    digest.write_text(hashlib.sha256(weights.read_bytes()).hexdigest())
    monkeypatch.setattr(builtin_source, "place", lambda: builtin_source.Place(weights.absolute(), digest))
    result = call("explain", "set/box/00.png", "--json", "-o", "out")
    assert told(result)["model"] == "builtin" and "no --model was named: the built-in one is asked" in result.stderr


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom camlucida.cli.main import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    source = str(Path(cl.__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stderr.strip() == "False" and "--hold-out" in done.stdout
