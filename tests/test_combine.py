"""Maps over layers, noise, flips and sizes: against loops by hand, and the faults of those who re-pick the class."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import fingerprint
import nets
import pytest
import torch
from PIL import Image
from replicas import apart
from torch import Tensor, nn

import camlucida as cl
from camlucida import maps
from camlucida.combine import FUSIONS, augmented, fuse, over_layers, smooth
from camlucida.core import targets
from camlucida.errors import InputError, MethodError, TargetError

every_fusion = pytest.mark.parametrize("how", FUSIONS)


class Stages(nets.Net):
    """Three grids, 16×20, 8×10 and 4×5, and a curved tail."""

    def __init__(self) -> None:
        parts = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(),
                 nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]  # fmt: skip
        tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 5))
        super().__init__(nn.Sequential(*parts), tail, (2, 16, 20), "features.7")


LAYERS = ["features.1", "features.4", "features.7"]


def stages() -> nets.Net:
    return nets.seeded(Stages(), 0)


# ------------------------------------------------------------------------------------------------------------- layers


def by_hand(found: list[Tensor], how: str) -> Tensor:
    """One picture's maps fused in a loop over places, from the papers' formulas."""
    grid = max((m.shape for m in found), key=math.prod)
    coarse = min(m.shape[0] for m in found)
    wide = [maps.resize(m[None], grid)[0] for m in found]
    made = torch.zeros(grid, dtype=torch.float64)
    for y in range(grid[0]):
        for x in range(grid[1]):
            values = []
            for m, own in zip(wide, found, strict=True):
                v, high, low = float(m[y, x]), float(m.max()), float(m.min())
                if how in ("mean", "max"):
                    values.append(v / max(abs(high), abs(low)))
                elif how == "product":
                    low, high = max(low, 0), max(high, 0)
                    values.append((max(v, 0) - low) / (high - low))
                else:
                    share = max(v, 0) / high
                    values.append(math.tanh(2 * share) if own.shape[0] >= 4 * coarse else share)
            made[y, x] = {"mean": sum(values) / len(values), "product": math.prod(values)}.get(how, max(values))
    return made


@every_fusion
def test_fusion_over_layers_is_its_formula(how: str) -> None:
    net = stages()
    x = net.x(2)
    e = over_layers(net, x, layers=LAYERS, how=how, target=1, method="gradcampp")
    alone = [cl.explain(net, x, target=1, method="gradcampp", layer=n) for n in LAYERS]
    assert e.map.shape == (2, 16, 20) and e.statuses == ("ok", "ok")
    assert apart(e.map, fuse(alone, how).map) < 1e-10 and e.centres == fuse(alone, how).centres
    even = fuse([replace(one, centres=None) for one in alone], how)
    for i in range(2):
        assert apart(even.map[i], by_hand([one.map[i] for one in alone], how)) < 1e-10
    assert torch.equal(e.scores, alone[0].scores) and torch.equal(e.classes, alone[0].classes)


def test_maps_are_fused_where_their_cells_lie() -> None:
    """A bright dot stays where it is, though the two grids lie differently in the picture."""
    fine = cl.explain(stages(), stages().x(1), target=1, layer=LAYERS[0])
    heat = torch.zeros(1, 8, 10, dtype=torch.float64)
    heat[0, 3, 4] = 1.0
    fine = replace(fine, map=heat, statuses=("ok",), centres=maps.Centres((3.0, 3.0), (1.0, 1.0)))
    coarse = torch.zeros(1, 4, 5, dtype=torch.float64)
    coarse[0, 2, 3] = 1.0  # at 0.5 + 2·2.75 = 6 and −1.25 + 3·2.75 = 7: the place of the fine one's dot
    coarse = replace(fine, map=coarse, centres=maps.Centres((0.5, -1.25), (2.75, 2.75)))
    found = fuse([coarse, fine])
    assert found.centres == fine.centres and found.map.shape == (1, 8, 10)
    assert found.map[0].argmax() == 34 and float(found.map.max()) == pytest.approx(1.0)
    even = fuse([replace(coarse, centres=None), replace(fine, centres=None)])
    assert even.centres is None and float(even.map.max()) < 0.99


def test_layers_are_read_in_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    net, runs = stages(), []
    over_layers(net, net.x(1), layers=LAYERS, target=1)  # the model is looked at once, and remembered
    net.register_forward_pre_hook(lambda *_: runs.append(1))
    over_layers(net, net.x(1), layers=LAYERS, target=1)
    assert len(runs) == 1


def test_the_facts_say_what_was_combined() -> None:
    net = stages()
    e = over_layers(net, net.x(1), layers=LAYERS, how="product", target=1, method="gradcampp")
    assert e.method == "product(gradcampp)" and e.layer == "features.1 + features.4 + features.7"
    assert e.steps[0].startswith("Product of Grad-CAM++ of class 1 at features.1 + features.4 + features.7")
    assert "16×20" in e.steps[0] and "stretched to [0, 1]" in e.summary()["notes"]
    one, two = (cl.explain(net, net.x(1), target=1, layer=n) for n in LAYERS[:2])
    assert fuse([one, two]).cost == one.cost + two.cost and e.cost < 1000


def test_layers_are_found_where_none_are_named() -> None:
    net = stages()
    e = over_layers(net, net.x(1), target=1)
    assert len(e.layer.split(" + ")) == 3 and e.map.shape[1:] == (16, 20)
    vit = over_layers(nets.token_net(2), nets.token_net(2).x(1), target=1)
    assert len(vit.layer.split(" + ")) >= 2


@every_fusion
def test_a_map_that_shows_nothing_adds_nothing(how: str) -> None:
    """Noise of 1e-18 divided by its own maximum would be as bright as the evidence."""
    net = stages()
    e = cl.explain(net, net.x(1), target=1, layer=LAYERS[2])
    from dataclasses import replace

    noise = replace(e, map=torch.rand(1, 16, 20, dtype=torch.float64) * 1e-18, statuses=("no evidence",))
    expected = {"mean": 0.5, "max": 1.0, "product": 0.0, "tanh": 1.0}[how]
    wide = maps.resize(e.map, (16, 20))
    peak = wide.abs().max() if how in ("mean", "max") else wide.max()
    share = wide / peak if how in ("mean", "product") else (wide / peak).relu()
    assert apart(fuse([e, noise], how).map, share * expected) < 1e-12
    assert fuse([noise, noise], how).status == "no evidence"
    dead = replace(noise, statuses=("zero gradient",))
    assert fuse([dead, dead], how).status == "zero gradient"


@every_fusion
def test_nan_in_one_layer_is_a_status(how: str) -> None:
    net = stages()
    x = net.x(2)
    x[1, 0, 3, 3] = torch.nan
    e = over_layers(net, x, layers=LAYERS, how=how, target=1)
    assert e.statuses == ("ok", "non-finite")


def test_only_maps_of_one_question_are_fused() -> None:
    net = stages()
    x = net.x(2)
    one, two = cl.sweep(net, x, targets=[1, 2], layers=[LAYERS[2]])
    with pytest.raises(InputError, match=r"two answers.*class 1 and class 2.*against"):
        fuse([one, two])
    with pytest.raises(InputError, match="different pictures"):
        fuse([one, one[0]])
    with pytest.raises(InputError, match="different pictures"):
        fuse([one, cl.explain(net, x + 1, target=1, layer=LAYERS[2])])
    own = cl.sweep(net, x, targets=[lambda y: y[:, 0], lambda y: y[:, 1]], layers=[LAYERS[2]])
    with pytest.raises(InputError, match="two answers"):
        fuse(own)
    fuse([own[0], cl.explain(net, x, target=lambda y: y[:, 0], layer=LAYERS[1])])
    with pytest.raises(InputError, match="empty"):
        fuse([])
    with pytest.raises(MethodError, match=r"'meen'.*'mean'"):
        over_layers(net, x, layers=LAYERS, how="meen")
    with pytest.raises(TypeError, match="layer"):
        over_layers(net, x, layer="features.1")


# -------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("method", ["gradcam", "layercam", "reciprocam"])
@pytest.mark.parametrize("samples", [3, 17])
def test_smoothing_is_the_mean_over_noisy_pictures(method: str, samples: int) -> None:
    net = nets.smooth_tail()
    x = net.x(2)
    e = smooth(net, x, samples=samples, noise=0.3, seed=7, target=1, method=method, layer=net.layer)
    for i in range(2):
        draw, spread = torch.Generator().manual_seed(7), 0.3 * float(x[i].max() - x[i].min())
        total: Any = 0.0
        for _ in range(samples):
            noisy = x[i : i + 1] + torch.randn(x[i].shape, generator=draw, dtype=torch.float64) * spread
            total = total + cl.explain(net, noisy, target=1, method=method, layer=net.layer).map[0]
        assert apart(e.map[i], total / samples) < 1e-10
    assert apart(e.scores, cl.explain(net, x, target=1, layer=net.layer).scores) == 0


def wavering() -> tuple[nets.Net, Tensor]:
    """A net and a picture whose best class is another one in the mirror, or under noise."""
    for seed in range(200):
        net = nets.smooth_tail(2, seed)
        net.tail[-1].bias.data.zero_()
        x = net.x(1, seed)
        draw = torch.Generator().manual_seed(0)
        noisy = x + torch.randn(8, *x.shape[1:], generator=draw, dtype=torch.float64) * 0.5 * float(x.max() - x.min())
        with torch.no_grad():
            y = net(torch.cat([x, x.flip(-1), noisy])).argmax(1).tolist()
        if y[1] != y[0] and len({*y[2:]}) > 1:
            return net, x
    raise AssertionError("no such picture was found")


def test_the_class_is_that_of_the_picture_as_it_is() -> None:
    """The peer's test-time augmentation picks it anew in each view."""
    net, x = wavering()
    with torch.no_grad():
        k = int(net(x).argmax())
    for combined in (smooth, augmented):
        more: dict[str, Any] = {"samples": 8, "noise": 0.5} if combined is smooth else {}
        own, named = (combined(net, x, target=t, layer=net.layer, **more) for t in (targets.top1, k))
        assert torch.equal(own.map, named.map) and own.classes.tolist() == [k] and own.facts.target == "top 1"
        repicked = combined(net, x, target=lambda y: y.amax(1), layer=net.layer, **more)
        assert apart(repicked.map, named.map) > 1e-3


def test_the_rivals_are_those_of_the_picture_as_it_is() -> None:
    net, x = wavering()
    with torch.no_grad():
        y = net(x)
    k = int(y.argmax())
    fixed = targets.finer(k, 2, 0.9).fixed(k, y)
    own, named = (
        smooth(net, x, samples=8, noise=0.5, target=t, layer=net.layer) for t in (targets.finer(None, 2, 0.9), fixed)
    )
    assert apart(own.map, named.map) < 1e-12 and own.facts.target == "top 1 against its 2 nearest rivals"


@pytest.mark.parametrize("combined", [smooth, augmented])
def test_batch_is_its_pictures_and_no_trace_is_left(combined: Any) -> None:
    net = nets.smooth_tail()
    x = net.x(3)
    with fingerprint.untouched(net):
        whole = combined(net, x, target=cl.classes([2, 0, 1]), layer=net.layer)
    for i, k in enumerate([2, 0, 1]):
        assert apart(combined(net, x[i : i + 1], target=k, layer=net.layer).map[0], whole.map[i]) < 1e-12
    assert whole.label(0) == "class 2" and len(whole) == 3


def test_noise_of_nothing_is_the_map_itself_and_another_seed_another_map() -> None:
    net = nets.smooth_tail()
    x = net.x(2)
    plain = cl.explain(net, x, target=1, layer=net.layer)
    assert apart(smooth(net, x, noise=0.0, samples=3, target=1, layer=net.layer).map, plain.map) < 1e-12
    one, two = (smooth(net, x, samples=3, seed=s, target=1, layer=net.layer).map for s in (0, 1))
    assert apart(one, two) > 1e-4
    for wrong in ({"samples": 0}, {"noise": -0.1}):
        with pytest.raises(InputError, match="smoothing takes"):
            smooth(net, x, **wrong)


def test_pictures_from_files_keep_their_names_frames_and_notes(tmp_path: Path) -> None:
    net = nets.seeded(nets.Net(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nets.gap_linear().tail, (3, 12, 12)), 0)
    net = net.float()
    Image.effect_noise((30, 20), 90).convert("RGBA").save(tmp_path / "noise.png")
    look = cl.Preprocess((12, 12), mean=(0.5,) * 3, std=(0.5,) * 3)
    plain = cl.explain(net, tmp_path / "noise.png", target=1, preprocess=look)
    for e in (smooth(net, tmp_path / "noise.png", samples=2, target=1, preprocess=look),
              augmented(net, tmp_path / "noise.png", target=1, preprocess=look)):  # fmt: skip
        assert e.pictures.names == ("noise.png",) and e.pictures.frames == plain.pictures.frames
        assert e.pictures.notes == plain.pictures.notes and e.heatmap().shape == (20, 30)
        assert e.overlay().size == (30, 20) and torch.equal(e.scores, plain.scores)
        e.save(tmp_path / "e.npz")
        assert cl.load_explanation(tmp_path / "e.npz").steps == e.steps


# ----------------------------------------------------------------------------------------------------- flips and sizes


@pytest.mark.parametrize("flips", [(-1,), (-2,), (-1, -2)])
def test_augmentation_is_the_mean_over_mirror_images_brought_back(flips: tuple[int, ...]) -> None:
    net = nets.smooth_tail()
    x = net.x(2)
    found = [cl.explain(net, x, target=1, layer=net.layer).map]
    found += [cl.explain(net, x.flip(a), target=1, layer=net.layer).map.flip(a) for a in flips]
    e = augmented(net, x, flips=flips, target=1, layer=net.layer)
    assert apart(e.map, sum(found) / len(found)) < 1e-12 and f"{1 + len(flips)} views" in e.facts.title
    assert apart(e.map, found[0]) > 1e-4


def test_mirrored_net_has_the_same_map_augmented_or_not() -> None:
    """P19: where the mirror commutes with the net, bringing back undoes it exactly."""
    net = nets.mirrored()
    x = net.x(2)
    assert (
        apart(augmented(net, x, target=1, layer=net.layer).map, cl.explain(net, x, target=1, layer=net.layer).map)
        < 1e-12
    )


def test_a_picture_and_its_mirror_image_have_cells_between_both() -> None:
    """Seven cells, 2 pixels apart: those of both together lie in the middle of 16 pixels; up and down as they were."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    x = torch.rand(1, 3, 16, 16)
    plain, e = cl.explain(net, x, target=1, layer="1"), augmented(net, x, target=1, layer="1")
    assert plain.centres is not None and abs(plain.centres.start[1] - 2) > 0.1
    assert e.centres is not None and e.centres.stride == (2.0, 2.0)
    assert e.centres.start == pytest.approx((plain.centres.start[0], 2.0))


def test_other_sizes_come_back_to_the_pictures_own_grid_and_size() -> None:
    net = nets.smooth_tail()
    x = net.x(1)
    e = augmented(net, x, flips=(), scales=(1.0, 2.0), target=1, layer=net.layer)
    plain = cl.explain(net, x, target=1, layer=net.layer)
    large = cl.explain(net, maps.resize(x[0], (16, 18))[None], target=1, layer=net.layer)
    assert large.map.shape == (1, 16, 18)
    back = maps.resize(large.map, (8, 9)) * (plain.map.abs().max() / large.map.abs().max())
    assert apart(e.map, (plain.map + back) / 2) < 1e-12


def test_a_size_that_a_model_does_not_take_is_told() -> None:
    net = nets.flatten_linear()
    with pytest.raises(InputError, match="does not take inputs of 16×18: leave scales= away"):
        augmented(net, net.x(1), scales=(2.0,), target=1, layer=net.layer)
    for scales in ((), (0.0,), (1.0, -1.0)):
        with pytest.raises(InputError, match="above 0"):
            augmented(net, net.x(1), scales=scales)
    for axis in (0, 1, -3):
        with pytest.raises(InputError, match=rf"axis {axis} .* -2 to -1"):
            augmented(net, net.x(1), flips=(axis,))
    with pytest.raises(TargetError, match="class 99"):
        augmented(net, net.x(1), target=99)


@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes_are_combined_alike(dims: int) -> None:
    net = nets.smooth_tail(dims)
    for e in (augmented(net, net.x(1), target=1, layer=net.layer),
              smooth(net, net.x(1), samples=2, target=1, layer=net.layer),
              over_layers(net, net.x(1), layers=["features.1", "features"], target=1)):  # fmt: skip
        assert tuple(e.map.shape) == (1, *nets.SPACE[dims]) and e.status == "ok"
