"""SESS against the paper's own steps in loops, and by what must be exact."""

import itertools
import math
from typing import Any

import fingerprint
import nets
import pytest
import torch
import torch.nn.functional as F
from replicas import apart
from torch import Tensor, nn

import camlucida as cl
from camlucida import maps
from camlucida.combine import sess
from camlucida.errors import InputError, MethodError


def crops_of(x: Tensor, scales: list[float]) -> list[tuple[Tensor, tuple[float, ...], tuple[float, ...]]]:
    """Each crop ``c h w`` with the shares of the picture where it begins and ends."""
    own, found = x.shape[1:], []
    for scale in scales:
        size = [round(n * scale) for n in own]
        large = F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]
        starts = []
        for length, window in zip(size, own, strict=True):
            some = []
            for start in range(0, length, window):
                if start + window >= length:
                    some.append(length - window)
                    break
                some.append(start)
            starts.append(some)
        for top, left in itertools.product(*starts):
            low = (top / size[0], left / size[1])
            high = ((top + own[0]) / size[0], (left + own[1]) / size[1])
            found.append((large[:, top : top + own[0], left : left + own[1]], low, high))
    return found


def read(map: Tensor, at: list[float]) -> float:
    """A map at a position counted in its cells, 0 the first centre: linear between centres, the same beyond them."""
    total = 0.0
    sides = []
    for n, a in zip(map.shape, at, strict=True):
        u = min(max(a, 0.0), n - 1.0)
        first = min(int(u), n - 1)
        sides.append([(first, 1 - (u - first)), (min(first + 1, n - 1), u - first)])
    for corner in itertools.product(*sides):
        total += math.prod(share for _, share in corner) * float(map[tuple(i for i, _ in corner)])
    return total


def twin(net: nets.Net, x: Tensor, k: int, scales: list[float], keep: float = 1.0, how: str = "mean", **how_to: Any):
    """The steps of the paper's own code for one picture ``c h w``, place by place."""
    crops = crops_of(x, scales)
    with torch.no_grad():
        sure = [float(net(crop[None]).softmax(1)[0, k]) for crop, _, _ in crops]
    kept = sorted(range(len(crops)), key=lambda i: sure[i])[int(len(crops) * (1 - keep)) :]
    best, found = max(sure[i] for i in kept), []
    for i in kept:
        e = cl.explain(net, crops[i][0][None], target=k, layer=net.layer, **how_to)
        cells = e.centres or maps.Centres.even(x.shape[1:], e.map.shape[1:])
        map = e.map[0].relu() - e.map[0].relu().min()
        found.append((map / map.max() * sure[i] / best, *crops[i][1:]))
    fine = [round(n * scales[-1]) for n in found[0][0].shape]
    made = torch.zeros(fine, dtype=torch.float64)
    for q in itertools.product(*map_ranges(fine)):
        values = []
        at = [(i + 0.5) / n for i, n in zip(q, fine, strict=True)]
        for map, low, high in found:
            inside = [(a - lo) / (hi - lo) for a, lo, hi in zip(at, low, high, strict=True)]
            where = zip(inside, x.shape[1:], cells.start, cells.stride, strict=True)
            index = [(u * n - start) / stride for u, n, start, stride in where]
            values.append(read(map, index) if all(-1e-9 <= u <= 1 + 1e-9 for u in inside) else 0.0)
        some = [v for v in values if v > 1e-6]
        made[q] = max(values) if how == "max" else sum(some) / len(some) if some else 0.0
    return made


def map_ranges(fine: list[int]) -> list[range]:
    return [range(n) for n in fine]


@pytest.mark.parametrize("method", ["gradcam", "reciprocam"])
@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("keep", [1.0, 0.6])
def test_sess_is_its_papers_steps(method: str, how: str, keep: float) -> None:
    net = nets.smooth_tail()
    x = net.x(2)
    e = sess(net, x, target=1, method=method, layer=net.layer, scales=3, growth=0.4, keep=keep, how=how)
    for i in range(2):
        expected = twin(net, x[i], 1, [1.0, 1.4, 1.8], keep, how, method=method)
        assert e.map[i].shape == expected.shape and apart(e.map[i], expected) < 1e-6  # probabilities are single
    count = 9 if keep == 1 else 6
    assert f"SESS over {count} crops" in e.facts.title and e.method == f"sess({method})" and e.status == "ok"
    clean = cl.explain(net, x, target=1, method=method, layer=net.layer)
    assert torch.equal(e.scores, clean.scores) and torch.equal(e.logits, clean.logits) and e.cost > clean.cost


def test_one_size_is_the_picture_by_itself() -> None:
    net = nets.smooth_tail()
    x = net.x(1)
    own = cl.explain(net, x, target=1, layer=net.layer).map.relu()
    own = own - own.amin()
    for how in ("mean", "max"):
        assert apart(sess(net, x, target=1, layer=net.layer, scales=1, how=how).map, own / own.amax()) < 1e-12


def test_cells_lie_where_they_are_in_the_crops_too() -> None:
    """The first cell of an unpadded layer lies half a kernel inside: spread evenly, what it shows would move by 1.1."""
    conv = nn.Conv2d(1, 1, 9, stride=4, bias=False).double()
    nn.init.ones_(conv.weight)
    net = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    x[0, 0, 12, 12] = 1.0
    middle = []
    for e in (cl.explain(net, x, target=0, layer="0"), sess(net, x, target=0, layer="0", scales=1)):
        heat = e.heatmap()
        middle.append(float((heat.sum(1) * (torch.arange(41) + 0.5)).sum() / heat.sum()))
    assert abs(middle[0] - middle[1]) < 0.5, middle


def bright(space: int) -> nn.Module:
    """Grad-CAM of it is the picture's own brightness."""
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[space](1)
    return nn.Sequential(nn.Identity(), pool, nn.Flatten()).eval()


@pytest.mark.parametrize("space", [(9,), (6, 8), (4, 5, 3)])
def test_places_stay_where_they_are_in_signals_pictures_and_volumes(space: tuple[int, ...]) -> None:
    x = torch.zeros(1, 2, *space, dtype=torch.float64)
    spot = tuple(n // 3 for n in space)
    x[(0, 1, *spot)] = 1.0
    e = sess(bright(len(space)), x, target=1, layer=("0", cl.channels_first), scales=4, growth=0.5, how="max")
    assert e.map.shape[1:] == tuple(round(n * 2.5) for n in space)
    peak = torch.unravel_index(e.map[0].argmax(), e.map.shape[1:])
    for at, here, n in zip(peak, spot, space, strict=True):
        assert abs((float(at) + 0.5) / 2.5 - (here + 0.5)) < 0.75, (at, here, n)


def test_the_class_is_that_of_the_picture_as_it_is() -> None:
    for seed in range(200):
        net = nets.smooth_tail(2, seed)
        net.tail[-1].bias.data.zero_()
        x = net.x(1, seed)
        with torch.no_grad():
            k = int(net(x).argmax())
            others = {int(net(crop[None]).argmax()) for crop, _, _ in crops_of(x[0], [1.5])}
        if others - {k}:
            break
    own, named = (sess(net, x, target=t, layer=net.layer, scales=2, growth=0.5) for t in (cl.top1, k))
    assert torch.equal(own.map, named.map) and own.classes.tolist() == [k] and own.facts.target == "top 1"


def test_batch_is_its_pictures_and_no_trace_is_left() -> None:
    net = nets.smooth_tail()
    x = net.x(3)
    with fingerprint.untouched(net):
        whole = sess(net, x, target=cl.classes([2, 0, 1]), layer=net.layer, scales=2, growth=0.5, keep=0.5)
    for i, k in enumerate([2, 0, 1]):
        alone = sess(net, x[i : i + 1], target=k, layer=net.layer, scales=2, growth=0.5, keep=0.5)
        assert apart(alone.map[0], whole.map[i]) < 1e-12


def test_what_is_no_class_is_weighed_by_its_score_where_above_zero() -> None:
    net = nets.smooth_tail()
    x = net.x(1)
    asked: dict[str, Any] = {"layer": net.layer, "scales": 2, "growth": 0.5}
    up, twice, down = (sess(net, x, target=t, **asked).map for t in (_score(1), _score(2), _score(-1)))
    assert apart(up, twice) < 1e-12 and apart(up, down) > 1e-3  # of a score below zero in every crop all count alike
    crops = [c for c, _, _ in crops_of(x[0], [1.0, 1.5])]
    with torch.no_grad():
        scores = [float(net(c[None])[0, 1]) - 9 for c in crops]
    assert max(scores) < 0
    flat = sess(net, x, target=lambda y: y[:, 1] - 9, how="max", **asked).map
    assert flat.max() > 0.99


def _score(sign: float) -> Any:
    return lambda y: sign * (y[:, 1] * 3 + 1)


def test_nothing_comes_of_nothing_and_nan_is_told() -> None:
    net = nets.smooth_tail()
    x = net.x(2)
    x[1, 0, 3, 3] = torch.nan
    e = sess(net, x, target=1, layer=net.layer, scales=2, growth=0.5)
    assert e.statuses == ("ok", "non-finite")
    with torch.no_grad():
        net.tail[-1].weight.zero_()
    dead = sess(net, net.x(1), target=1, layer=net.layer, scales=2, growth=0.5)
    assert dead.status == "zero gradient" and (dead.map == 0).all()


def test_what_makes_no_sense_is_refused() -> None:
    net = nets.smooth_tail()
    for wrong in ({"scales": 0}, {"growth": 0.0}, {"keep": 0.0}, {"keep": 1.5}, {"growth": math.nan}):
        with pytest.raises(InputError, match="SESS takes at least 1 size"):
            sess(net, net.x(1), **wrong)
    with pytest.raises(MethodError, match=r"'mean' or 'max'; got 'sum'"):
        sess(net, net.x(1), how="sum")
