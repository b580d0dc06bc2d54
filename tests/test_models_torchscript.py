"""TorchScript: explained by its answers alone, refused where it would touch files, and where it is none."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import camlucida as cl
from camlucida.core.scope import black_box, named
from camlucida.errors import LayerError, MethodError, ModelError
from camlucida.registry import list_methods

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:DeprecationWarning")
X = torch.rand(2, 3, 16, 16)


def net() -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(0.9), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.jit.save(torch.jit.script(net()), tmp_path / "net.pt")
    return tmp_path / "net.pt"


@pytest.mark.parametrize("made", ["scripted", "traced", "frozen", "saved", "wrapped"])
@pytest.mark.parametrize("method", ["occlusion", "rise:samples=40"])
def test_its_answers_make_the_map_of_the_net_it_was_made_of(made: str, method: str, file: Path) -> None:
    makes: dict[str, Any] = {
        "scripted": lambda: torch.jit.script(net()),
        "traced": lambda: torch.jit.trace(net(), X),
        "frozen": lambda: torch.jit.freeze(torch.jit.script(net())),
        "saved": lambda: cl.load(f"torchscript:{file}"),
        "wrapped": lambda: nn.Sequential(nn.Identity(), torch.jit.script(net())),
    }
    found = cl.explain(makes[made](), X, target=3, method=method)
    assert torch.allclose(found.map, cl.explain(net(), X, target=3, method=method).map, atol=1e-6)
    assert found.map.abs().max() > 1e-4


def test_it_is_asked_in_evaluation_mode_and_left_as_it_was() -> None:
    script = torch.jit.script(net().train())
    assert script.training
    found = cl.explain(script, X, target=3, method="occlusion")
    assert torch.allclose(found.map, cl.explain(net(), X, target=3, method="occlusion").map, atol=1e-6)
    assert script.training


@pytest.mark.parametrize("method", ["gradcam", "gradient", "scorecam", "smoothgrad", "eigencam", "rollout"])
def test_what_reads_inside_is_refused_and_what_works_is_named(method: str) -> None:
    with pytest.raises(MethodError) as caught:
        cl.explain(torch.jit.script(net()), X, method=method)
    able = [m.name for m in list_methods().values() if m.answers_only]
    assert {"rise", "occlusion"} <= set(able) and all(f"method={name!r}" in str(caught.value) for name in able)
    assert "TorchScript hides its layers" in str(caught.value)


def test_the_default_method_says_which_to_take() -> None:
    with pytest.raises(MethodError, match=r"Grad-CAM reads inside.*method='rise'"):
        cl.explain(torch.jit.script(net()), X)


def test_it_has_no_layers() -> None:
    script = torch.jit.script(net())
    assert list(named(script)) == [""] and black_box(script) == "TorchScript" and black_box(net()) == ""
    with pytest.raises(LayerError, match=r"hides its layers.*leave layer= out"):
        cl.explain(script, X, method="rise", layer="0")
    assert cl.explain(script, X, method="occlusion", layer="input").map.shape == (2, 16, 16)


def test_a_module_of_ones_own_can_say_that_it_hides() -> None:
    class Service(nn.Module):
        black_box = "a service"

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.detach().mean((2, 3))

    assert cl.explain(Service(), X, target=1, method="occlusion").map.shape == (2, 16, 16)
    with pytest.raises(MethodError, match="a service hides its layers"):
        cl.explain(Service(), X)


def test_a_picture_is_taken_and_what_was_assumed_is_said(file: Path) -> None:
    model = cl.load(f"torchscript:{file}")
    e = cl.explain(model, Image.new("RGB", (60, 40), "red"), method="occlusion")
    assert model.name == "torchscript:net.pt" and e.map.shape == (1, 224, 224)
    assert "the file does not say how pictures are made ready: as for ImageNet, 224×224" in e.facts.notes[0]
    small = cl.Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3)
    assert cl.explain(model, Image.new("RGB", (60, 40)), method="occlusion", preprocess=small).map.shape == (1, 16, 16)


class Writes(nn.Module):
    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.place)
        return x.mean([2, 3])


class Reads(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_file("secret", False, 4) + x.mean()


@pytest.mark.parametrize(("module", "what"), [(Writes("stolen"), "save"), (Reads(), "from_file")])
def test_a_program_that_touches_files_is_refused_unread(
    module: nn.Module, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(module), "net.pt")
    with pytest.raises(ModelError, match=f"'net.pt' calls {what}, which reads or writes files: refused"):
        cl.load("torchscript:net.pt")
    if what == "save":  # so that the refusal is known to be worth something
        torch.jit.load("net.pt")(X)
        assert Path("stolen").exists()


def _rewritten(file: Path, place: Path, change: Any) -> Path:
    """The program with each entry of its archive as `change` makes it of name and content."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            for entry in change(name, old.read(name)):
                new.writestr(*entry)
    return place


@pytest.mark.parametrize(
    "spelling",
    [b"(torch. # a word\n from_file)(", b"torch.\\\nfrom_file(", b"(torch.from_file)(", b"ops.image.write_file("],
)
def test_no_spelling_hides_an_operator_that_touches_files(spelling: bytes, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Reads()), tmp_path / "net.pt")
    hidden = _rewritten(
        tmp_path / "net.pt", tmp_path / "hidden.pt", lambda n, b: [(n, b.replace(b"torch.from_file(", spelling))]
    )
    with pytest.raises(ModelError, match=r"'hidden\.pt' calls \w+_file, which reads or writes files: refused"):
        cl.load(f"torchscript:{hidden}")


def test_no_name_hides_the_code(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Reads()), tmp_path / "net.pt")

    def renamed(name: str, content: bytes) -> list[tuple[str, bytes]]:
        if not name.endswith(".py"):
            return [(name, content)]
        return [(name.replace(".py", ".PY"), content), (name.replace("__torch__", "decoy"), b"")]

    with pytest.raises(ModelError, match="calls from_file"):
        cl.load(f"torchscript:{_rewritten(tmp_path / 'net.pt', tmp_path / 'hidden.pt', renamed)}")


def test_a_bomb_of_code_is_refused_unpacked(file: Path, tmp_path: Path) -> None:
    bomb = _rewritten(file, tmp_path / "bomb.pt", lambda n, b: [(n, b + bytes(65_000_000) * n.endswith(".py"))])
    with pytest.raises(ModelError, match="more than 64 MB of code"):
        cl.load(f"torchscript:{bomb}")


def test_an_attribute_of_that_name_is_no_operator(tmp_path: Path) -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.save = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean([2, 3])

    torch.jit.save(torch.jit.trace(Keeps(), X), tmp_path / "net.pt")
    assert cl.load(f"torchscript:{tmp_path / 'net.pt'}")(X).shape == (2, 3)


def test_every_operator_that_takes_a_file_is_one_of_those_refused() -> None:
    schemas = torch._C._jit_get_all_schemas()
    found = {
        s.name
        for s in schemas
        if any(a.name in ("filename", "file", "path") and str(a.type) == "str" for a in s.arguments)
    }
    assert found == {"aten::save", "aten::from_file"}


@pytest.mark.parametrize("case", ["missing", "text", "weights", "cut", "folder", "with weights"])
def test_what_is_no_program_is_refused_in_one_line(case: str, file: Path, tmp_path: Path) -> None:
    path, weights = tmp_path / "other.pt", None
    if case == "text":
        path.write_text("<html>404</html>")
    elif case == "weights":
        torch.save({"w": torch.ones(2)}, path)
    elif case == "cut":
        path.write_bytes(file.read_bytes()[:-300])
    elif case == "folder":
        path.mkdir()
    elif case == "with weights":
        path, weights = file, "random"
    expected = {
        "missing": "there is no file", "text": "is no TorchScript program", "weights": "holds no program",
        "cut": "is no TorchScript program", "folder": "there is no file", "with weights": "leave weights= out",
    }[case]  # fmt: skip
    with pytest.raises(ModelError, match=expected) as caught:
        cl.load(f"torchscript:{path}", weights)
    assert "\n" not in str(caught.value)


def test_a_program_spoilt_inside_is_refused(file: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(tmp_path / "bad.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"def (" if name.endswith(".py") else old.read(name))
    with pytest.raises(ModelError, match=r"cannot load 'bad\.pt' as TorchScript"):
        cl.load(f"torchscript:{tmp_path / 'bad.pt'}")
