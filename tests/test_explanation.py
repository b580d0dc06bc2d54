"""Explanation: it says what it is, lies on the picture's own pixels, and survives the disk."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import camlucida as cl
from camlucida.errors import InputError, OutputError
from camlucida.frame import Preprocess
from camlucida.maps import Centres


class Spot(nn.Module):
    """Two classes: the brightest green place, and the brightest red one; its maps are known beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 2, 8, 8, bias=False), nn.ReLU())
        self.fc = nn.Linear(2, 2)
        with torch.no_grad():
            self.features[0].weight.zero_()
            self.features[0].weight[0, 1] = 1 / 64
            self.features[0].weight[1, 0] = 1 / 64
            self.fc.weight.copy_(torch.tensor([[4.0, -4.0], [-4.0, 4.0]]))
            self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


LOOK = Preprocess((64, 64), mean=(0.0,) * 3, std=(1.0,) * 3, crop=1.0)


def scene(width: int = 160, height: int = 96) -> Image.Image:
    """Green at the left, red at the right of the part that a centre crop keeps."""
    pixels = np.zeros((height, width, 3), np.uint8)
    middle = width // 2
    pixels[30:50, middle - 40 : middle - 20, 1] = 255
    pixels[50:70, middle + 20 : middle + 40, 0] = 255
    return Image.fromarray(pixels)


def centre(heat: Tensor) -> tuple[float, float]:
    total = heat.sum()
    y = (heat.sum(1) * torch.arange(heat.shape[0])).sum() / total
    x = (heat.sum(0) * torch.arange(heat.shape[1])).sum() / total
    return float(x), float(y)


@pytest.fixture(scope="module")
def net() -> Spot:
    return Spot()


@pytest.fixture
def explained(net: Spot) -> cl.Explanation:
    return cl.explain(net, scene(), target=0, preprocess=LOOK)


def test_the_map_lies_on_the_object_in_the_pictures_own_pixels(explained: cl.Explanation, net: Spot) -> None:
    heat = explained.heatmap()
    assert heat.shape == (96, 160) and 0 <= heat.min() and heat.max() <= 1
    x, y = centre(heat)
    assert abs(x - 49.5) < 3 and abs(y - 39.5) < 3
    x, y = centre(cl.explain(net, scene(), target=1, preprocess=LOOK).heatmap())
    assert abs(x - 109.5) < 3 and abs(y - 59.5) < 3


def test_every_way_of_fitting_puts_the_map_on_the_object(net: Spot) -> None:
    for fit in ("crop", "squash", "letterbox"):
        look = Preprocess((64, 64), mean=(0.0,) * 3, std=(1.0,) * 3, crop=1.0, fit=fit)
        x, y = centre(cl.explain(net, scene(), target=0, preprocess=look).heatmap())
        assert abs(x - 49.5) < 8 and abs(y - 39.5) < 6, fit


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_undone(net: Spot, tmp_path: Path, turn: int) -> None:
    upright = scene(120, 96)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that stores a picture under this orientation
    stored = upright.transpose(Image.Transpose(undo[turn])) if turn > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = turn
    stored.save(tmp_path / "turned.png", exif=exif)
    e = cl.explain(net, tmp_path / "turned.png", target=0, preprocess=LOOK)
    assert e.pictures.image(0).size == (120, 96)
    x, y = centre(e.heatmap())
    assert abs(x - 29.5) < 3 and abs(y - 39.5) < 3


class Leaning(nn.Module):
    """Three strided means of green, padded at the ends only, as TensorFlow does: cells lie at 7.5, 15.5, … of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 1, 3, 2, bias=False), *(nn.Conv2d(1, 1, 3, 2, bias=False),) * 2])
        self.relu, self.fc = nn.ReLU(), nn.Linear(1, 2)
        with torch.no_grad():
            self.convs[0].weight.zero_()[:, 1] = 1 / 9
            self.convs[1].weight.fill_(1 / 9)
            self.fc.weight.copy_(torch.tensor([[4.0], [-4.0]]))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(nn.functional.pad(x, (0, 1, 0, 1)))
        return self.fc(self.relu(x).mean((2, 3)))


def dot(width: int, height: int, x: int, y: int) -> Image.Image:
    """Eight green pixels a side about a point."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y - 4 : y + 4, x - 4 : x + 4, 1] = 255
    return Image.fromarray(pixels)


def apart(heat: Tensor, x: float, y: float) -> float:
    """How far the middle of the heat is from a point between pixels."""
    found = centre(heat)
    return max(abs(found[0] + 0.5 - x), abs(found[1] + 0.5 - y))


@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
def test_the_map_lies_at_the_true_centres_of_its_cells(fit: Any) -> None:
    look = Preprocess((64, 64), mean=(0.0,) * 3, std=(1.0,) * 3, crop=1.0, fit=fit)
    e = cl.explain(Leaning(), dot(160, 96, 74, 46), target=0, preprocess=look)
    assert e.layer == "relu" and e.centres == Centres((7.5, 7.5), (8.0, 8.0))
    assert apart(e.heatmap(), 74, 46) < 2 < 4 < apart(replace(e, centres=None).heatmap(), 74, 46)


@pytest.mark.parametrize("turn", range(1, 9))
def test_true_centres_and_orientation(tmp_path: Path, turn: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    upright = dot(120, 96, 64, 42)
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = upright.transpose(Image.Transpose(undo[turn])) if turn > 1 else upright
    stored.save(tmp_path / "turned.png", exif=exif)
    e = cl.explain(Leaning(), tmp_path / "turned.png", target=0, preprocess=LOOK)
    assert apart(e.heatmap(), 64, 42) < 0.7 < 4 < apart(replace(e, centres=None).heatmap(), 64, 42)


def test_true_centres_are_told_kept_and_the_same_in_a_batch(tmp_path: Path) -> None:
    pair = cl.explain(Leaning(), [dot(160, 96, 74, 46), dot(90, 96, 40, 60)], target=0, preprocess=LOOK)
    assert pair.steps[-1] == "linear interpolation to the picture, laid at stride 8, first centre 7.5"
    assert pair.summary()["layer"] == "relu, channels first, 8×8 at stride 8, first centre 7.5"
    for suffix in ("npz", "safetensors"):
        pair.save(tmp_path / f"e.{suffix}")
        again = cl.load_explanation(tmp_path / f"e.{suffix}")
        assert again.centres == pair.centres
        for i, one in enumerate((dot(160, 96, 74, 46), dot(90, 96, 40, 60))):
            alone = cl.explain(Leaning(), one, target=0, preprocess=LOOK)
            assert torch.equal(again.heatmap(i), pair.heatmap(i)) and torch.equal(pair[i].heatmap(), pair.heatmap(i))
            assert torch.allclose(alone.heatmap(), pair.heatmap(i), atol=1e-6)


def test_an_explanation_saved_without_centres_is_spread_evenly(explained: cl.Explanation, tmp_path: Path) -> None:
    assert explained.centres is None and explained.steps[-1].endswith("spread evenly")
    explained.save(tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz") as held:
        arrays = dict(held)
    told = json.loads(bytes(arrays.pop("json")))
    del told["centres"]  # as files were before
    np.savez(tmp_path / "old.npz", json=np.frombuffer(json.dumps(told).encode(), np.uint8), **arrays)
    assert torch.equal(cl.load_explanation(tmp_path / "old.npz").heatmap(), explained.heatmap())


def test_what_the_model_never_saw_is_zero_and_marked(explained: cl.Explanation) -> None:
    seen = explained.seen()
    assert not seen[:, :31].any() and not seen[:, 129:].any() and seen[:, 33:127].all()
    assert explained.heatmap()[~seen].abs().max() == 0
    laid, picture = np.asarray(explained.overlay()).astype(int), np.asarray(explained.pictures.image(0)).astype(int)
    assert len(np.unique(laid[:, :31].reshape(-1, 3), axis=0)) > 1  # stripes over a margin that was plain black
    assert laid.shape == picture.shape


def test_signed_maps_show_both_sides_around_zero(net: Spot) -> None:
    e = cl.explain(net, scene(), target=0, preprocess=LOOK)
    signed = e.heatmap(signed=True)
    assert signed.min() < -0.5 and signed.max() > 0.5
    assert torch.allclose(signed.clamp(min=0) * cl.shared_scale([e], signed=True) / cl.shared_scale([e]), e.heatmap())


def test_a_shared_scale_makes_pictures_comparable(net: Spot) -> None:
    dim = Image.fromarray((np.asarray(scene()) * 0.25).astype(np.uint8))
    pair = cl.explain(net, [scene(), dim], target=0, preprocess=LOOK)
    scale = cl.shared_scale([pair])
    bright, faint = (pair.heatmap(i, scale=scale).max() for i in range(2))
    assert abs(faint / bright - 0.25) < 0.02 and abs(pair.heatmap(1).max() - pair.heatmap(0).max()) < 0.02


def test_a_blank_map_says_why_and_stays_blank(net: Spot) -> None:
    red = Image.fromarray(np.full((64, 64, 3), (255, 0, 0), np.uint8))
    black = Image.new("RGB", (64, 64))
    half = np.asarray(red).copy()
    half[:, :32] //= 2
    e = cl.explain(net, [red, black, Image.fromarray(half)], target=0, preprocess=LOOK)
    assert e.statuses == ("constant", "no evidence", "all-negative")
    assert all(e.heatmap(i).abs().max() == 0 for i in range(3))
    assert e.heatmap(2, signed=True).min() < -0.9
    assert np.any(np.asarray(e.panel(2)) != np.asarray(e.panel(2, note="")))


def test_a_picture_of_nan_is_non_finite_and_its_neighbours_are_not(net: Spot) -> None:
    x = torch.rand(3, 3, 64, 64)
    x[1, 0, 0, 0] = torch.nan
    e = cl.explain(net, x, target=0)
    assert e.statuses[1] == "non-finite" and e.statuses[0] != "non-finite"
    assert torch.equal(e.map[0], cl.explain(net, x[:1], target=0).map[0]) and e.heatmap(1).abs().max() == 0


def test_it_says_everything_one_must_know(explained: cl.Explanation) -> None:
    e = explained
    assert (e.layer, e.method, e.status, len(e)) == ("features", "gradcam", "ok", 1)
    assert e.facts.layout == "channels first" and e.facts.version == cl.__version__ and e.cost > 1
    assert e.classes is not None and e.classes.tolist() == [0] and e.probability() is not None
    assert torch.allclose(e.scores, Spot()(LOOK(scene())[0][None])[:, 0])
    assert "features" in e.caption() and "class 0" in e.caption() and e.steps[1] == "ReLU"
    assert set(e.summary()) == {"picture", "explained", "score", "method", "layer", "status", "cost"}


def test_a_batch_is_indexed_and_iterated(net: Spot) -> None:
    x = torch.rand(3, 3, 64, 64)
    e = cl.explain(net, x, target=cl.classes([0, 1, 0]))
    assert [len(one) for one in e] == [1, 1, 1] and torch.equal(e[-1].map, e.map[2:])
    assert e[1].classes.tolist() == [1] and e[2].pictures.names == ("picture 2",)  # type: ignore[union-attr]
    with pytest.raises(IndexError, match="this explanation has 3"):
        e[3]
    assert e.overlay(2).size == (64, 64)


def test_a_signal_has_a_heat_map_and_a_strip_but_no_picture() -> None:
    net = nn.Sequential(nn.Conv1d(2, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
    e = cl.explain(net, torch.randn(2, 2, 40), target=1)
    assert e.map.shape == (2, 36) and e.heatmap().shape == (40,)
    with pytest.raises(InputError, match="no picture"):
        e.pictures.image(0)
    assert e.overlay().width == 960 and e._repr_png_() is not None


def test_it_shows_itself_in_a_notebook(explained: cl.Explanation) -> None:
    png, html = explained._repr_png_(), explained._repr_html_()
    assert png is not None and png[:8] == b"\x89PNG\r\n\x1a\n"
    assert html is not None and "data:image/png;base64" in html and "<script" not in html


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_saved_explanation_loads_equal(explained: cl.Explanation, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"e.{suffix}"
    explained.save(file)
    again = cl.load_explanation(file)
    assert torch.equal(again.map, explained.map) and torch.equal(again.scores, explained.scores)
    assert again.facts == explained.facts and again.statuses == explained.statuses
    assert again.pictures.frames == explained.pictures.frames and again.caption() == explained.caption()
    assert np.array_equal(np.asarray(again.panel()), np.asarray(explained.panel()))


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_half_precision_is_kept_and_its_probabilities_known(
    explained: cl.Explanation, tmp_path: Path, suffix: str
) -> None:
    """In bfloat16 these three add up to 1.002: probabilities all the same, and no logits."""
    p = torch.tensor([[2 / 3, 1 / 6, 1 / 6]], dtype=torch.bfloat16)
    e = replace(explained, logits=p, classes=torch.tensor([0]))
    assert abs(float(p.float().sum()) - 1) > 1e-3 and e.probability() == float(p[0, 0])
    e.save(tmp_path / f"e.{suffix}")
    again = cl.load_explanation(tmp_path / f"e.{suffix}")
    assert again.logits is not None and again.logits.dtype == torch.bfloat16 and again.probability() == e.probability()


def test_a_saved_batch_of_tensors_loads_equal(net: Spot, tmp_path: Path) -> None:
    e = cl.explain(net, torch.rand(2, 3, 64, 64), target=0)
    for suffix in ("npz", "safetensors"):
        e.save(tmp_path / f"e.{suffix}")
        assert np.array_equal(
            np.asarray(cl.load_explanation(tmp_path / f"e.{suffix}").overlay(1)), np.asarray(e.overlay(1))
        )


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_pictures_are_written_at_the_pictures_size(explained: cl.Explanation, tmp_path: Path, suffix: str) -> None:
    explained.save(tmp_path / f"e.{suffix}")
    with Image.open(tmp_path / f"e.{suffix}") as image:
        assert image.size == (160, 96)
        if suffix == "png":
            assert np.array_equal(np.asarray(image), np.asarray(explained.overlay()))


def test_saving_and_loading_refuse_with_a_reason(explained: cl.Explanation, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"unknown suffix.*'\.npz'"):
        explained.save(tmp_path / "e.np")
    with pytest.raises(OutputError, match="no such file"):
        cl.load_explanation(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(OutputError, match="damaged"):
        cl.load_explanation(tmp_path / "bad.npz")
    np.savez(tmp_path / "other.npz", json=np.frombuffer(json.dumps({"format": "x"}).encode(), np.uint8))
    with pytest.raises(OutputError, match="this version reads"):
        cl.load_explanation(tmp_path / "other.npz")
    np.savez(tmp_path / "code.npz", json=np.array([{"a": 1}], dtype=object))
    with pytest.raises(OutputError, match="Object arrays cannot be loaded"):
        cl.load_explanation(tmp_path / "code.npz")


@pytest.mark.parametrize(
    "x, says",
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "no input that a gradient could be taken at"),
        (torch.zeros(3, 8), r"add the batch axis"),
        (torch.zeros(0, 3, 8, 8), "at least one of each"),
        ([], "the list is empty"),
        ((), "no floating-point tensor"),
        ({}, "no floating-point tensor"),
        ("nowhere.jpg", "nowhere.jpg"),
    ],
)
def test_input_that_cannot_be_used_is_refused_with_a_reason(net: Spot, x: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        cl.explain(net, x)


def test_pictures_come_as_paths_bytes_arrays_or_pil(net: Spot, tmp_path: Path) -> None:
    scene().save(tmp_path / "a.png")
    forms = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        np.asarray(scene()),
        scene(),
    ]
    maps = [cl.explain(net, x, target=0, preprocess=LOOK).map for x in forms]
    assert all(torch.equal(m, maps[0]) for m in maps)
    assert torch.equal(cl.explain(net, forms[:2], target=0, preprocess=LOOK).map[1:], maps[0])


def test_an_empty_question_is_refused(net: Spot) -> None:
    with pytest.raises(InputError, match="at least one target"):
        cl.sweep(net, torch.rand(1, 3, 64, 64), targets=[])
