"""The identities P1 to P26 that hold for the methods here, each proved through the public `explain` and `sweep`.

Float64 to 1e-10, float32 to 1e-5, relative to the largest value. ``Z`` is the number of places.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import nets
import pytest
import torch
from replicas import REPLICAS, apart, spearman
from torch import Tensor, nn

import camlucida as cl
from camlucida import maps
from camlucida.core import capture, evidence, heads
from camlucida.errors import LayerError, MethodError
from camlucida.registry import list_methods

# Methods that read one activation and one gradient.
READERS = {name: method for name, method in list_methods().items() if name in REPLICAS}
METHODS = tuple(READERS)
NO_HEAD = tuple(name for name, method in READERS.items() if method.needs != "head")
LINEAR = ("gradcam", "hirescam", "xgradcam")  # linear in the gradient
dimensions = pytest.mark.parametrize("dims", [1, 2, 3], ids=["1d", "2d", "3d"])
seeds = pytest.mark.parametrize("seed", range(2))
precisions = pytest.mark.parametrize(
    ("dtype", "slack"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"]
)


def mapped(net: nets.Net, x: Tensor, target: object = 1, methods: Sequence[str] = NO_HEAD) -> dict[str, Tensor]:
    """Raw maps by method at the net's own layer."""
    return {e.method: e.map for e in cl.sweep(net, x, targets=[target], methods=methods, layers=[net.layer])}


def total(map: Tensor) -> Tensor:
    return map.flatten(1).sum(1)


def score(net: nets.Net, x: Tensor, k: int = 1) -> Tensor:
    with torch.no_grad():
        return net(x)[:, k]


# ----------------------------------------------------------------------------------------------------- P1 to P9: heads


@precisions
@dimensions
@pytest.mark.parametrize("make", [nets.gap_linear, nets.nin], ids=["gap_linear", "nin"])
@pytest.mark.parametrize("last", [None, nn.Identity()], ids=["relu", "signed"])
def test_p01_at_a_pooled_linear_head_gradcam_hirescam_and_xgradcam_are_cam_over_z(
    make, last, dims: int, dtype: torch.dtype, slack: float
) -> None:
    net = make(dims, 1, last).to(dtype)
    found = mapped(net, net.x(3), cl.classes([0, 4, 2]), ("cam", *LINEAR))
    cam_over_z = found["cam"] / found["cam"][0].numel()
    # XGrad-CAM divides by ΣA: of a signed channel it loses as many digits as cancel there.
    assert apart(found["gradcam"], cam_over_z) < slack and apart(found["hirescam"], cam_over_z) < slack
    assert apart(found["xgradcam"], cam_over_z) < slack * (1 if last is None else 100)
    for normal in (maps.rectify, lambda m: maps.unit(maps.rectify(m), maps.scale_of(m))):
        assert apart(normal(found["gradcam"][:1]), normal(cam_over_z[:1])) < slack


@precisions
@dimensions
@pytest.mark.parametrize("make", [nets.gap_linear, nets.flatten_linear, nets.nin], ids=["gap", "flatten", "nin"])
def test_p02_at_a_linear_head_hirescam_sums_to_the_logit_less_its_bias(
    make, dims: int, dtype: torch.dtype, slack: float
) -> None:
    net = make(dims, 1, nn.Identity()).to(dtype)
    x = net.x(3)
    assert apart(total(mapped(net, x, 1, ["hirescam"])["hirescam"]) + net.head.bias[1], score(net, x)) < slack * 10


@dimensions
def test_p02_at_a_flattened_head_gradcam_does_not_sum_to_the_logit(dims: int) -> None:
    net = nets.flatten_linear(dims)
    x = net.x(3)
    assert apart(total(mapped(net, x, 1, ["gradcam"])["gradcam"]) + net.head.bias[1], score(net, x)) > 0.05


def test_p02_cam_has_the_logit_less_its_bias_as_its_mean() -> None:
    net = nets.gap_linear()
    x = net.x(3)
    assert apart(mapped(net, x, 1, ["cam"])["cam"].flatten(1).mean(1) + net.head.bias[1], score(net, x)) < 1e-10


@dimensions
@seeds
def test_p03_at_a_max_pooled_head_gradcam_is_that_of_an_average_pool(dims: int, seed: int) -> None:
    net = nets.gmp_linear(dims, seed)
    x = net.x(2)
    mean = nets.Net(net.features, nets.gap_linear(dims, seed).tail, net.shape)
    mean.tail.load_state_dict(net.tail.state_dict())
    assert apart(mapped(net, x, 1, ["gradcam"])["gradcam"], mapped(mean, x)["gradcam"]) < 1e-10


@dimensions
@seeds
def test_p03_at_a_max_pooled_head_hirescam_lives_at_each_channels_maximum_and_sums_to_the_logit(
    dims: int, seed: int
) -> None:
    net = nets.gmp_linear(dims, seed)
    x = net.x(2)
    found, act = mapped(net, x, 1, ["hirescam"])["hirescam"], net.act(x)
    assert apart(total(found) + net.head.bias[1], score(net, x)) < 1e-10
    highest = (act == act.flatten(2).amax(2).reshape(2, 4, *(1,) * dims)).any(1)
    assert (found[~highest] == 0).all() and (found[highest] != 0).all()
    assert 1 <= int(highest[0].sum()) <= 4


@precisions
@dimensions
@pytest.mark.parametrize("p", [1.0, 1.5, 3.0, 8.0])
def test_p04_at_a_generalised_mean_hirescam_sums_to_the_logit_less_its_bias(
    dims: int, p: float, dtype: torch.dtype, slack: float
) -> None:
    net = nets.gem_linear(p, dims).to(dtype)
    x = net.x(3)
    assert apart(total(mapped(net, x, 1, ["hirescam"])["hirescam"]) + net.head.bias[1], score(net, x)) < slack * 10


@precisions
@dimensions
@seeds
@pytest.mark.parametrize("last", [None, nn.Identity()], ids=["relu", "signed"])
def test_p05_at_a_bias_free_piecewise_linear_tail_hirescam_sums_to_the_logit(
    last, dims: int, seed: int, dtype: torch.dtype, slack: float
) -> None:
    net = nets.relu_tail(dims, seed, last).to(dtype)
    x = net.x(3)
    assert apart(total(mapped(net, x, 1, ["hirescam"])["hirescam"]), score(net, x)) < slack


@dimensions
def test_p05_at_a_bias_free_piecewise_linear_tail_gradcam_need_not_sum_to_the_logit(dims: int) -> None:
    net = nets.relu_tail(dims)
    x = net.x(3)
    assert apart(total(mapped(net, x, 1, ["gradcam"])["gradcam"]), score(net, x)) > 0.05


@dimensions
@pytest.mark.parametrize("name", nets.TAILS)
def test_p06_xgradcam_and_hirescam_have_the_same_sum_at_any_tail(name: str, dims: int) -> None:
    net = nets.TAILS[name](dims, 1)
    x = net.x(3)
    act, found = net.act(x), mapped(net, x, 1, ("xgradcam", "hirescam"))
    # Dead channels are no exception (they give neither map anything); a live one with a sum of zero would be.
    sums, sizes = act.flatten(2).sum(2), act.flatten(2).abs().sum(2)
    assert ((sums.abs() > 1e-3 * sizes) | (sizes == 0)).all()
    size = found["hirescam"].flatten(1).abs().sum(1).max()
    assert float((total(found["xgradcam"]) - total(found["hirescam"])).abs().max() / size) < 1e-10


def bias_terms(net: nets.Net, x: Tensor, k: int) -> Tensor:
    """``Σ β ∂y/∂β`` over every bias behind the layer, one picture at a time; BatchNorm's shift is one."""
    terms = []
    for one in net.act(x):
        net.tail.zero_grad()
        net.tail(one[None])[0, k].backward()
        found = torch.zeros((), dtype=one.dtype)
        for module in net.tail.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                shift = module.bias - module.weight * module.running_mean / (module.running_var + module.eps).sqrt()
                found = found + (shift * module.bias.grad).sum()
            elif getattr(module, "bias", None) is not None:
                found = found + (module.bias * module.bias.grad).sum()
        terms.append(found.detach())
    net.tail.zero_grad()
    return torch.stack(terms)


@dimensions
@seeds
@pytest.mark.parametrize("last", [None, nn.Identity()], ids=["relu", "signed"])
def test_p07_at_a_piecewise_linear_tail_hirescam_and_the_bias_terms_sum_to_the_logit(
    last, dims: int, seed: int
) -> None:
    net = nets.biased_tail(dims, seed, last)
    x = net.x(3)
    found = total(mapped(net, x, 1, ["hirescam"])["hirescam"])
    assert apart(found + bias_terms(net, x, 1), score(net, x)) < 1e-10
    assert apart(found, score(net, x)) > 1e-4  # and the biases do matter here


def drops(net: nets.Net, x: Tensor, k: int) -> Tensor:
    """``y − y(A without channel c)``, ``b c``: each channel set to zero in turn."""
    act = net.act(x)
    columns = []
    with torch.no_grad():
        for c in range(act.shape[1]):
            without = act.clone()
            without[:, c] = 0
            columns.append(net.tail(act)[:, k] - net.tail(without)[:, k])
    return torch.stack(columns, 1)


def recovered(net: nets.Net, x: Tensor, method: str, k: int) -> Tensor:
    """The channel weights that a map was made with, from the map: least squares over its places."""
    act, found = net.act(x).flatten(2), mapped(net, x, k, [method])[method].flatten(1)
    return torch.linalg.lstsq(act.transpose(1, 2), found[..., None]).solution[..., 0]


@dimensions
@seeds
def test_p08_at_a_pooled_linear_head_the_ablation_drop_over_the_channel_sum_is_gradcams_weight(
    dims: int, seed: int
) -> None:
    net = nets.gap_linear(dims, seed, nn.Identity())
    x = net.x(2)
    sums, found = net.act(x).flatten(2).sum(2), drops(net, x, 1)
    assert apart(found, net.head.weight[1] * net.act(x).flatten(2).mean(2)) < 1e-10
    assert apart(recovered(net, x, "gradcam", 1), found / sums) < 1e-9
    assert apart(recovered(net, x, "gradcam", 1), found) > 0.1  # the raw drop is another weight


@dimensions
@seeds
def test_p08_at_a_flattened_head_the_ablation_drop_over_the_channel_sum_is_xgradcams_weight(
    dims: int, seed: int
) -> None:
    net = nets.flatten_linear(dims, seed, nn.Softplus())
    x = net.x(2)
    sums, found = net.act(x).flatten(2).sum(2), drops(net, x, 1)
    assert apart(recovered(net, x, "xgradcam", 1), found / sums) < 1e-9


@precisions
@dimensions
@seeds
@pytest.mark.parametrize("make", [nets.gap_linear, nets.nin], ids=["gap_linear", "nin"])
def test_p09_at_a_pooled_linear_head_gradcampp_weighs_relu_w_over_two_plus_w_mean_a(
    make, dims: int, seed: int, dtype: torch.dtype, slack: float
) -> None:
    net = make(dims, seed).to(dtype)
    x = net.x(2)
    act, row = net.act(x), net.head.weight.detach().flatten(1)[1]
    weights = row.relu() / (2 + row.relu() * act.flatten(2).mean(2))
    expected = (weights.reshape(2, 4, *(1,) * dims) * act).sum(1)
    assert apart(mapped(net, x, 1, ["gradcampp"])["gradcampp"], expected) < slack


# ------------------------------------------------------------------------------------------------- P10 to P12: targets


@precisions
@pytest.mark.parametrize("name", ["gap_linear", "gmp_linear", "biased_tail", "smooth_tail"])
def test_p10_the_map_of_a_mixture_of_logits_is_the_mixture_of_their_maps(
    name: str, dtype: torch.dtype, slack: float
) -> None:
    net = nets.TAILS[name](2, 1).to(dtype)
    x, share = net.x(2), torch.tensor([0.7, -1.3, 0.0, 2.0, 0.1], dtype=dtype)
    singles = cl.sweep(net, x, targets=range(5), methods=LINEAR, layers=[net.layer])
    mixture = mapped(net, x, lambda y: y @ share, LINEAR)
    for m, method in enumerate(LINEAR):
        stack = torch.stack([e.map for e in singles[m :: len(LINEAR)]])
        assert apart(mixture[method], torch.einsum("k,kb...->b...", share, stack)) < slack * 10, method


def test_p10_does_not_hold_for_the_methods_that_rectify_gradients() -> None:
    net = nets.biased_tail(2, 1)
    x, others = net.x(2), tuple(m for m in NO_HEAD if m not in LINEAR)
    one, two = mapped(net, x, 0, others), mapped(net, x, 1, others)
    difference = mapped(net, x, lambda y: y[:, 0] - y[:, 1], others)
    for method in others:
        assert apart(difference[method], one[method] - two[method]) > 1e-3, method


def test_p10_a_contrast_with_detached_weights_is_linear_in_the_maps() -> None:
    """Finer-CAM's target, ``Σ p_i (y_0 − α y_i) / Σ p_i`` with ``p`` held fixed."""
    net = nets.smooth_tail(2, 2)
    x, alpha = net.x(1), 0.6
    p = net(x).softmax(1).detach()[0, 1:4]

    def contrast(y: Tensor) -> Tensor:
        fixed = y.softmax(1).detach()[:, 1:4]
        return (fixed * (y[:, :1] - alpha * y[:, 1:4])).sum(1) / fixed.sum(1)

    singles = [mapped(net, x, k, LINEAR) for k in range(4)]
    for method in LINEAR:
        mixed = sum(p[i] * (singles[0][method] - alpha * singles[i + 1][method]) for i in range(3)) / p.sum()
        assert apart(mapped(net, x, contrast, LINEAR)[method], mixed) < 1e-10


@precisions
@pytest.mark.parametrize("name", ["gap_linear", "flatten_linear", "biased_tail", "smooth_tail"])
def test_p11_log_probability_maps_are_logit_maps_less_their_mean_under_the_probabilities(
    name: str, dtype: torch.dtype, slack: float
) -> None:
    net = nets.TAILS[name](2, 2).to(dtype)
    x = net.x(2)
    with torch.no_grad():
        p = net(x).softmax(1)
    singles = cl.sweep(net, x, targets=range(5), methods=LINEAR, layers=[net.layer])
    log_map = mapped(net, x, cl.classes(1, "log_probability"), LINEAR)
    plain_map = mapped(net, x, cl.classes(1, "probability"), LINEAR)
    for m, method in enumerate(LINEAR):
        stack = torch.stack([e.map for e in singles[m :: len(LINEAR)]])
        assert apart(log_map[method], stack[1] - torch.einsum("bk,kb...->b...", p, stack)) < slack * 10
        assert apart(plain_map[method], p[:, 1, None, None] * log_map[method]) < slack * 10
        one, two = log_map[method][:1], plain_map[method][:1]
        assert apart(maps.unit(one, maps.scale_of(one)), maps.unit(two, maps.scale_of(two))) < slack * 10


def test_p11_a_constant_added_to_every_logit_changes_no_map() -> None:
    net = nets.biased_tail(2, 3)
    x, before = net.x(2), {}
    targets = [cl.classes(1, s) for s in ("logit", "log_probability", "probability", "margin", "logit_minus_mean")]
    for target in targets:
        before[target.score] = mapped(net, x, target)
    with torch.no_grad():
        net.head.bias.add_(3.0)
    for target in targets:
        for method, map in mapped(net, x, target).items():
            assert apart(map, before[target.score][method]) < 1e-10, (target, method)


def test_p11_the_same_function_of_the_input_added_to_every_logit_changes_no_log_probability_map() -> None:
    net = nets.smooth_tail(2, 3)
    x = net.x(2)
    more = nets.Net(net.features, net.tail, net.shape)

    class Both(nn.Module):
        def forward(self, act: Tensor) -> Tensor:
            return net.tail(act) + act.pow(2).sum((1, 2, 3))[:, None]

    more.tail = Both()
    relative, plain = cl.classes(1, "log_probability"), cl.classes(1)
    for method in NO_HEAD:
        assert apart(mapped(more, x, relative)[method], mapped(net, x, relative)[method]) < 1e-10
    assert apart(mapped(more, x, plain)["hirescam"], mapped(net, x, plain)["hirescam"]) > 0.1


@pytest.mark.parametrize("name", nets.TAILS)
@pytest.mark.parametrize("by", [2.5, -1.5])
def test_p12_a_scaled_target_has_a_scaled_map(name: str, by: float) -> None:
    net = nets.TAILS[name](2, 4)
    x = net.x(2)
    plain, scaled = mapped(net, x, 1, LINEAR), mapped(net, x, lambda y: by * y[:, 1], LINEAR)
    for method in LINEAR:
        assert apart(scaled[method], by * plain[method]) < 1e-10
        for i in range(2) if by > 0 else ():
            one, two = scaled[method][i : i + 1], plain[method][i : i + 1]
            assert apart(maps.unit(one, maps.scale_of(one)), maps.unit(two, maps.scale_of(two))) < 1e-10


# ------------------------------------------------------------------------------------------- P14 to P16: where it lies


@seeds
def test_p14_places_the_model_cannot_see_have_no_evidence_at_all(seed: int) -> None:
    net = nets.blind_tail(seed)
    x, unseen = net.x(2), net.tail[0].mask == 0
    found = mapped(net, x)
    for method in ("hirescam", "layercam", "elementwise"):
        assert (found[method][:, unseen] == 0).all() and (found[method] != 0).any(), method
    for method in ("gradcam", "xgradcam"):  # and the two that weigh whole channels do put evidence there
        mass = found[method].abs()
        assert mass[:, unseen].sum() > 0.1 * mass.sum(), method


@seeds
def test_p16_where_no_gradient_is_negative_layercam_is_hirescam(seed: int) -> None:
    net = nets.rising_tail(seed)
    found = mapped(net, net.x(2))
    assert apart(found["layercam"], found["hirescam"]) == 0
    assert apart(found["elementwise"], maps.rectify(found["hirescam"])) < 1e-10  # here A ≥ 0 as well


@dimensions
def test_p16_at_a_pooled_linear_head_without_negative_weights_layercam_is_gradcam(dims: int) -> None:
    net = nets.gap_linear(dims, 1)
    with torch.no_grad():
        net.head.weight[1].abs_()
    found = mapped(net, net.x(2))
    assert apart(maps.rectify(found["layercam"]), maps.rectify(found["gradcam"])) < 1e-10


@pytest.mark.parametrize("name", nets.TAILS)
def test_p16_elementwise_is_layercam_wherever_the_activation_is_not_negative(name: str) -> None:
    net = nets.TAILS[name](2, 5)
    x = net.x(2)
    found = mapped(net, x)
    if (net.act(x) >= 0).all():
        assert apart(found["elementwise"], found["layercam"]) < 1e-10
    else:
        assert apart(found["elementwise"], found["layercam"]) > 1e-3


# ---------------------------------------------------------------------------------------- P18 and P19: batch, symmetry


BATCHED = [*nets.TAILS, "channels_last", "tokens_class", "tokens_mean", "blind", "circular"]


def net_called(name: str, seed: int = 0) -> nets.Net:
    more: dict[str, Callable[[], nets.Net]] = {
        "channels_last": lambda: nets.channels_last_net(seed), "tokens_class": lambda: nets.token_net(2, "class", seed),
        "tokens_mean": lambda: nets.token_net(0, "mean", seed), "blind": lambda: nets.blind_tail(seed),
        "circular": lambda: nets.circular(seed),
    }  # fmt: skip
    return more[name]() if name in more else nets.TAILS[name](2, seed)


@pytest.mark.parametrize("name", BATCHED)
def test_p18_permuting_the_batch_permutes_the_maps_bit_for_bit(name: str) -> None:
    """Wherever the model itself does: a matrix product may round a row by where in the batch it stands."""
    net = net_called(name)
    x, order = net.x(4), torch.tensor([2, 0, 3, 1])
    before, after = mapped(net, x), mapped(net, x[order])
    with torch.no_grad():
        model_does = torch.equal(net(x[order]), net(x)[order])
    for method in NO_HEAD:
        assert apart(after[method], before[method][order]) <= (0 if model_does else 1e-12), method


@pytest.mark.parametrize("name", BATCHED)
def test_p18_a_picture_has_the_same_map_alone_as_in_a_batch(name: str) -> None:
    """To 1e-12: the processor's matrix products may round the last bit by the size of the batch."""
    net = net_called(name)
    x, targets = net.x(3), [1, cl.top1, cl.rank(2, "margin")]

    def swept(some: Tensor) -> list[Tensor]:
        return [e.map for e in cl.sweep(net, some, targets=targets, methods=NO_HEAD, layers=[net.layer])]

    whole = swept(x)
    for i in range(3):
        for alone, together in zip(swept(x[i : i + 1]), whole, strict=True):
            assert float((alone[0] - together[i]).abs().max()) <= 1e-12 * float(together.abs().max())


def test_p18_the_rest_of_the_batch_does_not_reach_a_picture_through_batchnorm_in_training_mode() -> None:
    net = nets.biased_tail().train()
    x = net.x(3)
    company = torch.cat([x[:1], 100 * x[1:]])
    assert apart(mapped(net, company)["hirescam"][:1], mapped(net, x, 1, ["hirescam"])["hirescam"][:1]) < 1e-12
    assert net.training and net.tail[1].training


@seeds
@pytest.mark.parametrize("shift", [(3, 5), (-1, 2)])
def test_p19_shifting_the_input_of_a_circular_net_shifts_the_map(seed: int, shift: tuple[int, int]) -> None:
    net = nets.circular(seed)
    x = net.x(2)
    before, after = mapped(net, x), mapped(net, x.roll(shift, (2, 3)))
    for method in NO_HEAD:
        assert apart(after[method], before[method].roll(shift, (1, 2))) < 1e-10, method


@seeds
def test_p19_flipping_the_input_of_a_net_with_mirrored_kernels_flips_the_map(seed: int) -> None:
    net = nets.mirrored(seed)
    x = net.x(2)
    before, after = mapped(net, x), mapped(net, x.flip(3))
    for method in NO_HEAD:
        assert apart(after[method], before[method].flip(2)) < 1e-10, method
    assert apart(after["gradcam"], before["gradcam"]) > 1e-3  # and the map is not its own mirror image


# ------------------------------------------------------------------------- P20: the same function, written differently


def reordered(net: nets.Net, order: Tensor) -> nets.Net:
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.features[2].weight.copy_(net.features[2].weight[order])
        twin.features[2].bias.copy_(net.features[2].bias[order])
        twin.head.weight.copy_(net.head.weight[:, order])
    return twin


def rescaled(net: nets.Net, by: Tensor) -> nets.Net:
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.features[2].weight.mul_(by[:, None, None, None])
        twin.features[2].bias.mul_(by)
        twin.head.weight.div_(by)
    return twin


def split(net: nets.Net) -> nets.Net:
    """The first channel twice, each copy with half the weight in the head."""
    features, tail = copy.deepcopy(net.features), copy.deepcopy(net.tail)
    twice = torch.tensor([0, 0, 1, 2, 3])
    features[2], tail[2] = nn.Conv2d(3, 5, 3, padding=1).double(), nn.Linear(5, nets.CLASSES).double()
    with torch.no_grad():
        features[2].weight.copy_(net.features[2].weight[twice])
        features[2].bias.copy_(net.features[2].bias[twice])
        tail[2].weight.copy_(net.head.weight[:, twice])
        tail[2].weight[:, :2] /= 2
        tail[2].bias.copy_(net.head.bias)
    return nets.Net(features, tail, net.shape).eval()


REWRITTEN = {
    "reordered": lambda net: reordered(net, torch.tensor([2, 0, 3, 1])),
    "rescaled": lambda net: rescaled(net, torch.tensor([1e-2, 3.0, 40.0, 1.0], dtype=torch.float64)),
    "split": split,
}
CHANGED = {("split", "gradcampp")}
"""The one pair that the table of P20 says differs: half a weight saturates less than a whole one."""


@pytest.mark.parametrize("how", REWRITTEN)
@pytest.mark.parametrize("method", METHODS)
def test_p20_the_same_function_written_differently_has_the_same_map(how: str, method: str) -> None:
    net = nets.gap_linear(2, 1)
    with torch.no_grad():
        net.head.weight[1, 0] = 3.0  # the channel that is split must speak for the class
    twin, x = REWRITTEN[how](net), net.x(2)
    assert apart(score(twin, x), score(net, x)) < 1e-10
    difference = apart(mapped(twin, x, 1, [method])[method], mapped(net, x, 1, [method])[method])
    assert difference > 1e-4 if (how, method) in CHANGED else difference < 1e-10


# ---------------------------------------------------------------------------------- P21: every path, the same gradient


CLOSED = ("gap_linear", "flatten_linear", "nin")


def by_hand(net: nets.Net, x: Tensor, k: int) -> dict[str, Tensor]:
    """A hook and autograd, as anyone would write it."""
    kept: list[Tensor] = []
    with net.features.register_forward_hook(lambda _m, _a, made: kept.append(made)):
        y = net(x.clone().requires_grad_())
    (grad,) = torch.autograd.grad(y[:, k].sum(), kept[0])
    return {name: method(kept[0].detach(), grad) for name, method in READERS.items()}


def no_batched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """From here on batched vector-Jacobian products fail, as they do for functions without a batching rule."""
    grad, refused = torch.autograd.grad, []

    def plain(*args: object, **kwargs: object) -> object:
        if kwargs.get("is_grads_batched"):
            refused.append(True)
            raise RuntimeError("no batching rule")
        return grad(*args, **kwargs)

    monkeypatch.setattr(capture.torch.autograd, "grad", plain)
    return refused


@pytest.mark.parametrize(
    ("name", "dims"), [*((name, 2) for name in nets.TAILS), *((name, d) for name in CLOSED for d in (1, 3))], ids=str
)
def test_p21_closed_form_batched_looped_and_handwritten_gradients_make_the_same_maps(
    name: str, dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "WORTH", 1)
    net = nets.TAILS[name](dims, 6)
    x = net.x(2)
    methods = METHODS if name in ("gap_linear", "nin") else NO_HEAD

    def all_classes() -> list[Tensor]:
        return [e.map for e in cl.sweep(net, x, targets=range(5), methods=methods, layers=[net.layer])]

    default = all_classes()
    monkeypatch.setattr(evidence, "_refuse_headless", lambda *_: None)
    monkeypatch.setattr(heads, "recognise", lambda *_: None)
    batched = all_classes()
    refused = no_batched(monkeypatch)
    looped = all_classes()
    assert refused
    monkeypatch.undo()
    hand = [maps[m] for maps in (by_hand(net, x, k) for k in range(5)) for m in methods]
    for i, expected in enumerate(hand):
        assert apart(default[i], expected) < 1e-10 and apart(batched[i], expected) < 1e-10, i
        assert apart(looped[i], batched[i]) < 1e-14, i


@pytest.mark.parametrize("name", ["gap_linear", "nin", "flatten_linear"])
def test_p21_closed_form_is_taken_and_asks_autograd_for_its_proof_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, rows, gradients = nets.TAILS[name](2, 6), [], capture.Tape.gradients

    def counted(self: capture.Tape, at: Tensor, along: Tensor, *rest: Any, **how: Any) -> Any:
        rows.append(len(along))
        return gradients(self, at, along, *rest, **how)

    monkeypatch.setattr(capture.Tape, "gradients", counted)
    cl.sweep(net, net.x(2), targets=range(5), methods=NO_HEAD, layers=[net.layer])
    assert rows == [1]


@pytest.mark.parametrize("name", ["gmp_linear", "gem_linear", "relu_tail", "biased_tail", "smooth_tail"])
def test_p21_no_closed_form_is_seen_where_there_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "WORTH", 1)
    net = nets.TAILS[name](2, 6)
    found: list[object] = []
    recognise = heads.recognise
    monkeypatch.setattr(heads, "recognise", lambda *a: found.append(recognise(*a)) or found[-1])
    mapped(net, net.x(2))
    assert found == [None]


@pytest.mark.parametrize("score_name", ["logit", "probability", "log_probability", "margin", "logit_minus_mean"])
@pytest.mark.parametrize("name", ["gap_linear", "nin", "flatten_linear"])
def test_p21_closed_form_equals_autograd_for_every_way_of_scoring(
    name: str, score_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "WORTH", 1)
    net = nets.TAILS[name](2, 7)
    x, targets = net.x(3), [cl.classes([0, 4, 2], score_name), cl.rank(2, score_name), *cl.top(3, score_name)]

    def run() -> list[Tensor]:
        return [e.map for e in cl.sweep(net, x, targets=targets, methods=NO_HEAD, layers=[net.layer])]

    closed = run()
    monkeypatch.setattr(heads, "recognise", lambda *_: None)
    for one, two in zip(closed, run(), strict=True):
        assert apart(one, two) < 1e-10


def test_p21_gradients_taken_in_chunks_are_those_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nets.smooth_tail(2, 8)
    x = net.x(2)

    def run() -> list[Tensor]:
        return [e.map for e in cl.sweep(net, x, targets=[*range(5), cl.top1], methods=NO_HEAD, layers=[net.layer])]

    whole, each = run(), net.act(x).numel() * 8
    for budget in (1, each * 2, each * 4 + 1):
        monkeypatch.setattr(evidence, "GRADIENT_BYTES", budget)
        for one, two in zip(run(), whole, strict=True):
            assert apart(one, two) < 1e-12


def test_p21_a_batch_with_different_classes_mixes_no_gradients() -> None:
    net = nets.smooth_tail(2, 9)
    x, wanted = net.x(4), [3, 0, 4, 1]
    together = mapped(net, x, cl.classes(wanted))
    for i, k in enumerate(wanted):
        for method, map in mapped(net, x[i : i + 1], k).items():
            assert apart(together[method][i : i + 1], map) < 1e-11


def test_p21_many_layers_targets_and_methods_at_once_are_those_asked_singly() -> None:
    net = nets.biased_tail(2, 10)
    x, layers, targets = net.x(2), ["features.1", "features", "tail.2"], [4, cl.rank(2), lambda y: y[:, 0] - y[:, 1]]
    together = cl.sweep(net, x, targets=targets, methods=NO_HEAD, layers=layers)
    singly = [cl.explain(net, x, target=t, method=m, layer=n) for t in targets for m in NO_HEAD for n in layers]
    for one, two in zip(together, singly, strict=True):
        assert (one.method, one.layer, one.facts.target) == (two.method, two.layer, two.facts.target)
        assert apart(one.map, two.map) < 1e-12


def test_p21_a_question_asked_twice_in_one_sweep_is_answered_twice() -> None:
    net = nets.smooth_tail(2, 11)
    x = net.x(2)
    found = cl.sweep(net, x, targets=[0, 1, 0], methods=["gradcam", "Grad-CAM"], layers=[net.layer])
    assert len(found) == 6
    for e, k in zip(found, [0, 0, 1, 1, 0, 0], strict=True):
        assert apart(e.map, cl.explain(net, x, target=k, layer=net.layer).map) < 1e-12


def test_p21_a_layer_asked_for_by_two_names_is_answered_at_each() -> None:
    net = nets.smooth_tail(2, 11)
    found = cl.sweep(net, net.x(2), targets=[0, 1], layers=["features", net.features])
    assert [e.layer for e in found] == ["features"] * 4


@pytest.mark.parametrize("name", ["gap_linear", "flatten_linear"])
def test_p21_a_class_without_weights_has_the_same_status_on_every_path(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "WORTH", 1)
    net = nets.TAILS[name](2, 12)
    with torch.no_grad():
        net.head.weight[1] = 0
    x = net.x(1)
    closed = cl.explain(net, x, target=1, layer=net.layer).status
    monkeypatch.setattr(heads, "recognise", lambda *_: None)
    monkeypatch.setattr(evidence, "GRADIENT_BYTES", 1)
    assert closed == cl.sweep(net, x, targets=[1, 0], layers=[net.layer])[0].status


# ---------------------------------------------------------------------- P23, P24, P26: degenerate, blind, half precise


@dimensions
def test_p23_at_a_single_place_gradcam_hirescam_and_xgradcam_are_one(dims: int) -> None:
    """The formulas agree there; a layer of one place is refused all the same, for it shows nothing."""
    act, grad = (torch.randn(3, 4, *(1,) * dims, dtype=torch.float64) for _ in range(2))
    grad_cam, hires, xgrad = (READERS[m](act, grad) for m in ("gradcam", "hirescam", "xgradcam"))
    assert grad_cam.shape == (3, *(1,) * dims) and apart(grad_cam, hires) < 1e-12 and apart(xgrad, hires) < 1e-12
    net = nets.smooth_tail(dims, 13)
    net.features.append(nets._kind("AdaptiveAvgPool", dims)(1))
    net.tail = nn.Sequential(nn.Flatten(), nn.Linear(4, nets.CLASSES))
    nets.seeded(net, 13)
    with pytest.raises(LayerError, match=r"one place only.*use layer='features"):
        cl.explain(net, net.x(2), target=1, layer="features")


def test_p23_a_picture_without_any_activation_is_told_and_shown_blank() -> None:
    net = nets.gap_linear(2, 14)
    with torch.no_grad():
        net.features[2].weight.zero_()
        net.features[2].bias.fill_(-1.0)  # every activation is dead, no gradient is
    for e in cl.sweep(net, net.x(2), targets=[1], methods=METHODS, layers=["features"]):
        assert (e.map == 0).all() and e.statuses == ("no evidence",) * 2, e.method
        assert (e.heatmap() == 0).all() and e.heatmap().isfinite().all()


def test_p23_a_picture_whose_score_does_not_change_is_told_among_others_that_do() -> None:
    net = nets.smooth_tail(2, 14)
    only_first = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for e in cl.sweep(net, net.x(2), targets=[lambda y: y[:, 1] * only_first], methods=NO_HEAD, layers=["features"]):
        assert e.statuses[1] == "zero gradient" and e.statuses[0] in ("ok", "all-negative"), e.method
        assert (e.heatmap(1) == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_p23_a_picture_that_holds_nan_is_told_and_shown_blank_among_others_that_do_not(method: str) -> None:
    net = nets.gap_linear(2, 14)
    x = net.x(2)
    clean = cl.explain(net, x, target=1, method=method, layer="features")
    x[1, 0, 3, 3] = torch.nan
    e = cl.explain(net, x, target=1, method=method, layer="features")
    assert e.statuses == (clean.statuses[0], "non-finite") and apart(e.map[:1], clean.map[:1]) < 1e-10
    assert (e.heatmap(1) == 0).all() and torch.equal(e.heatmap(0), clean.heatmap(0))


@pytest.mark.parametrize("registers", [0, 1, 4])
def test_p24_a_layer_whose_patches_the_class_token_never_reads_is_refused_and_the_right_one_named(
    registers: int,
) -> None:
    net = nets.token_net(registers)
    for blind in ("blocks.1", "norm", "blocks.1.mlp"):
        with pytest.raises(LayerError, match=r"blocks\.(0|1\.norm1)'"):
            cl.explain(net, net.x(1), target=1, layer=blind)
    chosen = cl.explain(net, net.x(1), target=1)
    assert chosen.layer in ("blocks.0", "blocks.1.norm1") and chosen.status in ("ok", "all-negative")


def test_p24_the_gradient_at_the_last_blocks_patches_is_exactly_zero_for_a_class_token_head() -> None:
    net = nets.token_net(1)
    x, kept = net.x(1), []
    with net.blocks[1].register_forward_hook(lambda _m, _a, made: kept.append(made)):
        y = net(x.requires_grad_())
    (grad,) = torch.autograd.grad(y[0, 1], kept[0])
    assert (grad[:, net.prefix :] == 0).all() and (grad[:, :1] != 0).any()


def test_p24_the_same_layer_is_read_where_the_head_takes_the_mean_of_the_patches() -> None:
    net = nets.token_net(2, "mean")
    assert cl.explain(net, net.x(1), target=1, layer="blocks.1").status in ("ok", "all-negative")


half_precisions = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


@half_precisions
@pytest.mark.parametrize("name", [*nets.TAILS, "channels_last", "tokens_class", "tokens_mean"])
def test_p26_half_precision_ranks_the_places_as_full_precision_does(name: str, dtype: torch.dtype) -> None:
    net = net_called(name, 15).float()
    if name in nets.TAILS and name != "flatten_linear":
        net.shape = (2, 20, 26)  # with few places a single swap of neighbours would decide
    x = net.x(1).to(dtype)
    whole, half = mapped(net, x.float()), mapped(net.to(dtype), x)
    for method in NO_HEAD:
        assert half[method].dtype == torch.float32 and half[method].isfinite().all()
        # With bfloat16's eight bits the net itself takes other turns at a ReLU, a maximum or a softmax.
        turns = name in ("relu_tail", "biased_tail", "gmp_linear") or name not in nets.TAILS
        enough = 0.99 if dtype == torch.bfloat16 and turns else 0.999
        assert spearman(half[method], whole[method]) > enough, method


@half_precisions
@pytest.mark.parametrize("name", ["gmp_linear", "relu_tail", "biased_tail", "smooth_tail"])
def test_p26_what_half_precision_left_is_summed_in_full_precision(name: str, dtype: torch.dtype) -> None:
    net = nets.TAILS[name](2, 15).to(dtype)
    x = net.x(2)
    act = net.act(x).requires_grad_()
    (grad,) = torch.autograd.grad(net.tail(act)[:, 1].float().sum(), act)
    for method, map in mapped(net, x).items():
        assert apart(map, REPLICAS[method](act, grad)) < 2e-3, method


def test_p26_gradients_beyond_the_range_of_half_precision_are_not_lost() -> None:
    net = nets.smooth_tail(2, 16).float()
    with torch.no_grad():
        net.head.weight.mul_(1e-6)
    x = net.x(1)
    whole = mapped(net, x)
    half = mapped(net.half(), x.half())
    for method in NO_HEAD:
        assert spearman(half[method], whole[method]) > 0.99, method


@half_precisions
def test_p26_large_gradients_in_half_precision_stay_finite(dtype: torch.dtype) -> None:
    net = nets.smooth_tail(2, 16).float()
    with torch.no_grad():
        net.head.weight.mul_(2000.0)
    x = net.x(1)
    whole = mapped(net, x)
    half = mapped(net.to(dtype), x.to(dtype))
    for method in NO_HEAD:
        assert half[method].isfinite().all(), method
        assert spearman(half[method], whole[method]) > 0.99, method


# ----------------------------------------------------------------------------------------- what a head is mistaken for


def test_cam_is_refused_where_the_pool_leaves_places_out() -> None:
    """A pool that never sees the last row is no global average, however alike the two means are."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        net = cropping().to(dtype)
        x = (1 + net.x(1) / 100).to(dtype)
        with pytest.raises(MethodError):
            cl.explain(net, x, target=1, method="cam", layer="features")


@pytest.mark.parametrize("x", ["noise", "flat"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_row_the_pool_leaves_out_has_no_evidence_whatever_the_picture(x: str, dtype: torch.dtype) -> None:
    net = cropping().to(dtype)
    picture = (1 + net.x(1) / 100).to(dtype) if x == "noise" else torch.ones(1, *net.shape, dtype=dtype)
    found = mapped(net, picture, 1, ["hirescam"])["hirescam"]
    assert (found[:, -1] == 0).all() and (found[:, :-1] != 0).any()


def cropping() -> nets.Net:
    """Pointwise features; an average pool of stride two whose windows do not reach the last of nine rows."""
    features = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Softplus())
    tail = nn.Sequential(nn.AvgPool2d(2), MeanOf(), nn.Linear(4, nets.CLASSES))
    return nets.seeded(nets.Net(features, tail, (2, 9, 8)), 17)


class MeanOf(nn.Module):
    def forward(self, act: Tensor) -> Tensor:
        return act.mean((2, 3))


class ReluAfterHead(nn.Module):
    """As the first Network in Network had it: a ReLU between the last 1×1 convolution and the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.classes = nn.ReLU(), nn.Conv2d(1, 2, 1)
        nn.init.ones_(self.classes.weight)
        nn.init.constant_(self.classes.bias, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.features(x)).relu().mean((2, 3))


@pytest.mark.parametrize(("dtype", "below"), [(torch.float32, 1e-4), (torch.bfloat16, 0.03)], ids=["f32", "bf16"])
def test_a_place_that_a_relu_cuts_off_has_no_evidence_however_little_it_cuts(dtype: torch.dtype, below: float) -> None:
    x = torch.tensor([[[[1 - below, 3.0, 5.0, 2.0]]]], dtype=dtype)
    found = cl.explain(ReluAfterHead().to(dtype).eval(), x, target=0, method="hirescam", layer="features").map
    assert found.tolist() == [[[0.0, 0.75, 1.25, 0.5]]]
