"""Loading: every source of models, and every way in which a file of weights is not what it should be."""

import ast
import importlib
import os
import pickle
import struct
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import camlucida as cl
from camlucida import models
from camlucida.errors import ModelError
from camlucida.frame import IMAGENET, Preprocess
from camlucida.models import sniff
from camlucida.models.weights import bare, fit, open_weights, read_weights
from camlucida.types import Loaded

NETS = """
from types import SimpleNamespace
import torch
from torch import nn
from camlucida.frame import Preprocess

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

def dressed():
    return SimpleNamespace(net=net(), preprocess=Preprocess((32, 32), (0.5,) * 3, (0.5,) * 3), labels=["a", "b", "c"])

ready = net()
number = 3

def nothing():
    pass

def fails():
    return {}["missing"]

def deep():
    return deeper()

def deeper():
    return torch.zeros(2) @ torch.zeros(3)

def leaves():
    raise SystemExit(3)
"""


class Payload:
    """Writes a marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "nets_of_mine.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return "nets_of_mine.py"


# ------------------------------------------------------------------------------------- files that are no weights


def _legacy(path: Path, marker: Path) -> None:
    torch.save({"w": Payload(marker)}, path, _use_new_zipfile_serialization=False)


def _script(path: Path, _: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:  # the layout of a TorchScript archive
        for name in ("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py", "m/version"):
            archive.writestr(name, b"x")


def _cut(path: Path, _: Path, how: str = "torch") -> None:
    state = {"w": torch.ones(500)}
    torch.save(state, path) if how == "torch" else save_file(state, path)
    path.write_bytes(path.read_bytes()[:-700])


def _zipped(path: Path, _: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")


def _bytes(data: bytes) -> Callable[[Path, Path], Any]:
    return lambda path, _: path.write_bytes(data)


HOSTILE: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "payload": (lambda p, m: torch.save({"w": Payload(m)}, p), "holds code or Python objects"),
    "payload beside": (lambda p, m: torch.save({"w": torch.ones(2), "x": Payload(m)}, p), "safetensors"),
    "payload, old format": (_legacy, "holds code or Python objects"),
    "plain pickle": (lambda p, m: p.write_bytes(pickle.dumps(Payload(m))), "a plain Python pickle"),
    "pickle, protocol 2": (lambda p, m: p.write_bytes(pickle.dumps(Payload(m), 2)), "a plain Python pickle"),
    "whole module": (lambda p, _: torch.save(nn.Linear(2, 2), p), "(torch.nn.modules.linear.Linear)"),
    "arguments beside": (lambda p, _: torch.save({"a": Namespace(b=1), "w": torch.ones(2)}, p), "argparse.Namespace"),
    "numpy scalar": (lambda p, _: torch.save({"best": np.float64(0.5), "w": torch.ones(2)}, p), "not only weights"),
    "TorchScript": (_script, "TorchScript, a program"),
    "web page": (_bytes(b"\n<!DOCTYPE html><html>404</html>"), "a web page"),
    "LFS pointer": (_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
    "cut off": (_cut, "cut off or damaged"),
    "cut off safetensors": (lambda p, m: _cut(p, m, "safetensors"), "cut off or damaged"),
    "safetensors header beyond the end": (_bytes(struct.pack("<Q", 9999) + b"{"), "cut off or damaged"),
    "empty": (_bytes(b""), "empty"),
    "zeros": (_bytes(bytes(400)), "begin with zeros"),
    "noise": (_bytes(bytes(range(7, 250)) * 9), "nothing that is known here"),
    "folder": (lambda p, _: p.mkdir(), "a folder"),
    "pipe": (lambda p, _: os.mkfifo(p), "a pipe or a device"),
    "JPEG": (lambda p, _: Image.new("RGB", (8, 8)).save(p, "JPEG"), "a JPEG picture"),
    "another zip": (_zipped, "not of PyTorch"),
    "HDF5": (_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "Keras"),
    "JSON": (_bytes(b'{"weight_map": {}}'), "JSON text"),
    "no names": (lambda p, _: torch.save(torch.ones(3), p), "without named tensors"),
    "no tensors": (lambda p, _: torch.save({"epoch": 3}, p), "without named tensors (it holds 'epoch')"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_is_no_weights_is_refused_in_one_line_and_runs_nothing(case: str, tmp_path: Path) -> None:
    make, expected = HOSTILE[case]
    path, marker = tmp_path / "w.pth", tmp_path / "marker"
    make(path, marker)
    with pytest.raises(ModelError) as caught:
        read_weights(path)
    said = str(caught.value)
    assert expected in said and "'w.pth'" in said, said
    assert "\n" not in said and "\x1b" not in said and str(tmp_path) not in said
    assert not marker.exists(), "the payload ran"


def test_the_payload_would_run_if_it_were_let(tmp_path: Path) -> None:
    """So that the test above is known to look at something."""
    torch.save({"w": Payload(tmp_path / "marker")}, tmp_path / "w.pth")
    torch.load(tmp_path / "w.pth", weights_only=False)["w"].close()
    assert (tmp_path / "marker").exists()


def test_the_conversion_that_a_refusal_offers_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w": torch.ones(2)}, "args": Namespace(b=1)}, "w.pth")
    with pytest.raises(ModelError) as caught:
        read_weights("w.pth")
    for snippet in str(caught.value).split("`")[1::2]:
        exec(snippet, globals())
    assert read_weights("w.safetensors")["w"].tolist() == [1, 1]


def test_a_missing_file_is_said_to_be_missing() -> None:
    with pytest.raises(ModelError, match=r"there is no weights file 'none\.pth'"):
        read_weights("none.pth")


# ------------------------------------------------------------------------------------------------- files that are


@pytest.mark.parametrize("kind", ["safetensors", "torch", "old torch"])
def test_content_decides_not_the_name(kind: str, tmp_path: Path) -> None:
    state, path = {"a.weight": torch.randn(3, 2)}, tmp_path / "weights.jpg"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch")
    assert torch.equal(read_weights(path)["a.weight"], state["a.weight"])


def test_envelopes_are_opened_and_said(tmp_path: Path) -> None:
    inner = {"model": {"w": torch.ones(2)}, "state_dict_ema": {"w": torch.full((2,), 7.0)}, "epoch": 3}
    torch.save({"state_dict": inner}, tmp_path / "w.pth")
    held = open_weights(tmp_path / "w.pth")
    assert held.state["w"].tolist() == [7, 7]
    assert held.notes[0].startswith("weights w.pth, sha256 ") and len(held.notes[0].split()[-1]) == 12
    assert held.notes[1:] == ("taken from 'state_dict'", "taken from 'state_dict_ema' ('model' left aside)")


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "_orig_mod.", "module.model.", "net._orig_mod.module."])
def test_prefixes_are_taken_off_visibly(prefix: str) -> None:
    source, net = small(), small()
    notes = fit(net, {prefix + k: v for k, v in source.state_dict().items()})
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), source.state_dict().values(), strict=True))
    assert notes == ((f"prefix {prefix!r} taken off 9 names",) if prefix else ())
    assert bare(prefix + "fc.weight") == "fc.weight"


def test_a_prefix_that_belongs_to_the_net_stays() -> None:
    net = nn.ModuleDict({"model": small()})
    assert fit(net, net.state_dict()) == ()


def test_a_misfit_is_refused_with_counts_and_names() -> None:
    state = {k: v for k, v in small().state_dict().items() if not k.startswith("1.")}
    state |= {f"extra{i}": torch.ones(1) for i in range(7)} | {"4.bias": torch.ones(5)}
    net = small()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        fit(net, state)
    said = str(caught.value)
    assert "fit 3 of the model's 9 tensors" in said and "--partial" in said
    assert "4 missing: 1.weight, 1.bias, 1.running_mean, 1.running_var" in said
    assert "7 not in the model: extra0, extra1, extra2, extra3, extra4, …" in said
    assert "1 of another shape: 4.bias (file 5, model 3)" in said
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()), "a refused file changed the net"
    notes = fit(net, state, partial=True)
    assert torch.equal(net.state_dict()["0.weight"], state["0.weight"])
    assert notes[-1] == "partial: 3 of 9 tensors loaded, 5 left as they were, 7 of the file unused"


def test_nothing_that_fits_is_refused_even_in_part() -> None:
    with pytest.raises(ModelError, match=r"fit 0 of the model's 9 tensors.*right model"):
        fit(small(), {"unknown": torch.ones(1)}, partial=True)


def test_spoilt_numbers_are_refused() -> None:
    state = small().state_dict()
    state["0.weight"][0, 0, 0, 0], state["4.bias"][1] = torch.nan, torch.inf
    with pytest.raises(ModelError, match=r"2 of 9 tensors are not finite: 0\.weight, 4\.bias"):
        fit(small(), state)
    with pytest.raises(ModelError, match="all 9 tensors of the weights are zero"):
        fit(small(), {k: torch.zeros_like(v) for k, v in state.items()})


def test_half_precision_and_missing_counters_are_read_and_said() -> None:
    source, net = small(), small()
    state = {k: v.half() for k, v in source.state_dict().items() if v.is_floating_point()}
    assert fit(net, state) == ("1 batch counters are not in the file", "float16 read as float32")
    assert net[0].weight.dtype == torch.float32  # type: ignore[index]
    assert torch.equal(net[0].weight, source[0].weight.half().float())  # type: ignore[index]


# ------------------------------------------------------------------------------------------------------------ load


def test_what_load_gives_is_a_model_that_explain_takes(nets: str) -> None:
    model = cl.load(f"{nets}:dressed")
    assert isinstance(model, Loaded) and not model.training and model.notes == ()
    assert model.labels == ("a", "b", "c") and model.preprocess.size == (32, 32)
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(model(x), model.net(x))
    e = cl.explain(model, Image.new("RGB", (60, 40), "red"))
    assert e.label() in model.labels and e.map.shape == (1, 30, 30)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "resnet18",
            r"write 'builtin' or .*'file:PATH' or .*'FILE.py:CALLABLE' or 'timm/NAME'.* Did you mean 'timm/resnet18'\?",
        ),
        ("tim/resnet18", r"Did you mean 'timm'\?"),
        ("net.onnx", r"Did you mean 'onnx:net\.onnx'\?"),
        ("", "names no model"),
        ("nets_of_mine.py", "names no model"),
        ("a/b\x1b[31m", r"a/b\\x1b"),
        ("hf-hub:x/y", "is neither a Python module nor a .py file|names no callable"),
    ],
)
def test_a_name_of_no_source_is_refused_with_the_forms(name: str, expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        cl.load(name)


def test_sources_are_found_by_their_files() -> None:
    files = Path(models.__file__).parent.glob("*_source.py")
    assert set(models.forms()) == {f.stem.removesuffix("_source") for f in files} >= {"timm", "python"}


def test_prompts_are_for_sources_that_take_them(nets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"'nets_of_mine.py:net' has classes of its own and takes no prompts"):
        cl.load(f"{nets}:net", prompts=["a dog"])
    for wrong in (["a dog", ""], "  "):
        with pytest.raises(ModelError, match="prompts= takes texts"):
            cl.load(f"{nets}:net", prompts=wrong)
    room = importlib.import_module("camlucida.models.python_source")
    seen: list[Any] = []
    build = room.build
    monkeypatch.setattr(room, "PROMPTS", True, raising=False)
    monkeypatch.setattr(room, "build", lambda *given: seen.append(given[3]) or build(*given[:3]))
    cl.load(f"{nets}:net", prompts="a dog")
    cl.load(f"{nets}:net", prompts=["a dog", "a cat"])
    cl.load(f"{nets}:net")
    assert seen == [("a dog",), ("a dog", "a cat"), ()]


# ----------------------------------------------------------------------------------------------------------- the lists


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sources that list without their libraries; what is asked is noted."""
    asked: list[str] = []

    def broken() -> list[str]:
        asked.append("hf")
        raise RuntimeError("two\nlines")

    for source in models._names():
        monkeypatch.delattr(models._room(source), "names", raising=False)
    for source, known in (("timm", ["resnet18", "vit_tiny"]), ("torchvision", ["resnet18"]), ("builtin", [""])):
        names = (lambda s, k: lambda: asked.append(s) or k)(source, known)
        monkeypatch.setattr(models._room(source), "names", names, raising=False)
    monkeypatch.setattr(models._room("hf"), "names", broken, raising=False)
    return asked


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("", ["builtin", "timm/resnet18", "timm/vit_tiny", "torchvision/resnet18"]),
        ("RESNET", ["timm/resnet18", "torchvision/resnet18"]),
        ("res*18", ["timm/resnet18", "torchvision/resnet18"]),
        ("t*/resnet18", ["timm/resnet18", "torchvision/resnet18"]),
        ("timm/*", ["timm/resnet18", "timm/vit_tiny"]),
        ("timm/vit", ["timm/vit_tiny"]),
        ("nothing", []),
    ],
)
def test_models_are_listed_as_load_takes_them(pattern: str, found: list[str], registries: list[str]) -> None:
    assert cl.list_models(pattern) == found
    assert "hf" not in registries or not pattern.startswith("timm/")


def test_only_the_source_that_a_pattern_names_is_asked(registries: list[str]) -> None:
    cl.list_models("timm/*")
    assert registries == ["timm"]


def test_a_source_that_fails_takes_no_other_with_it(registries: list[str]) -> None:
    found = {s.source: s for s in models.listing("")}
    assert found["hf"].trouble == "RuntimeError: two lines" and found["hf"].names == ()
    assert found["torchvision"].names == ("torchvision/resnet18",) and found["onnx"].trouble == ""


@pytest.mark.parametrize("device", ["cuda:77", "nonsense", "meta:x"])
def test_a_device_that_is_not_there_is_said(device: str, nets: str) -> None:
    with pytest.raises(ModelError, match=f"cannot move the model to device '{device}'"):
        cl.load(f"{nets}:net", device=device)


# ----------------------------------------------------------------------------------------------------- python source


def test_files_modules_classes_and_ready_nets_all_load(nets: str, tmp_path: Path) -> None:
    for name in (f"{nets}:net", f"{tmp_path}/{nets}:net", "nets_of_mine:net", f"./{nets}:ready", "torch.nn:Identity"):
        path, modules = list(sys.path), set(sys.modules)
        model = cl.load(name)
        assert model.preprocess == IMAGENET and "ImageNet" in model.notes[-1], name
        assert sys.path == path
        assert {m for m in set(sys.modules) - modules if "nets_of_mine" in m} <= {"nets_of_mine"}
    sys.modules.pop("nets_of_mine")


def test_weights_go_into_ones_own_net(nets: str) -> None:
    source = cl.load(f"{nets}:net")
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.net.state_dict().items()}}, "w.pth")
    model = cl.load(f"{nets}:net", Path("w.pth"))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(x), source(x))
    assert [n.split(",")[0] for n in model.notes[:3]] == [
        "weights w.pth",
        "taken from 'state_dict'",
        "prefix 'module.' taken off 9 names",
    ]


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("nets_of_mine.py:fails", r"nets_of_mine\.py:21: KeyError: 'missing'"),
        ("nets_of_mine.py:deep", r"nets_of_mine\.py:27: RuntimeError: .*size"),
        ("nets_of_mine.py:leaves", r"nets_of_mine\.py:30: SystemExit: 3"),
        ("nets_of_mine.py:nett", r"has no 'nett'\. Did you mean 'net'\?"),
        ("nets_of_mine.py:number", "is of type int, not callable"),
        ("nets_of_mine.py:nothing", "gave something of type NoneType: it must return an nn.Module"),
        ("nets_of_mine.py:__class__.x", "names no callable"),
        ("nosuch.py:net", "there is no Python file 'nosuch.py'"),
        ("no_such_module:net", "there is no Python module 'no_such_module'"),
        ("wrong.py:net", r"wrong\.py:3: SyntaxError"),
        ("imports.py:net", r"imports\.py:2: ModuleNotFoundError: No module named 'nothing_here'"),
    ],
)
def test_errors_in_ones_own_code_name_the_line(what: str, expected: str, nets: str) -> None:
    Path("wrong.py").write_text("\n\ndef net(:\n")
    Path("imports.py").write_text("\nimport nothing_here\n")
    with pytest.raises(ModelError, match=expected) as caught:
        cl.load(what)
    assert "\n" not in str(caught.value)
    assert not [m for m in sys.modules if m.startswith("_camlucida_") and "wrong" in str(sys.modules[m])]


def test_the_cause_of_an_error_in_ones_own_code_is_kept(nets: str) -> None:
    with pytest.raises(ModelError) as caught:
        cl.load(f"{nets}:fails")
    assert isinstance(caught.value.__cause__, KeyError)


def test_ctrl_c_in_ones_own_code_passes(nets: str) -> None:
    Path("slow.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        cl.load("slow.py:net")


# -------------------------------------------------------------------------------------------------------------- timm


def test_timm_without_weights_is_told_to_be_random(timm: ModuleType) -> None:
    model = cl.load("timm/resnet18", "random")
    assert model.notes == ("random initialisation: the net has learnt nothing",)
    assert model.name == "timm/resnet18" and model.labels[1] == "goldfish, Carassius auratus"
    assert len(model.labels) == 1000 and not model.training


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_pictures_are_prepared_as_timm_does(name: str, timm: ModuleType) -> None:
    model = cl.load(f"timm/{name}", "random")
    data = importlib.import_module("timm.data")
    theirs = data.create_transform(**data.resolve_model_data_config(model.net))
    pixels = np.random.default_rng(0).integers(0, 256, (270, 400, 3), dtype=np.uint8)
    for picture in (Image.fromarray(pixels), Image.fromarray(pixels).rotate(90, expand=True)):
        assert torch.equal(model.preprocess(picture)[0], theirs(picture))


def test_fine_tuned_heads_and_grey_inputs_load(timm: ModuleType, tmp_path: Path) -> None:
    net = timm.create_model("resnet18", num_classes=7, in_chans=1)
    save_file({f"model.{k}": v for k, v in net.state_dict().items()}, tmp_path / "w.safetensors")
    model = cl.load("timm/resnet18", tmp_path / "w.safetensors")
    assert model.labels == () and model.preprocess.channels == 1
    assert isinstance(model.preprocess, Preprocess) and model.preprocess.mean == pytest.approx((0.449,))
    x = torch.rand(1, 1, 64, 64)
    assert torch.equal(model(x), net.eval()(x)) and model(x).shape == (1, 7)


def test_a_thousand_classes_from_a_file_are_said_to_be_a_guess(timm: ModuleType, tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "w.safetensors")
    assert (
        "1,000 classes: taken to be those of imagenet-1k" in cl.load("timm/resnet18", tmp_path / "w.safetensors").notes
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet19", r"timm has no model 'resnet19'\. Did you mean 'resnet18'"),
        ("resnet18.nope", r"timm has no weights 'resnet18\.nope'\. Did you mean 'resnet18\."),
        ("vit_giant_patch14_224", "no pretrained weights for 'vit_giant_patch14_224'.*weights='random'"),
    ],
)
def test_names_that_timm_does_not_know(name: str, expected: str, timm: ModuleType) -> None:
    with pytest.raises(ModelError, match=expected):
        cl.load(f"timm/{name}")


_SEEN: list[str] = []
_LISTENING = [False]


def _listen(event: str, args: tuple[Any, ...]) -> None:
    if _LISTENING[0] and event in ("open", "socket.connect", "socket.getaddrinfo", "exec", "import", "os.listdir"):
        _SEEN.append(f"{event} {args[:1]}")


def test_names_that_are_no_plain_names_touch_nothing() -> None:
    names = ["hf-hub:evil/x", "hf_hub:evil/x", "local-dir:/etc", "../x", "/etc/passwd", "a/b", "resnet18/../x", ".."]
    names += ["resnet18\0", "resnet18\n", "x" * 10_000, "__import__('os')", "resnet18;import os", "", "resné", "a.b.c"]
    importlib.import_module("camlucida.models.timm_source")
    sys.addaudithook(_listen)  # cannot be taken off again: it listens here only
    for name in names:
        _LISTENING[0] = True
        try:
            cl.load(f"timm/{name}")
        except ModelError as problem:
            said = str(problem)
        finally:
            _LISTENING[0] = False
        assert "is no plain name" in said and said.isprintable() and len(said) < 400
    assert not [s for s in _SEEN if "pkgutil" not in s and "models" not in s], _SEEN


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (ModuleNotFoundError("No module named 'timm'", name="timm"), r"needs timm: pip install camlucida\[timm\]"),
        (RuntimeError("operator torchvision::nms does not exist"), "torchvision does not fit the installed torch"),
        (ImportError("cannot import name 'x'"), "torchvision does not fit the installed torch"),
    ],
)
def test_timm_that_cannot_be_imported_is_explained(
    fault: Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name.partition(".")[0] == "timm":
                raise fault

    for name in [n for n in sys.modules if n.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken, *sys.meta_path])
    with pytest.raises(ModelError, match=expected):
        cl.load("timm/resnet18", "random")


def test_a_hub_that_cannot_be_reached_is_explained(timm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ModelError, match=r"could not be fetched \(OSError: no network\): the network is needed once"):
        cl.load("timm/resnet18")


# -------------------------------------------------------------------------------------------------------- the source

SOURCE = Path(sniff.__file__).parent.parent


def _sins(tree: ast.AST) -> list[str]:
    """What must never be in the product: code out of data, in any of its ways."""
    sins = []
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        sins += [n for n in names if n.partition(".")[0] in ("pickle", "dill", "cloudpickle", "shelve", "marshal")]
        if not isinstance(node, ast.Call):
            continue
        called, flags = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        sins += [called] if called in ("eval", "exec", "os.system", "torch.jit.load", "builtins.exec") else []
        sins += [called] if called == "torch.load" and flags.get("weights_only") != "True" else []
        sins += [k for k in ("allow_pickle", "shell") if flags.get(k, "False") != "False"]
        sins += [called] if called.endswith(("yaml.load", ".extractall", ".set_default_load_endianness")) else []
    return sins


def test_nothing_in_the_product_turns_data_into_code() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 20
    found = {str(f.relative_to(SOURCE)): _sins(ast.parse(f.read_text())) for f in files}
    programs = {"models/torchscript_source.py": ["torch.jit.load"]}  # asked for by that name, and looked through first
    assert {f: s for f, s in found.items() if s} == programs


@pytest.mark.parametrize(
    "text",
    ["torch.load(f)", "torch.load(f, weights_only=False)", "import pickle", "from pickle import loads", "eval('1')",
     "np.load(f, allow_pickle=True)", "subprocess.run(c, shell=True)", "exec(code)", "zip.extractall()"],
)  # fmt: skip
def test_the_rule_above_sees_each_sin(text: str) -> None:
    assert _sins(ast.parse(text))
