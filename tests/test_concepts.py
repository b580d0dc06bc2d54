"""Concepts: the factorisation against what is known of it, their scores against the tail run by hand, the picture."""

import nets
import numpy as np
import pytest
import torch
from conftest import guest
from fingerprint import untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from replicas import apart
from torch import Tensor, nn

import camlucida as cl
from camlucida.concepts import Concepts, decompose, factorise
from camlucida.core.explanation import Pictures
from camlucida.errors import InputError, LayerError
from camlucida.models import Model
from camlucida.registry import get
from camlucida.view.regions import COLOURS, paint_regions, regions, strongest


def drawn(shape: tuple[int, ...], seed: int, signed: bool = False) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made if signed else made.relu()


def rebuilt(maps: Tensor, vectors: Tensor) -> Tensor:
    return torch.einsum("bk...,kc->bc...", maps, vectors)


# ---------------------------------------------------------------------------------------------------- the factorisation


@pytest.mark.parametrize("space", [(7,), (3, 4), (2, 3, 2)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("signed", [False, True], ids=["non-negative", "signed"])
def test_it_is_what_it_says(space: tuple[int, ...], signed: bool) -> None:
    act = drawn((2, 6, *space), 0, signed)
    maps, vectors, error = decompose(act, 3)
    assert maps.shape == (2, 3, *space) and vectors.shape == (3, 6) and maps.dtype == vectors.dtype == act.dtype
    assert (maps >= 0).all() and bool((vectors >= 0).all()) != signed
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert error == pytest.approx(float((act - rebuilt(maps, vectors)).norm() / act.norm()), rel=1e-10)
    sizes = maps.transpose(0, 1).flatten(1).norm(dim=1)
    assert (sizes.diff() <= 0).all()


def test_concepts_that_are_there_are_found_each_at_its_places() -> None:
    """Three parts that overlap nowhere and share no channel: the factorisation has one answer, up to its order."""
    where = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    where[0, 0, :2], where[1, 0, 3:], where[0, 1, 2:, :2], where[1, 2, :2, 3:] = 3.0, 2.0, 2.0, 5.0
    what = torch.zeros(3, 6, dtype=torch.float64)
    what[0, :2], what[1, 2:5], what[2, 5] = 1.0, 2.0, 1.0
    maps, vectors, error = decompose(rebuilt(where, what), 3)
    assert error < 1e-6
    order = [int((vectors @ w / w.norm()).argmax()) for w in what]
    assert sorted(order) == [0, 1, 2]
    for k, at in enumerate(order):
        assert apart(vectors[at], what[k] / what[k].norm()) < 1e-6
        assert apart(maps[:, at], where[:, k] * what[k].norm()) < 1e-6


def test_one_concept_is_eigencam() -> None:
    """The best rank one of what is never negative is the first singular pair, which is never negative itself."""
    act = drawn((1, 6, 4, 5), 1)
    maps, _, error = decompose(act, 1)
    assert apart(maps[:, 0], get("eigencam")(act)) < 1e-2
    s = torch.linalg.svdvals(act[0].flatten(1))
    assert error == pytest.approx(float((s[1:].square().sum() / s.square().sum()).sqrt()), rel=1e-4)


@pytest.mark.parametrize("signed", [False, True], ids=["non-negative", "signed"])
def test_no_number_alone_could_be_better(signed: bool) -> None:
    """Along each number the error is a parabola: its lowest allowed point gains next to nothing."""
    act = drawn((1, 5, 3, 4), 2, signed)
    maps, vectors, last = decompose(act, 2)
    whole, reach = float(act.square().sum()), 0.1
    pairs = [(maps, True, lambda h: (h, vectors)), (vectors, not signed, lambda w: (maps, w))]
    for values, bounded, pair in pairs:
        for at in range(values.numel()):
            moved = [values.contiguous().clone() for _ in range(2)]
            moved[0].view(-1)[at] -= reach
            moved[1].view(-1)[at] += reach
            low, high = (float((act - rebuilt(*pair(m))).square().sum()) / whole for m in moved)
            slope, bend = (high - low) / (2 * reach), (high + low - 2 * last**2) / reach**2
            step = -slope / bend
            step = max(step, -float(values.flatten()[at])) if bounded else step
            assert -(slope * step + bend * step**2 / 2) < 2e-5


def test_it_is_as_good_as_scikit_learns() -> None:
    sklearn = guest("sklearn.decomposition")
    for seed in range(4):
        act = drawn((2, 12, 5, 6), seed)
        rows = act.flatten(2).transpose(1, 2).flatten(0, 1).numpy()
        theirs = sklearn.NMF(4, init="nndsvda", max_iter=2000).fit(rows).reconstruction_err_ / np.linalg.norm(rows)
        assert decompose(act, 4)[2] < 1.01 * theirs


def test_features_of_both_signs_keep_theirs() -> None:
    act = drawn((2, 8, 4, 5), 3, signed=True)
    negative = decompose(act, 3)[2]
    clamped = rebuilt(*decompose(act.relu(), 3)[:2])
    assert negative < float((act - clamped).norm() / act.norm()) - 0.05


def test_a_seed_is_repeated_and_the_users_generator_left_alone() -> None:
    act = drawn((2, 8, 4, 5), 4)
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    one, two = decompose(act, 4, 5), decompose(act, 4, 5)
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1]) and torch.equal(torch.rand(2), expected)
    assert any(not torch.equal(one[0], decompose(act, 4, seed)[0]) for seed in range(3))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_small_numbers_zeros_and_ranks_that_are_not_there(data: st.DataObject) -> None:
    n, c, z = (data.draw(st.integers(1, 4)) for _ in range(3))
    count = data.draw(st.integers(1, min(n * z, c)))
    numbers = data.draw(st.lists(st.integers(-2, 4), min_size=n * c * z, max_size=n * c * z))
    act = torch.tensor(numbers, dtype=torch.float64).reshape(n, c, z)
    maps, vectors, error = decompose(act, count)
    assert maps.isfinite().all() and vectors.isfinite().all() and (maps >= 0).all() and 0 <= error <= 1 + 1e-9


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_numbers_of_any_size_are_factorised_alike(size: float) -> None:
    act = drawn((1, 6, 4, 5), 5)
    maps, vectors, error = decompose((act * size).float(), 2)
    expected = decompose(act.float(), 2)
    assert apart(maps.double() / size, expected[0]) < 1e-2 and apart(vectors, expected[1]) < 1e-2
    assert error == pytest.approx(expected[2], rel=1e-3)


def test_nothing_is_made_of_nothing() -> None:
    maps, _, error = decompose(torch.zeros(1, 4, 3, 3), 2)
    assert (maps == 0).all() and error == 0


@pytest.mark.parametrize("count", [0, -1, 5, 100])
def test_a_count_that_cannot_be_is_an_error_that_says_what_can(count: int) -> None:
    with pytest.raises(InputError, match=r"9 places and 4 channels.*ask for 1 to 4"):
        decompose(torch.ones(1, 4, 3, 3), count)


def test_nan_is_an_error() -> None:
    with pytest.raises(LayerError, match="NaN or infinity"):
        decompose(torch.full((1, 4, 3, 3), torch.nan), 2)


# ---------------------------------------------------------------------------------------------------------- in a model


LAYOUTS = {
    "channels first": (lambda: nets.gap_linear(2), (8, 9)), "1-D": (lambda: nets.gap_linear(1), (11,)),
    "3-D": (lambda: nets.gap_linear(3), (5, 6, 7)), "channels last": (nets.channels_last_net, (4, 5)),
    "tokens": (lambda: nets.token_net(2, "mean"), (4, 6)),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_factorised_and_its_model_left_as_it_was(layout: str) -> None:
    make, grid = LAYOUTS[layout]
    net = make()
    x = net.x(3)
    with untouched(net):
        found = factorise(net, x, count=2, layer=net.layer)
    assert tuple(found.maps.shape) == (3, 2, *grid) and found.layer == net.layer and len(found) == 2
    assert found.scores is not None and tuple(found.scores.shape) == (3, 2, nets.CLASSES)
    assert found.heatmap(1, 2).shape == x.shape[2:] and float(found.heatmap(0).max()) <= 1
    assert not found.maps.requires_grad and not found.scores.requires_grad


@pytest.mark.parametrize("make", [nets.gap_linear, nets.smooth_tail, nets.biased_tail], ids=lambda m: m.__name__)
def test_scores_are_what_the_tail_says_to_each_concept_alone(make) -> None:
    net = make()
    found = factorise(net, net.x(2), count=3, layer=net.layer)
    with torch.no_grad():
        for i in range(2):
            for k in range(3):
                alone = rebuilt(found.maps[i : i + 1, k : k + 1], found.vectors[k : k + 1])
                expected = net.tail(alone) - net.tail(torch.zeros_like(alone))
                assert apart(found.scores[i, k], expected[0]) < 1e-9


def test_scores_of_concepts_sum_to_the_logits_on_a_linear_head() -> None:
    net = nets.gap_linear()
    x = net.x(2)
    found = factorise(net, x, count=4, layer=net.layer)  # as many as channels: nothing is lost
    assert found.error < 0.05 and apart(found.scores.sum(1), net(x).detach() - net.head.bias) < 0.1
    lost = net.act(x) - rebuilt(found.maps, found.vectors)
    exact = net(x).detach() - net.head.bias - lost.flatten(2).mean(2) @ net.head.weight.T
    assert apart(found.scores.sum(1), exact.detach()) < 1e-10


def test_scores_of_a_token_model_keep_its_class_token() -> None:
    net = nets.token_net(2)
    kept: list[Tensor] = []
    with net.blocks[1].norm1.register_forward_hook(lambda _m, _a, made: kept.append(made.detach().clone())):
        net(net.x(1))
    found = factorise(net, net.x(1), count=2, layer=net.layer)

    def run(patches: Tensor) -> Tensor:
        tokens = kept[0].clone()
        tokens[:, net.prefix :] = patches.flatten(2).transpose(1, 2)
        with net.blocks[1].norm1.register_forward_hook(lambda _m, _a, _made: tokens), torch.no_grad():
            return net(net.x(1))

    alone = rebuilt(found.maps[:, :1], found.vectors[:1])
    assert apart(found.scores[0, 0], (run(alone) - run(torch.zeros_like(alone)))[0]) < 1e-9


def test_the_layer_is_found_and_a_wrong_one_is_an_error() -> None:
    net = nets.gap_linear()
    assert factorise(net, net.x(2), count=2).layer == cl.explain(net, net.x(2)).layer
    with pytest.raises(LayerError, match="nowhere"):
        factorise(net, net.x(2), layer="nowhere")
    with pytest.raises(InputError, match="ask for 1 to 4"):
        factorise(net, net.x(2), count=9)


def test_half_precision_and_callers_modes_change_nothing_that_matters() -> None:
    net = nets.gap_linear()
    expected = factorise(net, net.x(2), count=2, layer=net.layer)
    half = net.to(torch.bfloat16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = factorise(half, half.x(2), count=2, layer=net.layer)
    assert found.maps.dtype == torch.float32 and apart(found.maps, expected.maps) < 0.1
    assert apart(found.scores, expected.scores) < 0.2


class Failing(nn.Module):
    def __init__(self, net: nets.Net) -> None:
        super().__init__()
        self.net, self.left = net, 3

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.net(x)


def test_an_exception_from_inside_the_model_leaves_no_trace() -> None:
    net = Failing(nets.smooth_tail())
    net.left = 0
    with untouched(net), pytest.raises(KeyboardInterrupt):
        factorise(net, net.net.x(2), count=2, layer="net.features")


def test_a_model_that_is_no_classifier_has_concepts_without_scores() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()
    found = factorise(net, torch.rand(2, 2, 8, 9), count=2, layer="1")
    assert found.scores is None and found.label(0) == "concept 1" and "concepts of 2 pictures" in repr(found)
    with pytest.raises(InputError, match="no logits"):
        found.says(0)
    assert found.picture().width > 0


def photo(seed: int, size: tuple[int, int]) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def test_a_loaded_model_brings_preprocessing_and_names() -> None:
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    labels = ["ant", "bee", "cat", "dog"]
    look = cl.Preprocess((16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, crop=1.0)
    model = Model(body, look, name="stand-in", labels=labels).eval()
    found = factorise(model, [photo(0, (40, 20)), photo(1, (20, 40))], count=3)
    assert {found.label(k) for k in range(3)} <= {*labels, "concept 1", "concept 2", "concept 3"}
    assert found.heatmap(0).shape == (20, 40) and found.heatmap(0, 1).shape == (40, 20)
    assert not found.seen(0)[:, :9].any() and found.seen(0)[:, 11:29].all()  # a centre crop of a wide picture
    names = [name for name, _ in found.says(1, 4)]
    assert sorted(names) == labels and found.says(1, 2) == found.says(1, 4)[:2]
    assert found.picture(1, side=300).width >= 160 and found._repr_png_()[:4] == b"\x89PNG"


# ------------------------------------------------------------------------------------------------------ what it shows


def hand() -> Concepts:
    maps = torch.zeros(2, 2, 2, 3)
    maps[0, 0, 0, 0], maps[1, 0, 1, 2], maps[0, 1, 1, 1] = 1.0, 2.0, 4.0
    scores = torch.tensor([[[1.0, 0.0, -1.0], [0.0, -3.0, -1.0]], [[0.0, 3.0, 1.0], [-1.0, -1.0, -1.0]]])
    shown = Pictures((4, 6), ("a", "b"), tensor=torch.rand(2, 3, 4, 6))
    return Concepts(maps, torch.eye(2), 0.5, scores, "layer", shown, ("ant", "bee"))


def test_a_concept_speaks_for_the_class_of_its_mean_score() -> None:
    found = hand()
    assert found.says(0, 3) == [("bee", 1.5), ("ant", 0.5), ("class 2", 0.0)]
    assert found.label(0) == "bee" and found.label(1) == "concept 2"  # it speaks against all
    assert repr(found) == "<2 concepts of 2 pictures at layer, 2×3: 75% of the features>"


def test_heat_has_one_scale_in_all_pictures() -> None:
    found = hand()
    assert float(found.heatmap(0, 1).max()) == 1 and float(found.heatmap(0, 0).max()) == 0.5
    assert found.heatmap(1, 0).argmax() // 6 in (2, 3) and (found.heatmap(1, 1) == 0).all()
    assert torch.equal(found.heatmap(-1, -2), found.heatmap(1, 0))


def test_concepts_and_pictures_that_are_not_there_are_errors() -> None:
    found = hand()
    for ask in (
        lambda: found.heatmap(2),
        lambda: found.heatmap(0, 2),
        lambda: found.says(-3),
        lambda: found.picture(2),
    ):
        with pytest.raises(IndexError, match="does not exist: there are 2"):
            ask()


def test_each_pixel_has_the_colour_of_its_strongest_map() -> None:
    heats = np.zeros((2, 1, 4))
    heats[0, 0, :3], heats[1, 0, 1:] = (1.0, 0.5, np.nan), (0.6, 0.2, 0.0)
    white = Image.new("RGB", (4, 1), "white")
    row = np.asarray(paint_regions(white, heats))[0].astype(int)
    assert abs(row[0] - (0.75 * np.array(COLOURS[0]) + 0.25 * 255)).max() <= 1
    assert abs(row[1] - (0.45 * np.array(COLOURS[1]) + 0.55 * 255)).max() <= 1
    assert len(set(row[2])) == 1 and row[2][0] < 255 and (row[3] == 255).all()  # never seen; no concept


def test_numbers_stand_where_their_map_is_the_strongest_of_all() -> None:
    heats = np.array([[[0.9, 0.6, 0.0]], [[1.0, 0.2, 0.3]], [[0.0, 0.0, 0.1]]])
    assert strongest(heats[0], heats) == (1, 0) and strongest(heats[1], heats) == (0, 0)
    assert strongest(heats[2], heats) is None


def test_a_page_has_a_line_for_each_and_the_number_on_the_picture() -> None:
    heats = np.zeros((3, 60, 90))
    heats[1, 20:40, 50:70] = 1.0
    pages = [regions(Image.new("RGB", (90, 60)), heats[:k], ["left"] * k, side=90) for k in (2, 3)]
    assert pages[0].width == pages[1].width and pages[1].height > pages[0].height + 8
    page = np.asarray(pages[1]).reshape(-1, 3)
    for k, more in ((0, False), (1, True), (2, False)):  # the swatch of each; the circle of the only one that is there
        assert ((page == COLOURS[k]).all(1).sum() > 200) == more or k != 1
        assert (page == COLOURS[k]).all(1).any()
    white = np.asarray(pages[1])[16:76, 16:106].reshape(60, 90, 3)
    y, x = np.nonzero((white == 255).all(2))
    assert 40 < x.mean() < 65 and 10 < y.mean() < 35


@pytest.mark.parametrize(
    ("heats", "labels", "said"),
    [
        (np.zeros((2, 5, 4)), ["a"], "with a label each"), (np.zeros((5, 4)), ["a"] * 5, "1 to 12 maps"),
        (np.zeros((13, 5, 4)), ["a"] * 13, "1 to 12 maps"),
        (np.zeros((1, 4, 5)), ["a"], "4 × 5 pixels, the maps 5 × 4"),
    ],
)  # fmt: skip
def test_maps_that_do_not_fit_are_errors(heats: np.ndarray, labels: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        regions(Image.new("RGB", (4, 5)), heats, labels)
