"""Large pictures by tiles: against the whole picture at once, and against tiles laid down by hand."""

import runpy
from pathlib import Path
from typing import Any

import fingerprint
import nets
import numpy as np
import pytest
import torch
from PIL import Image
from replicas import apart
from torch import Tensor, nn

import camlucida as cl
from camlucida.combine import tiled
from camlucida.core import chunks
from camlucida.errors import InputError, TargetError


def everywhere(dims: int = 2, classes: int = 5) -> nets.Net:
    """Fully convolutional: class scores at every place of a grid half as fine; it sees four pixels to either side."""
    conv, pool = getattr(nn, f"Conv{dims}d"), getattr(nn, f"MaxPool{dims}d")
    features = nn.Sequential(conv(2, 3, 3, padding=1), nn.GELU(), pool(2), conv(3, 4, 3, padding=1), nn.GELU())
    return nets.seeded(nets.Net(features, conv(4, classes, 1), (2, *nets.SPACE[dims])), 0)


def summed(y: Tensor) -> Tensor:
    """A score to which every place adds the same, in a tile as in the whole picture."""
    return (y[:, 1] * y[:, 2]).flatten(1).sum(1)


def picture(dims: int, *space: int, b: int = 1, channels: int = 2) -> Tensor:
    return torch.randn(b, channels, *space, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize("method", ["hirescam", "layercam"])
@pytest.mark.parametrize(
    ("space", "tile"), [((160,), 40), ((96, 80), 32), ((66, 98), (34, 32)), ((32, 40), 64), ((40, 24, 36), 24)]
)
def test_tiles_beyond_the_field_of_view_give_the_map_of_the_whole(space: Any, tile: Any, method: str) -> None:
    net, x = everywhere(len(space)), picture(len(space), *space)
    whole = cl.explain(net, x, target=summed, method=method, layer=net.layer)
    e = tiled(net, x, tile=tile, overlap=0.7, target=summed, method=method, layer=net.layer)
    assert e.map.shape == whole.map.shape and apart(e.map, whole.map) < 1e-12 * float(whole.map.abs().max())


def test_overlap_that_is_too_small_shows_where_tiles_meet() -> None:
    """The proof above can fail."""
    net, x = everywhere(), picture(2, 96, 80)
    whole = cl.explain(net, x, target=summed, method="hirescam", layer=net.layer)
    e = tiled(net, x, tile=32, overlap=0.1, target=summed, method="hirescam", layer=net.layer)
    off = (e.map - whole.map).abs()[0]
    assert off.max() > 1e-3 and off[:12, :12].max() < 1e-12  # away from where tiles meet all is as it was


def test_a_classifiers_map_is_that_of_the_whole_in_units_of_a_tiles_score() -> None:
    net, x = nets.gap_linear(), picture(2, 64, 48)
    whole = cl.explain(net, x, target=3, layer=net.layer)
    e = tiled(net, x, tile=16, overlap=0.75, target=3, layer=net.layer)
    assert apart(e.map, whole.map * (64 * 48) / (16 * 16)) < 1e-10


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize(("size", "tile"), [((41, 57), (16, 9)), ((30, 30), 7), ((17, 64), (17, 10))])
def test_a_constant_picture_shows_no_seam(size: Any, tile: Any, overlap: float) -> None:
    body = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Softplus(), nn.AvgPool2d(2, ceil_mode=True))
    net = nets.seeded(nets.Net(body, nets.gap_linear().tail, (2, 8, 8)), 0)
    e = tiled(net, torch.ones(1, 2, *size).double(), tile=tile, overlap=overlap, target=1, layer="features.1")
    values = e.map.flatten()
    assert values.abs().min() > 0 and float(values.max() - values.min()) < 1e-12 * float(values.abs().max())


@pytest.mark.parametrize("size", [(100, 90), (101, 83), (87, 94)])
def test_what_lies_in_the_picture_lies_at_its_place_in_the_map(size: tuple[int, int]) -> None:
    """Also where the picture is no whole number of cells."""
    body = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AvgPool2d(4))
    net = nets.Net(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)), (1, 8, 8))
    for p in net.parameters():
        p.data.fill_(0.5)
    for top, left in ((3, 5), (44, 71), (size[0] - 8, size[1] - 8), (60, 20)):
        x = torch.zeros(1, 1, *size)
        x[..., top : top + 8, left : left + 8] = 1.0
        e = tiled(net, x, tile=32, target=1, layer="features.2")
        heat = e.heatmap() - e.heatmap().min()
        rows, columns = (heat.sum(a) / heat.sum() for a in (1, 0))
        middle = [float((line * (torch.arange(len(line)) + 0.5)).sum()) for line in (rows, columns)]
        assert middle == pytest.approx([top + 4, left + 4], abs=1.5)


@pytest.mark.parametrize(("kernel", "pad"), [(5, 0), (3, 1)])
def test_cells_keep_their_true_centres(kernel: int, pad: int) -> None:
    """Without padding a tile's map begins further in; with a stride and padding its first cell looks at the border."""
    body = nn.Sequential(nn.Conv2d(2, 4, kernel, stride=2, padding=pad), nn.ReLU())
    net, x = nets.seeded(nets.Net(body, nn.Conv2d(4, 5, 1), (2, 31, 31)), 0), picture(2, 95, 63)
    whole = cl.explain(net, x, target=summed, method="hirescam", layer=net.layer)
    e = tiled(net, x, tile=31, overlap=0.7, target=summed, method="hirescam", layer=net.layer)
    assert whole.centres is not None and e.centres == whole.centres and apart(e.map, whole.map) < 1e-12
    assert apart(e.heatmap(), whole.heatmap()) < 1e-6


def by_hand(net: nets.Net, x: Tensor, tile: int, step: int, k: int) -> dict[tuple[int, int], Tensor]:
    """Each tile's map by itself."""
    high, wide = x.shape[2:]
    starts = [sorted({*range(0, n - tile, step), n - tile}) for n in (high, wide)]
    cut = {(i, j): x[..., i : i + tile, j : j + tile] for i in starts[0] for j in starts[1]}
    return {at: cl.explain(net, one, target=k, layer=net.layer).map[0] for at, one in cut.items()}


def test_without_overlap_the_map_is_its_tiles_side_by_side_with_one_scale() -> None:
    """A tile with little evidence stays dark beside one with much."""
    net, x = nets.gap_linear(), picture(2, 24, 32)
    x[..., :8, :8] *= 0.01
    e = tiled(net, x, tile=8, overlap=0.0, target=2, layer=net.layer)
    for (i, j), map in by_hand(net, x, 8, 8, 2).items():
        assert apart(e.map[0, i : i + 8, j : j + 8], map) < 1e-12
    assert e.facts.title == "Grad-CAM, 12 tiles" and e.map[0, :8, :8].abs().max() < 0.5 * e.map.abs().max()


def test_the_class_of_a_tensor_is_that_of_the_tiles_mean_logits() -> None:
    net, x = nets.smooth_tail(), picture(2, 24, 24, b=3)
    net.tail[-1].bias.data.zero_()
    with torch.no_grad():
        y = torch.stack([net(x[..., i : i + 8, j : j + 8]) for i in (0, 8, 16) for j in (0, 8, 16)]).mean(0)
        first = net(x[..., :8, :8]).argmax(1)
    assert (y.argmax(1) != first).any()  # it could come out otherwise
    e = tiled(net, x, tile=8, overlap=0.0, layer=net.layer)
    assert e.classes.tolist() == y.argmax(1).tolist() and apart(e.logits, y) < 1e-12
    assert apart(e.scores, y.amax(1)) < 1e-12 and e.facts.target == "top 1"
    named = tiled(net, x, tile=8, overlap=0.0, layer=net.layer, target=cl.classes(y.argmax(1).tolist()))
    assert torch.equal(named.map, e.map)
    for i in range(3):
        assert apart(tiled(net, x[i : i + 1], tile=8, overlap=0.0, layer=net.layer).map[0], e.map[i]) < 1e-12


@pytest.mark.parametrize("sign", [1, -1])
def test_the_side_of_one_logit_is_that_of_the_tiles_mean(sign: int) -> None:
    """Each tile by its own side would show evidence for two answers in one map."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net[0].weight.data.fill_(float(sign))
    x = torch.full((1, 1, 8, 24), -1.0)
    x[..., :8] = 4.0
    e = tiled(net, x, tile=8, overlap=0.0, target=cl.binary(), layer="0")
    assert e.classes.tolist() == [int(sign > 0)] and float(e.logits) == pytest.approx(sign * 2 / 3)
    assert bool((e.map[..., :8] > 0).all()) and bool((e.map[..., 8:] < 0).all())
    assert e.probability() == pytest.approx(1 / (1 + np.exp(-2 / 3)))


class Twofold(nn.Module):
    """Two answers about the same features, of which one is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Tanh())
        self.one, self.other = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        seen = self.features(x).mean((2, 3))
        return {"logits": self.one(seen), "other": self.other(seen)}


def test_the_class_is_of_the_part_of_the_answer_that_is_meant() -> None:
    net = Twofold().double().eval()
    net.one.bias.data[0] = net.other.bias.data[2] = 9.0
    x = picture(2, 16, 16)
    assert tiled(net, x, tile=8, output="other").classes.tolist() == [2]
    assert tiled(net, cl.Inputs((x,), output="other"), tile=8).classes.tolist() == [2]


def test_rivals_stay_those_of_the_whole() -> None:
    net, x = nets.smooth_tail(), picture(2, 24, 24)
    e = tiled(net, x, tile=8, layer=net.layer, target=cl.finer(None, 2))
    fixed = cl.finer(None, 2).fixed(int(e.classes[0]), e.logits)
    assert apart(tiled(net, x, tile=8, layer=net.layer, target=fixed).map, e.map) < 1e-12


class Beside(nn.Module):
    """A picture, a number that scales it, and a mask that is no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.smooth_tail()

    def forward(self, scale: Tensor, *, picture: Tensor, few: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(picture * scale[:, :, None, None]) + few.sum()}


def test_what_comes_with_a_picture_goes_with_each_of_its_tiles() -> None:
    net, x = Beside(), picture(2, 16, 24, b=2)
    scale = torch.tensor([[0.5], [2.0]]).double()
    given = {"scale": scale, "picture": x, "few": torch.zeros(7, 3)}
    e = tiled(net, given, tile=8, target=1, layer="net.features")
    for i in range(2):
        plain = tiled(net.net, x[i : i + 1] * scale[i], tile=8, target=1, layer="features")
        assert apart(plain.map[0], e.map[i]) < 1e-10


def test_tiles_go_through_the_model_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, rows = nets.gap_linear(), picture(2, 64, 64), []
    whole = tiled(net, x, tile=8, target=1, layer=net.layer)
    net.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 64 * 5 * 8 * 2 * 64)  # five tiles
    e = tiled(net, x, tile=8, target=1, layer=net.layer)
    assert sum(rows) == 15 * 15 + 1 and max(rows) == 5 and apart(e.map, whole.map) < 1e-12


def small() -> nets.Net:
    """For 3-channel pictures of 12×12, in single precision."""
    features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    return nets.seeded(nets.Net(features, nets.gap_linear().tail, (3, 12, 12)), 0).float()


LOOK = cl.Preprocess((12, 12), mean=(0.4,) * 3, std=(0.3,) * 3)


def test_a_picture_file_is_cut_at_its_full_resolution(tmp_path: Path) -> None:
    net, path = small(), tmp_path / "large.png"
    values = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(values).save(path)
    x = (torch.from_numpy(values).movedim(2, 0)[None].float() / 255 - 0.4) / 0.3
    plain = tiled(net, x, tile=12, target=1, layer=net.layer)
    for given in (path, str(path), Image.open(path), values, [path]):
        e = tiled(net, given, preprocess=LOOK, target=1, layer=net.layer)
        assert e.map.shape == (1, 50, 70) and apart(e.map, plain.map) < 1e-5
        assert e.heatmap().shape == (50, 70) and bool(e.seen().all()) and e.overlay().size == (70, 50)
    assert e.pictures.names == ("large.png",) and "tiles of 12×12" in e.summary()["notes"]
    e.save(tmp_path / "e.npz")
    assert cl.load_explanation(tmp_path / "e.npz").steps == e.steps


def motley() -> tuple[nets.Net, np.ndarray]:
    """A net and a picture of two colours, of which tiles show another class than the whole."""
    values = np.zeros((48, 72, 3), np.uint8)
    values[:, :30, 0], values[:, 30:, 2] = 255, 255
    for seed in range(50):
        net = nets.seeded(small(), seed, 3.0).float()
        classes = [int(cl.explain(net, v, preprocess=LOOK).classes) for v in (values, values[:, :30], values[:, 30:])]
        if len({*classes}) > 1:
            return net, values
    raise AssertionError("no such net was found")


def test_what_is_explained_of_a_picture_file_is_its_class_as_a_whole() -> None:
    net, values = motley()
    whole, e = cl.explain(net, values, preprocess=LOOK), tiled(net, values, preprocess=LOOK)
    assert torch.equal(e.classes, whole.classes) and torch.equal(e.scores, whole.scores)
    named = tiled(net, values, preprocess=LOOK, target=int(whole.classes[0]))
    assert torch.equal(e.map, named.map) and e.facts.target == "top 1"


def test_bands_are_tiled_as_they_are() -> None:
    features = nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.ReLU())
    net = nets.seeded(nets.Net(features, nets.gap_linear().tail, (5, 12, 12)), 0).float()
    values = np.random.default_rng(0).integers(0, 65536, (30, 40, 5), np.uint16)
    look = cl.Preprocess((12, 12), mean=(0.5,) * 5, std=(0.25,) * 5)
    x = (torch.from_numpy(values.astype(np.float32)).movedim(2, 0)[None] / 65535 - 0.5) / 0.25
    e = tiled(net, values, preprocess=look, target=1, layer=net.layer)
    assert apart(e.map, tiled(net, x, tile=12, target=1, layer=net.layer).map) < 1e-5
    assert "bands 0, 1, 2 of 5" in e.summary()["notes"] and e.overlay().size == (40, 30)


def test_tokens_are_tiled_at_the_size_that_the_model_takes() -> None:
    vit = nets.token_net(1, "mean")
    e = tiled(vit, picture(2, 16, 36), tile=(8, 12), target=1)
    assert e.map.shape == (1, 8, 18) and e.status == "ok" and "tokens(prefix=2, grid=4×6)" in e.facts.layout
    with pytest.raises(InputError, match="does not take tiles of 9×9"):
        tiled(vit, picture(2, 16, 36), tile=9, target=1)


def test_no_trace_is_left_and_nothing_random_is_in_it() -> None:
    net, x = nets.smooth_tail(), picture(2, 20, 28)
    with fingerprint.untouched(net):
        one = tiled(net, x, tile=8)
    assert torch.equal(one.map, tiled(net, x, tile=8).map)


def test_blank_tiles_make_a_blank_map_and_nan_a_status() -> None:
    net, x = nets.gap_linear(), picture(2, 24, 24)
    dead = tiled(net, x, tile=8, target=lambda y: y.sum(1) * 0, layer=net.layer)
    assert dead.status == "zero gradient" and dead.heatmap().max() == 0
    x[0, 0, 20, 20] = torch.nan
    assert tiled(net, x, tile=8, target=1, layer=net.layer).status == "non-finite"


def test_what_makes_no_sense_is_told() -> None:
    net, x = nets.gap_linear(), picture(2, 24, 24)
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="overlap is the share"):
            tiled(net, x, tile=8, overlap=wrong)
    with pytest.raises(InputError, match="say how large a tile is"):
        tiled(net, x)
    for tile in (0, (8,), (8, 8, 8), (8, -1)):
        with pytest.raises(InputError, match="a tile has 2 sides"):
            tiled(net, x, tile=tile)
    with pytest.raises(InputError, match="list is empty"):
        tiled(net, [], tile=8)
    with pytest.raises(TargetError, match="class 99"):
        tiled(net, x, tile=8, target=99)
    a, b = (np.zeros((20, w, 3), np.uint8) for w in (20, 30))
    with pytest.raises(InputError, match="different sizes"):
        tiled(small(), [a, b], preprocess=LOOK, target=1)
    assert len(tiled(small(), [a, a], preprocess=LOOK, target=1)) == 2


def test_the_example_finds_on_a_page_what_the_shrunk_page_hides(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("skimage")
    try:
        cl.load("builtin")
    except cl.CamlucidaError as problem:
        pytest.skip(str(problem))
    made = runpy.run_path(str(Path(__file__).resolve().parent.parent / "examples" / "tiles.py"))
    made["main"].__globals__.update(ROWS=4, CATS=2)
    made["main"](str(tmp_path / "page.png"))
    shrunk, tiles = (int(line.rpartition(" ")[2].rstrip("%")) for line in capsys.readouterr().out.splitlines()[1:3])
    assert 100 > shrunk > 0 and tiles > 2 * 12.5 and (tmp_path / "page.png").stat().st_size > 10_000
