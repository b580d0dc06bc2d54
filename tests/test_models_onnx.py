"""ONNX graphs: explained by their answers alone, whatever batch they were saved for; labels out of their metadata."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import guest
from PIL import Image
from torch import Tensor, nn

import camlucida as cl
from camlucida.errors import InputError, LayerError, MethodError, ModelError
from camlucida.models import sniff
from camlucida.models.onnx_source import parsed

X = torch.rand(5, 3, 16, 16)


@pytest.fixture(scope="module", autouse=True)
def onnxruntime() -> ModuleType:
    return guest("onnxruntime")


# ------------------------------------------------------------ a graph, written as its format has it: tag, length, bytes


def _number(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _number(rest) if rest else bytes([low])


def _field(tag: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _number(tag << 3) + _number(value)
    data = value.encode() if isinstance(value, str) else value
    return _number(tag << 3 | 2) + _number(len(data)) + data


def _tensor(name: str, shape: tuple[int | str, ...], kind: int = 1) -> bytes:
    dims = b"".join(_field(1, _field(1 if isinstance(n, int) else 2, n)) for n in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims)))


def _node(op: str, given: str, made: str, perm: tuple[int, ...] = ()) -> bytes:
    ints = b"".join(_field(8, n) for n in perm)
    attribute = _field(5, _field(1, "perm") + ints + _field(20, 7)) if perm else b""
    return _field(1, given) + _field(2, made) + _field(4, op) + attribute


def graph(path: Path, shape: tuple[int | str, ...], names: str = "", last: bool = False, inputs: int = 1) -> Path:
    """Writes the graph of `Means`: the mean of each channel, doubled; with the channels last if asked for."""
    first = [_node("Transpose", "x", "y", (0, 3, 1, 2))] if last else [_node("Identity", "x", "y")]
    nodes = [*first, _node("GlobalAveragePool", "y", "m"), _node("Flatten", "m", "f"), _node("Sigmoid", "f", "z")]
    made = b"".join(_field(1, n) for n in nodes) + _field(2, "means")
    made += b"".join(_field(11, _tensor(name, shape)) for name in ("x", "w")[:inputs])
    made += _field(12, _tensor("z", (shape[0], 3)))
    told = _field(14, _field(1, "names") + _field(2, names)) if names else b""
    path.write_bytes(_field(1, 8) + _field(2, "tests") + _field(7, made) + _field(8, _field(2, 13)) + told)
    return path


class Means(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).sigmoid()


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 7, "b"])
def test_any_batch_goes_through_any_graph(batch: int | str, tmp_path: Path) -> None:
    model = cl.load(f"onnx:{graph(tmp_path / 'net.onnx', (batch, 3, 16, 16))}")
    assert torch.allclose(model(X), Means()(X), atol=1e-6) and model(X).shape == (5, 3)


@pytest.mark.parametrize("batch", [1, 3, "b"])
@pytest.mark.parametrize("method", ["occlusion", "rise:samples=40"])
def test_its_answers_make_the_map_of_the_same_net(method: str, batch: int | str, tmp_path: Path) -> None:
    model = cl.load(f"onnx:{graph(tmp_path / 'net.onnx', (batch, 3, 16, 16))}")
    found, same = (cl.explain(net, X, target=2, method=method) for net in (model, Means()))
    assert torch.allclose(found.map, same.map, atol=1e-6) and found.map.abs().max() > 1e-4


def test_channels_may_come_last(tmp_path: Path) -> None:
    model = cl.load(f"onnx:{graph(tmp_path / 'net.onnx', (1, 20, 16, 3), last=True)}")
    x = torch.rand(2, 3, 20, 16)
    assert torch.allclose(model(x), Means()(x), atol=1e-6) and model.preprocess.size == (20, 16)


def test_the_size_and_the_labels_are_the_graphs(tmp_path: Path) -> None:
    path = graph(tmp_path / "net.onnx", ("b", 3, 48, 64), names="{0: 'cat', 1: 'dog', 2: 'hen'}")
    model = cl.load(f"onnx:{path}")
    assert model.preprocess.size == (48, 64) and model.labels == ("cat", "dog", "hen")
    assert model.notes == (
        "the file does not say how pictures are made ready: as for ImageNet, 48×64, unless preprocess= says it",
    )
    e = cl.explain(model, Image.new("RGB", (90, 60), "red"), method="occlusion")
    assert e.label() == "cat" and e.map.shape == (1, 48, 64)  # red, the first channel, is the brightest
    free = cl.load(f"onnx:{graph(tmp_path / 'free.onnx', ('b', 3, 'h', 'w'))}")
    assert free.preprocess.size == (224, 224) and free.labels == ()


def test_what_reads_inside_is_refused_and_what_works_is_named(tmp_path: Path) -> None:
    model = cl.load(f"onnx:{graph(tmp_path / 'net.onnx', (1, 3, 16, 16))}")
    for method in ("gradcam", "gradient", "integratedgradients", "layercam"):
        with pytest.raises(MethodError, match=r"an ONNX graph hides its layers and gradients: .*method='rise'"):
            cl.explain(model, X, method=method)
    with pytest.raises(LayerError, match="an ONNX graph hides its layers"):
        cl.explain(model, X, method="rise", layer="conv1")


def test_another_shape_is_said(tmp_path: Path) -> None:
    model = cl.load(f"onnx:{graph(tmp_path / 'net.onnx', ('b', 3, 16, 16))}")
    with pytest.raises(InputError, match="takes any×3×16×16; got 1×3×20×16"):
        cl.explain(model, torch.rand(1, 3, 20, 16), method="occlusion")


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("['a', 'b']", ("a", "b")),
        ('{"1": "b", "0": "a"}', ("a", "b")),
        ("{0: 'a', 2: 'c'}", ("a", "class 1", "c")),
        ("{}", ()),
        ("{-1: 'a'}", ()),
        ("{99999999999: 'a'}", ()),
        ("open('x', 'w')", ()),
        ("[" * 100_000, ()),
        ("cat, dog", ()),
        ("7", ()),
        ("", ()),
    ],
)
def test_labels_are_parsed_and_never_run(text: str, labels: tuple[str, ...], tmp_path: Path) -> None:
    assert parsed(text) == labels


@pytest.mark.parametrize("case", ["missing", "text", "empty", "two inputs", "no picture", "with weights"])
def test_what_is_no_graph_of_pictures_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    path, weights = tmp_path / "net.onnx", None
    if case in ("text", "empty"):
        path.write_text("<html>404</html>" * (case == "text"))
    elif case == "two inputs":
        graph(path, (1, 3, 8, 8), inputs=2)
    elif case == "no picture":
        graph(path, (1, 3))
    elif case == "with weights":
        graph(path, (1, 3, 8, 8))
        weights = "random"
    expected = {
        "missing": "there is no file", "text": "cannot load 'net.onnx' as an ONNX graph", "empty": "cannot load",
        "two inputs": "x: tensor.* a graph of one batch", "no picture": "cannot load|one batch of pictures",
        "with weights": "leave weights= out",
    }[case]  # fmt: skip
    with pytest.raises(ModelError, match=expected) as caught:
        cl.load(f"onnx:{path}", weights)
    assert "\n" not in str(caught.value)


def test_a_graph_handed_over_as_weights_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="an ONNX graph and not only weights: load it by itself, as onnx:FILE"):
        sniff.kind(graph(tmp_path / "net.onnx", (1, 3, 8, 8)))


def test_without_onnxruntime_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph(tmp_path / "net.onnx", (1, 3, 8, 8))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"needs onnxruntime: pip install camlucida\[onnx\]"):
        cl.load(f"onnx:{tmp_path / 'net.onnx'}")
