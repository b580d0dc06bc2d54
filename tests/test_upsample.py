"""The guided filter: against its paper in loops, and on pictures whose edges are known."""

import itertools

import nets
import numpy as np
import pytest
import torch
from PIL import Image
from replicas import apart
from torch import Tensor, nn

import camlucida as cl
from camlucida import upsample
from camlucida.errors import InputError
from camlucida.upsample import guided, guided_filter


def twin(p: Tensor, guide: Tensor, radius: int, eps: float) -> Tensor:
    """He 2010, eq. 8 to 10 (eq. 14 to 16 in colour), pixel by pixel."""
    c, h, w = guide.shape

    def window(y: int, x: int) -> list[tuple[int, int]]:
        rows, columns = (range(max(0, v - radius), min(n, v + radius + 1)) for v, n in ((y, h), (x, w)))
        return list(itertools.product(rows, columns))

    lines = {}
    for y, x in itertools.product(range(h), range(w)):
        inside = window(y, x)
        colours = np.array([[float(guide[k, v, u]) for k in range(c)] for v, u in inside])
        heat = np.array([float(p[v, u]) for v, u in inside])
        spread = np.cov(colours.T, bias=True).reshape(c, c) + eps * np.eye(c)
        joint = (colours * heat[:, None]).mean(0) - colours.mean(0) * heat.mean()
        a = np.linalg.solve(spread, joint)
        lines[y, x] = a, heat.mean() - a @ colours.mean(0)
    made = torch.zeros(h, w, dtype=torch.float64)
    for y, x in itertools.product(range(h), range(w)):
        inside = window(y, x)
        a, b = (sum(lines[at][n] for at in inside) / len(inside) for n in (0, 1))
        made[y, x] = float(a @ np.array([float(v) for v in guide[:, y, x]]) + b)
    return made


def drawn(c: int, h: int = 9, w: int = 12) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(4)
    return tuple(torch.rand(*s, generator=draw, dtype=torch.float64) for s in ((h, w), (c, h, w)))  # type: ignore


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("radius", [1, 3, 20])
def test_filter_equals_its_slow_twin(c: int, radius: int) -> None:
    heat, guide = drawn(c)
    expected = twin(heat, guide, radius, 0.01)
    low, high = float(heat.min()), float(heat.max())
    reached = expected.clamp(low, high)
    found = guided_filter(heat, guide, radius, 0.01)
    same = (found - expected).abs() < 1e-9
    assert same.double().mean() > 0.9, "but for what is held to the heat nearby"
    assert ((found - reached).abs() < 0.2).all() and found.min() >= low and found.max() <= high


def test_constant_heat_stays_and_nothing_comes_from_nothing() -> None:
    _, guide = drawn(3)
    flat = torch.full((9, 12), 0.4, dtype=torch.float64)
    assert apart(guided_filter(flat, guide, 2), flat) < 1e-9
    assert (guided_filter(torch.zeros_like(flat), guide, 2) == 0).all()


def test_where_there_is_no_heat_nearby_none_appears() -> None:
    _, guide = drawn(3, 20, 30)
    heat = torch.zeros(20, 30, dtype=torch.float64)
    heat[:, :6] = 1
    found = guided_filter(heat, guide, 3)
    assert (found[:, 12:] == 0).all() and found.min() >= 0 and found.max() <= 1


def test_mirrored_and_turned_pictures_give_mirrored_and_turned_heat() -> None:
    heat, guide = drawn(3)
    found = guided_filter(heat, guide, 2)
    assert apart(guided_filter(heat.flip(1), guide.flip(2), 2), found.flip(1)) < 1e-9
    assert apart(guided_filter(heat.T.contiguous(), guide.mT.contiguous(), 2), found.T) < 1e-9


def test_heat_takes_the_edge_of_the_picture() -> None:
    """A soft blob over a sharp object: the step of the heat moves to the object's edge."""
    guide = torch.zeros(3, 40, 40)
    guide[:, :, 20:] = 0.8
    heat = torch.linspace(0, 1, 40).expand(40, 40)
    found = guided_filter(heat, guide, 8)
    assert found[20].diff().argmax() == 19 and found[20].diff().max() > 5 * heat[20].diff().max()


def pictured(width: int = 64, height: int = 48, size: int = 24) -> cl.Explanation:
    """A bright square on black, and a net whose map is how bright it is."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[height // 4 : height * 3 // 4, width // 4 : width // 2] = 220
    net = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with torch.no_grad():
        net[1].weight.fill_(1.0)
    look = cl.Preprocess((size, size), mean=(0.0,) * 3, std=(1.0,) * 3, crop=1.0)
    return cl.explain(net, Image.fromarray(pixels), target=0, layer="0", preprocess=look)


def inside(e: cl.Explanation, heat: Tensor) -> float:
    bright = torch.from_numpy(np.array(e.pictures.image(0)))[..., 0] > 100
    return float((heat * bright).sum() / heat.sum())


def test_guided_heat_follows_the_object_and_keeps_to_what_was_seen() -> None:
    e = pictured()
    plain, found = e.heatmap(), guided(e)
    assert found.shape == plain.shape == (48, 64) and found.min() >= 0 and found.max() <= 1
    assert inside(e, found) > inside(e, plain) + 0.02
    assert (found[~e.seen()] == 0).all() and not e.seen().all() and (found[plain == 0] == 0).all()
    assert apart(guided(e, eps=1e6), plain) < 0.4, "a guide that counts for nothing leaves the heat about as it was"


def test_large_pictures_are_filtered_small_and_drawn_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    e = pictured(160, 120)
    whole = guided(e)
    monkeypatch.setattr(upsample, "_WORK", 120 * 120 // 4)
    fast = guided(e)
    assert fast.shape == whole.shape and not torch.equal(fast, whole)
    assert float((fast - whole).abs().mean()) < 0.03 and inside(e, fast) > inside(e, e.heatmap()) + 0.02


def test_signed_heat_keeps_its_sign_and_blank_heat_stays_blank() -> None:
    net = nets.smooth_tail()
    net.features[0] = nn.Conv2d(3, 3, 3, padding=1)
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64)
    e = cl.explain(nets.seeded(net, 0), x, target=1, layer="features", method="hirescam")
    found = guided(e, 1, signed=True)
    plain = e.heatmap(1, signed=True)
    assert found.min() < 0 < found.max() and found.abs().max() <= 1 and found.dtype == torch.float64
    assert (found * plain >= 0).all() and apart(guided(e, 1) * plain.max(), found.relu()) < 1e-9
    from dataclasses import replace

    assert (guided(replace(e, map=e.map * 0, statuses=("no evidence",) * 2)) == 0).all()


def test_what_makes_no_sense_is_refused() -> None:
    heat, guide = drawn(3)
    for given in ((heat, guide, 0, 0.1), (heat, guide, 2, 0.0)):
        with pytest.raises(InputError, match="one size"):
            guided_filter(*given)
    net = nets.gap_linear(1)
    with pytest.raises(InputError, match="no picture"):
        guided(cl.explain(net, net.x(1), target=1, layer=net.layer))
