"""Spectral methods against twins that share no solver with them, their signs, and what cannot have a component."""

import math
from fractions import Fraction

import nets
import pytest
import torch
from fingerprint import untouched
from replicas import apart, numbers, places
from torch import Tensor

import camlucida as cl
from camlucida.errors import MethodError
from camlucida.methods import spectral
from camlucida.registry import Method, get

READS = ["eigencam", "kpcacam", "fem"]
WITH_GRADIENT = ["eigengradcam", "segeigencam"]
SPACES = [(7,), (3, 4), (2, 3, 2), (6, 7)]  # fewer and more places than the 5 channels
every_space = pytest.mark.parametrize("space", SPACES, ids=lambda s: "×".join(map(str, s)))
every_method = pytest.mark.parametrize("name", READS + WITH_GRADIENT)


def drawn(space: tuple[int, ...], seed: int, signed: bool, b: int = 2, c: int = 5) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    act, grad = (torch.randn(b, c, *space, generator=draw, dtype=torch.float64) for _ in range(2))
    return act if signed else act.relu(), grad


def read(name: str, act: Tensor, grad: Tensor, **options: object) -> Tensor:
    method = get(name).having(**options)
    return method(act, grad) if method.needs == "gradient" else method(act)


# ---------------------------------------------------------------------------------------------------------- slow twins

Table = list[list[float]]  # a row for each place, in the order of `places`


def table(act: Tensor) -> Table:
    A, (c, *space) = numbers(act), act.shape
    return [[A[(k, *p)] for k in range(c)] for p in places(space)]


def dot(one: list[float], two: list[float]) -> float:
    return sum(a * b for a, b in zip(one, two, strict=True))


def top_pair(gram: Table) -> tuple[float, list[float]]:
    """The largest eigenvalue and its vector, by cyclic Jacobi rotations over single numbers."""
    a, n = [row[:] for row in gram], len(gram)
    v = [[float(i == j) for j in range(n)] for i in range(n)]
    for _ in range(60):
        for p in range(n):
            for q in range(p + 1, n):
                if abs(a[p][q]) < 1e-300:
                    continue
                theta = (a[q][q] - a[p][p]) / (2 * a[p][q])
                t = (1 if theta >= 0 else -1) / (abs(theta) + math.sqrt(theta**2 + 1))
                cos = 1 / math.sqrt(t**2 + 1)
                sin = t * cos
                for m in (a, v):
                    for row in m:
                        row[p], row[q] = cos * row[p] - sin * row[q], sin * row[p] + cos * row[q]
                a[p], a[q] = (
                    [cos * x - sin * y for x, y in zip(a[p], a[q], strict=True)],
                    [sin * x + cos * y for x, y in zip(a[p], a[q], strict=True)],
                )
        if sum(abs(a[i][j]) for i in range(n) for j in range(n) if i != j) < 1e-14 * sum(
            abs(a[i][i]) for i in range(n)
        ):
            break
    best = max(range(n), key=lambda i: a[i][i])
    return a[best][best], [row[best] for row in v]


def component(rows: Table) -> list[float]:
    """``A v₁`` from the covariance over channels, of any sign."""
    c = len(rows[0])
    _, v = top_pair([[sum(r[i] * r[j] for r in rows) for j in range(c)] for i in range(c)])
    return [dot(r, v) for r in rows]


def turned(found: list[float], like: list[float]) -> list[float]:
    return [-f for f in found] if dot(found, like) < 0 else found


def largest_positive(found: list[float]) -> list[float]:
    return [-f for f in found] if max(found, key=abs) < 0 else found


def lengths(rows: Table) -> list[float]:
    return [math.sqrt(dot(r, r)) for r in rows]


def slow_eigencam(act: Tensor, _grad: Tensor) -> list[float]:
    return turned(component(table(act)), lengths(table(act)))


def slow_eigengradcam(act: Tensor, grad: Tensor) -> list[float]:
    rows = table(grad * act)
    return turned(component(rows), [sum(r) for r in rows])


def slow_segeigencam(act: Tensor, grad: Tensor) -> list[float]:
    return largest_positive(
        component([[abs(g) * a for g, a in zip(*r, strict=True)] for r in zip(table(grad), table(act), strict=True)])
    )


def slow_kpcacam(act: Tensor, _grad: Tensor, kernel: str = "rbf", width: float = 1.0) -> list[float]:
    rows = table(act)
    z = len(rows)
    between = [[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in rows] for p in rows]
    mean = sum(map(sum, between)) / z**2
    length = sum(dot(r, r) for r in rows) / z

    def k(i: int, j: int) -> float:
        if kernel == "rbf":
            return math.exp(-between[i][j] / (2 * width**2 * mean))
        inner = dot(rows[i], rows[j])
        return inner if kernel == "linear" else math.tanh(inner / (width**2 * length))

    made = [[k(i, j) for j in range(z)] for i in range(z)]
    means, whole = [sum(r) / z for r in made], sum(map(sum, made)) / z**2
    centred = [[made[i][j] - means[i] - means[j] + whole for j in range(z)] for i in range(z)]
    value, vector = top_pair(centred)
    return turned([math.sqrt(value) * u for u in vector], lengths(rows))


def slow_fem(act: Tensor, _grad: Tensor, sigmas: float = 2.0) -> list[float]:
    """In exact fractions: ``A > μ + s σ`` where ``A > μ`` and ``(A − μ)² > s² σ²``."""
    rows = [[Fraction(a) for a in r] for r in table(act)]
    z, found, s = len(rows), [Fraction(0)] * len(rows), Fraction(sigmas)
    for k in range(len(rows[0])):
        column = [r[k] for r in rows]
        mean = sum(column) / z
        variance = sum((a - mean) ** 2 for a in column) / z
        for p, a in enumerate(column):
            if a > mean and (a - mean) ** 2 > s**2 * variance:
                found[p] += mean
    return [float(f) for f in found]


TWINS = {
    "eigencam": slow_eigencam, "eigengradcam": slow_eigengradcam, "segeigencam": slow_segeigencam,
    "kpcacam": slow_kpcacam, "fem": slow_fem,
}  # fmt: skip


def slow(name: str, act: Tensor, grad: Tensor, **options: object) -> Tensor:
    rows = [TWINS[name](a, g, **options) for a, g in zip(act, grad, strict=True)]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(act), *act.shape[2:])


@every_method
@every_space
@pytest.mark.parametrize("signed", [False, True], ids=["non-negative", "signed"])
def test_method_equals_its_slow_twin(name: str, space: tuple[int, ...], signed: bool) -> None:
    for seed in range(2):
        act, grad = drawn(space, seed, signed)
        assert apart(read(name, act, grad), slow(name, act, grad)) < 1e-9


@every_space
@pytest.mark.parametrize("options", [{"kernel": "sigmoid"}, {"kernel": "linear"}, {"width": 0.4}, {"width": 3.0}])
def test_every_kernel_and_width_equals_its_slow_twin(space: tuple[int, ...], options: dict[str, object]) -> None:
    act, grad = drawn(space, 3, signed=True)
    assert apart(read("kpcacam", act, grad, **options), slow("kpcacam", act, grad, **options)) < 1e-9


@pytest.mark.parametrize("kernel", ["rbf", "sigmoid", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_places_have_the_component_that_few_have(kernel: str, dtype: torch.dtype, monkeypatch) -> None:
    act = torch.cat([blob(seed)[0] for seed in range(9)], 3).reshape(1, 16, 24, 24).to(dtype)
    by_steps = read("kpcacam", act, act, kernel=kernel)
    monkeypatch.setattr(spectral, "_FEW_PLACES", 576)
    assert apart(by_steps, read("kpcacam", act, act, kernel=kernel)) < (1e-3 if dtype == torch.float32 else 1e-10)
    monkeypatch.setattr(spectral, "_FEW_PLACES", 512)
    monkeypatch.setattr(spectral, "_STEPS", 1)  # what one step does not reach is done in full
    assert apart(by_steps, read("kpcacam", act, act, kernel=kernel)) < (1e-3 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("sigmas", [0.0, 0.5, 1.0, 1.5])
def test_fem_counts_by_the_threshold_that_is_asked_for(sigmas: float) -> None:
    act, grad = drawn((3, 4), 4, signed=True)
    assert apart(read("fem", act, grad, sigmas=sigmas), slow("fem", act, grad, sigmas=sigmas)) < 1e-12


@pytest.mark.parametrize("places", [5, 6])
def test_fem_is_strict_where_a_place_is_exactly_two_deviations_high(places: int) -> None:
    """One of five: 1 = μ + 2σ = 0.2 + 2 · 0.4, and not above it; one of six is."""
    act = torch.zeros(1, 1, places, dtype=torch.float64)
    act[0, 0, 1] = 0.7
    assert read("fem", act, act).tolist() == slow("fem", act, act).tolist()
    assert (read("fem", act, act) > 0).any() == (places == 6)


def test_fem_weighs_by_the_mean_and_not_by_the_activation_or_the_share_of_high_places() -> None:
    act, grad = drawn((6, 7), 5, signed=False)
    flat = act.flatten(2)
    mean, spread = flat.mean(2, keepdim=True), flat.std(2, keepdim=True, correction=0)
    high = (flat > mean + 2 * spread).double()
    papers, peers = (mean * high).sum(1), (high.mean(2, keepdim=True) * flat).sum(1)
    assert apart(read("fem", act, grad).flatten(1), papers) < 1e-12 < 0.05 < apart(papers, peers)


# --------------------------------------------------------------------------------------------------------------- signs


def blob(seed: int) -> tuple[Tensor, Tensor]:
    """The peers' fault: gamma(1, 1) activations ``1 16 8 8`` with +2 on a 3×3 blob."""
    draw = torch.Generator().manual_seed(seed)
    act = -torch.rand(1, 16, 8, 8, generator=draw, dtype=torch.float64).log()
    inside = torch.zeros(8, 8, dtype=torch.bool)
    y, x = torch.randint(6, (2,), generator=draw).tolist()
    inside[y : y + 3, x : x + 3] = True
    return act + 2 * inside, inside


@pytest.mark.parametrize("name", ["eigencam", "kpcacam"])
def test_the_place_of_high_activation_is_never_the_cold_one(name: str) -> None:
    for seed in range(40):
        act, inside = blob(seed)
        found = read(name, act, act)[0]
        assert found[inside].mean() > 0 and found[inside].mean() > 1.5 * found[~inside].mean(), seed


def test_centred_components_without_a_sign_do_hide_it() -> None:
    """The control: the map that peers draw is on the wrong side in some of the 40 draws, so the test above can fail."""
    wrong = 0
    for seed in range(40):
        act, inside = blob(seed)
        rows = act[0].flatten(1).T
        rows = rows - rows.mean(0)
        wrong += bool((rows @ torch.linalg.svd(rows)[2][0])[inside.flatten()].mean() < 0)
    assert 3 < wrong < 37


def test_eigencam_is_not_centred_so_that_what_is_never_negative_has_no_negative_map() -> None:
    for seed in range(20):
        act, grad = drawn((6, 7), seed, signed=False)
        assert (read("eigencam", act, grad) >= -1e-12).all()


@pytest.mark.parametrize("name", ["eigencam", "kpcacam"])
def test_strong_features_are_positive_whatever_their_own_sign(name: str) -> None:
    for seed in range(10):
        act, _ = blob(seed)
        assert apart(read(name, -act, act), read(name, act, act)) < 1e-10


def test_eigengradcam_of_the_opposite_score_is_the_opposite_map_and_segeigencams_is_the_same() -> None:
    act, grad = drawn((6, 7), 6, signed=True)
    assert apart(read("eigengradcam", act, -grad), -read("eigengradcam", act, grad)) < 1e-12
    assert apart(read("segeigencam", act, -grad), read("segeigencam", act, grad)) < 1e-12


def test_eigengradcam_agrees_with_gradient_times_activation() -> None:
    for seed in range(20):
        act, grad = drawn((3, 4), seed, signed=True)
        assert ((grad * act).sum(1) * read("eigengradcam", act, grad)).flatten(1).sum(1).min() > 0


def test_segeigencams_largest_magnitude_is_positive() -> None:
    for seed in range(20):
        found = read("segeigencam", *drawn((3, 4), seed, signed=True)).flatten(1)
        assert (found.amax(1) == found.abs().amax(1)).all()


def test_where_nothing_agrees_the_largest_magnitude_is_positive() -> None:
    rows = torch.tensor([[3.0, -3.0], [1.0, -1.0], [-4.0, 4.0]], dtype=torch.float64)  # Σ_k G_k A_k is zero everywhere
    act = rows.T[None]
    found = read("eigengradcam", act, torch.ones_like(act))
    assert found.argmax() == 2 and apart(found, torch.tensor([[-3.0, -1.0, 4.0]], dtype=torch.float64) * 2**0.5) < 1e-12


# ------------------------------------------------------------------------------------------------- what cannot matter


def test_both_gram_matrices_give_one_map() -> None:
    act, grad = drawn((3, 4), 7, signed=True, c=12)
    wide = torch.cat([act, torch.zeros_like(act[:, :1])], 1)  # 13 columns: the matrix over places is the smaller one
    tall = act[..., :2]  # six places and twelve channels, against six of each
    assert apart(read("eigencam", wide, grad), read("eigencam", act, grad)) < 1e-10
    assert apart(read("eigencam", tall, grad), slow("eigencam", tall, tall)) < 1e-9


@pytest.mark.parametrize("shape", [(2, 30, 3, 4), (2, 5, 6, 7)], ids=["more channels", "more places"])
def test_only_the_smaller_gram_matrix_is_ever_taken_apart(shape: tuple[int, ...], monkeypatch) -> None:
    taken: list[int] = []
    solve = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: (taken.append(m.shape[-1]), solve(m))[1])
    act = torch.rand(shape)
    for name in ("eigencam", *WITH_GRADIENT):
        read(name, act, act)
    assert taken == [min(shape[1], shape[2] * shape[3])] * 3


@every_method
def test_each_picture_is_read_alone(name: str) -> None:
    act, grad = drawn((3, 4), 8, signed=True, b=4)
    alone = torch.cat([read(name, act[i : i + 1], grad[i : i + 1]) for i in range(4)])
    assert apart(read(name, act, grad), alone) < 1e-12


@every_method
@every_space
def test_order_of_channels_and_places_changes_nothing_but_their_order(name: str, space: tuple[int, ...]) -> None:
    act, grad = drawn(space, 9, signed=True)
    order = torch.tensor([3, 0, 4, 1, 2])
    found = read(name, act, grad)
    assert apart(read(name, act[:, order], grad[:, order]), found) < 1e-9
    assert apart(read(name, act.flip(2), grad.flip(2)), found.flip(1)) < 1e-9


@every_method
@pytest.mark.parametrize("size", [1e-30, 1e-18, 1e-8, 1e8, 1e18])
def test_numbers_of_any_size_have_the_same_map_in_single_precision(name: str, size: float) -> None:
    act, grad = drawn((6, 7), 10, signed=False)
    found = read(name, (act * size).float(), grad.float())
    expected = slow(name, act, grad) * (1.0 if name == "kpcacam" else size)
    assert found.dtype == torch.float32 and found.isfinite().all() and apart(found, expected) < 1e-4


@pytest.mark.parametrize("name", ["eigencam", "fem"])
def test_maps_have_the_units_of_the_activation_and_a_kernels_none(name: str) -> None:
    act, grad = drawn((3, 4), 11, signed=False)
    assert apart(read(name, 3 * act, grad), 3 * read(name, act, grad)) < 1e-10
    assert apart(read("kpcacam", 3 * act, grad), read("kpcacam", act, grad)) < 1e-10


def test_a_channel_in_other_units_changes_eigencam() -> None:
    """P20: function-preserving rescaling leaves gradient methods alone, and not this one; docs may not say it does."""
    act, grad = drawn((3, 4), 12, signed=False)
    scaled = act * torch.tensor([10.0, 1, 1, 1, 1], dtype=torch.float64).reshape(1, 5, 1, 1)
    assert apart(read("eigencam", scaled, grad), read("eigencam", act, grad)) > 0.1
    grads = grad / torch.tensor([10.0, 1, 1, 1, 1], dtype=torch.float64).reshape(1, 5, 1, 1)
    assert apart(read("eigengradcam", scaled, grads), read("eigengradcam", act, grad)) < 1e-10


# -------------------------------------------------------------------------------------------------------- degenerate


@every_method
@every_space
@pytest.mark.parametrize("value", [0.0, 0.1, -0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_that_are_the_same_everywhere(
    name: str, space: tuple[int, ...], value: float, dtype: torch.dtype
) -> None:
    act = torch.full((2, 5, *space), value, dtype=dtype)
    found = read(name, act, torch.ones_like(act))
    assert found.shape == (2, *space) and found.isfinite().all()
    if name in ("fem", "kpcacam") or value == 0:
        assert (found == 0).all()
    else:  # every place is (v, …, v), of length |v| √5
        sign = math.copysign(1, value) if name == "eigengradcam" else 1
        assert apart(found, torch.full_like(found, sign * abs(value) * 5**0.5)) < 1e-6


@every_method
def test_one_channel_and_one_place(name: str) -> None:
    act, grad = drawn((3, 4), 13, signed=True, c=1)
    assert apart(read(name, act, grad), slow(name, act, grad)) < 1e-9
    one = torch.tensor([[[2.0], [-1.0]]], dtype=torch.float64)
    assert read(name, one, one).shape == (1, 1) and read(name, one, one).isfinite().all()


@every_method
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_picture_of_nan_or_infinity_is_said_to_be_so_and_spoils_no_other(name: str, bad: float) -> None:
    act, grad = drawn((3, 4), 14, signed=True, b=3)
    good = read(name, act, grad)
    act[1, 2, 0, 1] = bad
    found = read(name, act, grad)
    assert not found[1].isfinite().any() and apart(found[[0, 2]], good[[0, 2]]) < 1e-12


def test_dead_gradient_makes_a_zero_map() -> None:
    act, grad = drawn((3, 4), 15, signed=True)
    for name in WITH_GRADIENT:
        assert (read(name, act, 0 * grad) == 0).all()


def test_unknown_kernels_and_widths_are_errors_that_say_what_there_is() -> None:
    act, grad = drawn((3, 4), 16, signed=True)
    with pytest.raises(MethodError, match=r"no kernel 'poly'.*rbf, sigmoid, linear"):
        read("kpcacam", act, grad, kernel="poly")
    for width in (0.0, -1.0, math.nan):
        with pytest.raises(MethodError, match="above 0"):
            read("kpcacam", act, grad, width=width)
    with pytest.raises(MethodError, match=r"has no option 'sigma'.*sigmas"):
        get("fem:sigma=3")


def test_more_places_than_a_kernel_can_hold_is_an_error_that_names_eigencam() -> None:
    with pytest.raises(MethodError, match=r"8281 places.*8192 places.*Eigen-CAM"):
        get("kpcacam")(torch.zeros(1, 1, 91, 91))
    assert get("kpcacam:width=2").label == "kpcacam:width=2.0"


# --------------------------------------------------------------------------------------------------- through explain

LAYOUTS = {
    "channels first": lambda: nets.smooth_tail(2), "1-D": lambda: nets.gap_linear(1), "3-D": lambda: nets.gap_linear(3),
    "channels last": nets.channels_last_net, "tokens": lambda: nets.token_net(2),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_with_one_forward_pass_and_left_as_it_was(layout: str) -> None:
    net = LAYOUTS[layout]()
    x, names = net.x(2), READS + WITH_GRADIENT
    with untouched(net):
        found = cl.sweep(net, x, targets=[1, 2], methods=names, layers=[net.layer])
    for one, two in zip(found[: len(names)], found[len(names) :], strict=True):
        assert one.map.shape == two.map.shape and one.map.isfinite().all() and not one.map.requires_grad
        assert torch.equal(one.map, two.map) == one.facts.class_agnostic == (one.method in READS)
        alone = cl.explain(net, x[1:], target=1, method=one.method, layer=net.layer).map
        assert float((alone[0] - one.map[1]).abs().max()) <= 1e-10 * float(one.map.abs().max())


def test_an_exception_from_inside_the_model_leaves_no_trace() -> None:
    net = nets.smooth_tail()

    def fail(_y: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with untouched(net), pytest.raises(KeyboardInterrupt):
        cl.sweep(net, net.x(1), targets=[fail], methods=READS + WITH_GRADIENT, layers=[net.layer])


def test_a_constant_picture_says_that_it_has_no_component() -> None:
    net = nets.gap_linear(2, last=torch.nn.Identity())
    for conv in (net.features[0], net.features[2]):
        conv.padding_mode, conv.padding = "circular", (1, 1)
        conv._reversed_padding_repeated_twice = [1, 1, 1, 1]
    e = cl.explain(net, torch.full((1, 2, 8, 9), 0.3, dtype=torch.float64), target=1, method="kpcacam", layer=net.layer)
    assert e.status == "no evidence"


def test_methods_without_a_gradient_say_what_they_cannot_see() -> None:
    for name in READS:
        method = get(name)
        assert isinstance(method, Method) and "class" in method.insensitive and method.class_agnostic
