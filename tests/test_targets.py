"""Targets: every way of scoring against its formula, and an error for whatever could mean two things or nothing."""

import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import nets
import numpy as np
import pytest
import torch
from replicas import apart
from torch import Tensor, nn

import camlucida as cl
from camlucida.core import targets
from camlucida.core.targets import SCORES, ClassTarget, as_target, classes, logits, rank, top, top1
from camlucida.errors import TargetError

Y = torch.tensor([[0.5, -1.0, 2.0, 0.25], [3.0, 3.5, -2.0, 0.0], [-1.0, -2.0, -3.0, -4.0]], dtype=torch.float64)


def softmax(row: list[float]) -> list[float]:
    largest = max(row)
    powers = [math.exp(v - largest) for v in row]
    return [p / sum(powers) for p in powers]


BY_HAND = {
    "logit": lambda row, k: row[k],
    "probability": lambda row, k: softmax(row)[k],
    "log_probability": lambda row, k: math.log(softmax(row)[k]),
    "margin": lambda row, k: row[k] - max(v for j, v in enumerate(row) if j != k),
    "logit_minus_mean": lambda row, k: row[k] - sum(row) / len(row),
    "rest": lambda row, k: row[k] + math.log(softmax(row)[k]),
    "sigmoid": lambda row, k: 1 / (1 + math.exp(-row[k])),
    "minus": lambda row, k: -row[k],
    "side": lambda row, k: abs(row[k]),
}
every_score = pytest.mark.parametrize("score", SCORES)


def test_every_way_of_scoring_has_a_formula_here() -> None:
    assert set(BY_HAND) == set(SCORES)


# -------------------------------------------------------------------------------------------------------------- values


@every_score
@pytest.mark.parametrize("k", range(4))
def test_score_of_a_class_is_its_formula(score: str, k: int) -> None:
    expected = torch.tensor([BY_HAND[score](row, k) for row in Y.tolist()], dtype=torch.float64)
    assert apart(classes(k, score)(Y), expected) < 1e-12


@every_score
def test_score_of_one_class_for_each_picture_is_its_formula(score: str) -> None:
    expected = [BY_HAND[score](row, k) for row, k in zip(Y.tolist(), [3, 0, 2], strict=True)]
    assert apart(classes([3, 0, 2], score)(Y), torch.tensor(expected, dtype=torch.float64)) < 1e-12


@every_score
@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_rank_scores_each_pictures_own_class_of_that_place(score: str, place: int) -> None:
    picked = [sorted(range(4), key=row.__getitem__, reverse=True)[place - 1] for row in Y.tolist()]
    assert rank(place, score).pick(Y).tolist() == picked
    expected = [BY_HAND[score](row, k) for row, k in zip(Y.tolist(), picked, strict=True)]
    assert apart(rank(place, score)(Y), torch.tensor(expected, dtype=torch.float64)) < 1e-12


@every_score
def test_gradient_of_a_score_is_that_of_its_formula(score: str) -> None:
    leaf = Y.clone().requires_grad_()
    (grad,) = torch.autograd.grad(classes([3, 0, 2], score)(leaf).sum(), leaf)
    step = 1e-6
    for i, k in enumerate([3, 0, 2]):
        for j in range(4):
            up, down = ([v + by * (c == j) for c, v in enumerate(Y[i].tolist())] for by in (step, -step))
            slope = (BY_HAND[score](up, k) - BY_HAND[score](down, k)) / (2 * step)
            assert float(grad[i, j]) == pytest.approx(slope, abs=1e-8)


def test_picking_a_class_takes_no_part_in_the_gradient() -> None:
    leaf = Y.clone().requires_grad_()
    (grad,) = torch.autograd.grad(top1(leaf).sum(), leaf)
    assert torch.equal(grad, torch.nn.functional.one_hot(Y.argmax(1), 4).double())


@every_score
def test_scores_stay_finite_for_logits_of_any_size(score: str) -> None:
    for size in (1e-30, 1.0, 1e4, 1e30):
        assert classes(1, score)((Y * size).float()).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_score
def test_scores_of_half_precision_logits_are_taken_in_full_precision(score: str, dtype: torch.dtype) -> None:
    half = Y.to(dtype)
    found = classes(1, score)(half)
    assert found.dtype == torch.float32
    assert apart(found, torch.tensor([BY_HAND[score](row, 1) for row in half.tolist()])) < 1e-6


def test_top_is_the_ranks_in_order() -> None:
    assert top(3) == [rank(1), rank(2), rank(3)] and top(1)[0] == top1 == rank(1)
    assert [t.score for t in top(2, "margin")] == ["margin", "margin"]


def test_per_picture_classes_are_explained_per_picture() -> None:
    net = nets.smooth_tail()
    x = net.x(3)
    together = cl.explain(net, x, target=classes([4, 0, 2]), layer=net.layer)
    assert together.classes.tolist() == [4, 0, 2]
    for i, k in enumerate([4, 0, 2]):
        alone = cl.explain(net, x, target=k, layer=net.layer)
        assert apart(together.map[i], alone.map[i]) < 1e-12 and apart(together.scores[i], alone.scores[i]) == 0


def test_top1_is_each_pictures_own_best_class() -> None:
    net = nets.flatten_linear(seed=5)
    x = net.x(6)
    with torch.no_grad():
        y = net(x)
    e = cl.explain(net, x, layer=net.layer)
    assert e.classes.tolist() == y.argmax(1).tolist() and len(set(e.classes.tolist())) > 1
    assert apart(e.scores, y.amax(1)) < 1e-12


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("index", [4, 5, 1000, -1, -4])
def test_class_that_does_not_exist_is_an_error_that_tells_how_many_there_are(index: int) -> None:
    with pytest.raises(TargetError, match=rf"class {index} does not exist.*4 classes, 0 to 3"):
        classes(index)(Y)
    with pytest.raises(TargetError, match=rf"class {index} "):
        classes([0, index, 0])(Y)


def test_class_that_does_not_exist_is_an_error_through_explain() -> None:
    net = nets.gap_linear()
    for index in (5, -1, 5000):
        with pytest.raises(TargetError, match="0 to 4"):
            cl.explain(net, net.x(2), target=index, layer=net.layer)


@pytest.mark.parametrize(
    "index",
    [True, False, np.True_, torch.tensor(True), 1.0, np.float32(1), "cat", "1", None, torch.tensor(1.0), {}, b"1"],
    ids=repr,
)
def test_index_that_is_no_whole_number_is_an_error(index: object) -> None:
    with pytest.raises(TargetError):
        as_target(index)


@pytest.mark.parametrize("make", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_mask_is_no_sequence_of_classes(make: Any) -> None:
    with pytest.raises(TargetError):
        classes(make([True, False, True]))


@pytest.mark.parametrize(
    "index",
    [2, np.int64(2), np.int8(2), np.uint16(2), np.array(2), torch.tensor(2), torch.tensor(2, dtype=torch.uint8)],
    ids=repr,
)
def test_whole_number_of_any_make_is_a_class(index: object) -> None:
    assert as_target(index) == ClassTarget((2,))


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor, iter], ids=lambda make: make.__name__)
def test_sequence_of_any_make_is_one_class_a_picture(make: Any) -> None:
    assert classes(make([1, 0, 3])) == ClassTarget((1, 0, 3))


@pytest.mark.parametrize("count", [2, 4])
def test_classes_that_do_not_fit_the_batch_are_an_error(count: int) -> None:
    with pytest.raises(TargetError, match=rf"{count} classes for 3 pictures"):
        classes([0] * count)(Y)


@pytest.mark.parametrize("nothing", [[], (), np.array([], dtype=int), torch.tensor([], dtype=torch.long)], ids=str)
def test_no_class_at_all_is_an_error(nothing: Any) -> None:
    with pytest.raises(TargetError, match="empty"):
        classes(nothing)


@pytest.mark.parametrize("several", [[1, 2], (1, 2), [1], [], range(2)], ids=str)
def test_bare_list_in_explain_is_an_error_that_tells_both_readings(several: Any) -> None:
    net = nets.gap_linear()
    with pytest.raises(TargetError, match=r"classes\(\[.*sweep\("):
        cl.explain(net, net.x(2), target=several, layer=net.layer)


@pytest.mark.parametrize("place", [0, -1, -5, True, False])
def test_rank_that_does_not_exist_is_an_error(place: Any) -> None:
    with pytest.raises(TargetError):
        rank(place)


def test_rank_beyond_the_classes_is_an_error() -> None:
    with pytest.raises(TargetError, match=r"rank 5 .* 4 classes"):
        rank(5)(Y)


@pytest.mark.parametrize("make", [lambda s: classes(1, s), lambda s: rank(1, s), lambda s: top(2, s)])
def test_unknown_way_of_scoring_is_an_error_that_names_the_nearest(make: Any) -> None:
    with pytest.raises(TargetError, match=r"no score 'logits'.*'logit'"):
        make("logits")


@pytest.mark.parametrize(
    "target",
    [lambda y: y, lambda y: y.sum(), lambda y: y[:1, 0], lambda y: y[:, :2], lambda y: y[:, 0, None, None],
     lambda y: 3.0, lambda y: None, lambda y: [1.0, 2.0], lambda y: y[:, 0].tolist()],
)  # fmt: skip
def test_target_that_gives_no_score_a_picture_is_an_error_that_tells_the_shape_it_must_have(target: Any) -> None:
    net = nets.smooth_tail()
    with pytest.raises(TargetError, match=r"one score a picture, shape \(2,\)"):
        cl.explain(net, net.x(2), target=target, layer=net.layer)


@pytest.mark.parametrize("target", [lambda y: y[:, 1], lambda y: y[:, 1:2]], ids=["b", "b 1"])
def test_target_may_give_a_column(target: Any) -> None:
    net = nets.smooth_tail()
    x = net.x(2)
    own, named = (cl.explain(net, x, target=t, layer=net.layer) for t in (target, 1))
    assert apart(own.map, named.map) < 1e-12 and apart(own.scores, named.scores) == 0


def test_target_of_a_single_picture_may_give_a_bare_number() -> None:
    net = nets.smooth_tail()
    x = net.x(1)
    bare = cl.explain(net, x, target=lambda y: y[0, 1], layer=net.layer)
    assert apart(bare.map, cl.explain(net, x, target=1, layer=net.layer).map) < 1e-12


def test_target_that_raises_raises_its_own_error() -> None:
    def broken(_y: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    net = nets.smooth_tail()
    with pytest.raises(ZeroDivisionError, match="mine"):
        cl.explain(net, net.x(1), target=broken, layer=net.layer)


# ------------------------------------------------------------------------------------------------------- model outputs


class ModelOutput(OrderedDict):
    """As transformers has it: a mapping whose values are attributes too, and which a number indexes."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(fields)
        self.__dict__.update(fields)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


@dataclass
class Result:
    logits: Tensor
    hidden: Tensor


@dataclass
class Nameless:
    aux: Tensor
    scores: Tensor


Pair = namedtuple("Pair", ["scores", "attention"])
HIDDEN = torch.zeros(3, 7, 6)
OUTPUTS = {
    "tensor": Y, "dict": {"logits": Y, "hidden": HIDDEN}, "dict with two flat": {"logits": Y, "pooled": Y[:, :2]},
    "segmentation name": {"out": Y, "aux": Y[:, :2]}, "tuple": (Y, HIDDEN), "tuple, later": (HIDDEN, Y), "list": [Y],
    "named tuple": Pair(Y, HIDDEN), "dataclass": Result(Y, HIDDEN), "nameless dataclass": Nameless(HIDDEN, Y),
    "ModelOutput": ModelOutput(loss=torch.zeros(()), logits=Y, hidden_states=(HIDDEN, HIDDEN)),
    "dict of one": {"prediction": Y}, "with whole numbers": (torch.zeros(3, 4, dtype=torch.long), Y),
}  # fmt: skip


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_class_scores_are_found_in_whatever_a_model_returns(output: Any) -> None:
    assert logits(output) is Y
    assert torch.equal(classes(2)(output), Y[:, 2])


@pytest.mark.parametrize(
    "output",
    [(Y, Y.clone()), {"a": Y, "b": Y[:, :2]}, (HIDDEN, HIDDEN), {}, (), None, "text", Nameless(Y, Y), Result,
     torch.zeros(3, 4, 5, 5), torch.zeros(()), {"logits": torch.zeros(3, 4, 5, 5)}],
)  # fmt: skip
def test_output_with_none_or_several_candidates_is_an_error_that_shows_how_to_choose(output: Any) -> None:
    with pytest.raises(TargetError, match="target"):
        logits(output)


def test_output_that_is_ambiguous_is_told_by_the_names_it_holds() -> None:
    with pytest.raises(TargetError, match=r"2 outputs .*first \(3, 4\), second \(3, 4\).*output="):
        logits({"first": Y, "second": Y})


class Wrapped(nn.Module):
    def __init__(self, net: nets.Net, wrap: Any) -> None:
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.net(x))


@pytest.mark.parametrize(
    "wrap",
    [lambda y: {"logits": y, "aux": y[:, :2]}, lambda y: (y, y[:, :, None]), lambda y: Result(y, y[:, :, None]),
     lambda y: ModelOutput(loss=y.sum(), logits=y)],
    ids=["dict", "tuple", "dataclass", "ModelOutput"],
)  # fmt: skip
@pytest.mark.parametrize("make", [nets.gap_linear, nets.smooth_tail], ids=["gap", "smooth"])
def test_model_that_wraps_its_logits_has_the_same_map(make: Any, wrap: Any) -> None:
    net = make()
    x = net.x(2)
    plain = cl.explain(net, x, target=3, layer="features")
    wrapped = cl.explain(Wrapped(net, wrap).eval(), x, target=3, layer="net.features")
    assert apart(wrapped.map, plain.map) < 1e-12 and apart(wrapped.scores, plain.scores) < 1e-12


@pytest.mark.parametrize("squeeze", [False, True], ids=["b 1", "b"])
def test_model_of_one_number_a_picture_has_one_class(squeeze: bool) -> None:
    net = nets.smooth_tail()
    one = Wrapped(net, (lambda y: y[:, 1]) if squeeze else (lambda y: y[:, 1:2])).eval()
    x = net.x(2)
    expected = cl.explain(net, x, target=1, layer="features")
    for target in (0, top1, cl.classes([0, 0])):
        e = cl.explain(one, x, target=target, layer="net.features")
        assert apart(e.map, expected.map) < 1e-12 and e.classes.tolist() == [0, 0] and e.probability() is None
    for wrong in (1, rank(2), classes(0, "margin")):
        with pytest.raises(TargetError):
            cl.explain(one, x, target=wrong, layer="net.features")


def test_dense_output_is_explained_by_a_target_of_ones_own_and_by_no_class() -> None:
    net = nets.relu_tail()
    dense = Wrapped(nets.Net(net.features, net.tail[:2], net.shape), lambda y: y).eval()
    x = net.x(2)
    e = cl.explain(dense, x, target=lambda y: y[:, 1].mean((1, 2)), layer="net.features")
    assert e.map.shape == (2, 8, 9) and e.classes is None and e.map.abs().max() > 0
    with pytest.raises(TargetError, match="target"):
        cl.explain(dense, x, target=1, layer="net.features")


# ---------------------------------------------------------------------------------------------------------- P10 to P12


def test_p10_margin_of_the_best_class_is_its_map_less_the_runner_ups() -> None:
    net = nets.smooth_tail(2, 3)
    x = net.x(3)
    asked = [top1, rank(2), rank(1, "margin")]
    best, second, margin = (e.map for e in cl.sweep(net, x, targets=asked, methods=["hirescam"], layers=["features"]))
    assert apart(margin, best - second) < 1e-10


def test_p10_logit_minus_mean_is_a_map_less_the_mean_of_all_maps() -> None:
    net = nets.smooth_tail(2, 4)
    x = net.x(2)
    asked = [*range(5), classes(1, "logit_minus_mean")]
    *each, centred = (e.map for e in cl.sweep(net, x, targets=asked, methods=["gradcam"], layers=["features"]))
    assert apart(centred, each[1] - torch.stack(each).mean(0)) < 1e-10


def test_p11_the_log_probabilities_maps_sum_to_zero_under_the_probabilities() -> None:
    net = nets.smooth_tail(2, 5)
    x = net.x(2)
    asked = [classes(k, "log_probability") for k in range(5)]
    stack = torch.stack([e.map for e in cl.sweep(net, x, targets=asked, methods=["xgradcam"], layers=["features"])])
    with torch.no_grad():
        p = net(x).softmax(1)
    mixed = torch.einsum("bk,kbhw->bhw", p, stack)
    assert float(mixed.abs().max()) < 1e-10 * float(stack.abs().max())


def test_p12_a_negative_scale_turns_the_map_around() -> None:
    net = nets.smooth_tail(2, 6)
    x = net.x(2)
    for method in ("gradcam", "hirescam", "xgradcam"):
        plain = cl.explain(net, x, target=1, method=method, layer="features").map
        turned = cl.explain(net, x, target=lambda y: -y[:, 1], method=method, layer="features").map
        assert apart(turned, -plain) < 1e-12


# ------------------------------------------------------------------------------------------------------ how it is told


@pytest.mark.parametrize(
    ("target", "said"),
    [(classes(3), "class 3"), (classes([1, 2]), "class per picture"), (classes([2, 2]), "class 2"), (top1, "top 1"),
     (rank(2, "log_probability"), "top 2, log probability"), (classes(3, "margin"), "class 3, margin")],
)  # fmt: skip
def test_target_says_what_it_is(target: ClassTarget, said: str) -> None:
    assert str(target) == said


def test_target_can_be_compared_and_kept_in_a_set() -> None:
    assert {classes(1), classes([1]), classes(1, "margin")} == {classes(1), classes(1, "margin")}
    assert targets.top1 is cl.top1


# ----------------------------------------------------------------------------------------------------------- contrasts


def finer_by_hand(row: list[float], k: int, rivals: int, alpha: float) -> tuple[float, dict[int, float]]:
    """Zhang 2025: the score and its weights, ``{class: weight}``."""
    near = sorted((j for j in range(len(row)) if j != k), key=lambda j: abs(row[j] - row[k]))[:rivals]
    p = softmax(row)
    weights = {j: alpha * p[j] / sum(p[i] for i in near) for j in near}
    return row[k] - sum(w * row[j] for j, w in weights.items()), weights


@pytest.mark.parametrize("rivals", [1, 2, 3, 9])
@pytest.mark.parametrize("k", [None, 0, 3, [3, 0, 2]])
def test_finer_is_its_formula_with_weights_held_fixed(rivals: int, k: Any) -> None:
    """The peer's weights take part in its gradient; the paper's are numbers."""
    leaf = Y.clone().requires_grad_()
    found = targets.finer(k, rivals, 0.7)(leaf)
    (grad,) = torch.autograd.grad(found.sum(), leaf)
    for i, row in enumerate(Y.tolist()):
        own = row.index(max(row)) if k is None else k[i] if isinstance(k, list) else k
        score, weights = finer_by_hand(row, own, rivals, 0.7)
        assert float(found[i].detach()) == pytest.approx(score, abs=1e-12)
        for j in range(4):
            assert float(grad[i, j]) == pytest.approx((j == own) - weights.get(j, 0.0), abs=1e-12)


def test_finer_stays_finite_where_all_rivals_have_no_probability() -> None:
    y = torch.tensor([[1e30, -1e30, 3e4, -7.0]])
    assert targets.finer(0)(y).isfinite().all() and targets.finer(3)(y).isfinite().all()


@pytest.mark.parametrize("method", ["cam", "gradcam", "hirescam", "xgradcam"])
@pytest.mark.parametrize("many", [False, True])
def test_map_of_a_contrast_is_the_contrast_of_the_maps(method: str, many: bool) -> None:
    """P10, by closed form and by autograd, alone and among many targets."""
    net = nets.gap_linear()
    x = net.x(2)
    asked = [targets.against(1, 3), targets.finer(None, 2, 0.8)] + [targets.against(0, 1, 2)] * 4 * many
    found = cl.sweep(net, x, targets=asked, methods=[method], layers=[net.layer])
    own = [cl.explain(net, x, target=k, method=method, layer=net.layer).map for k in range(5)]
    assert apart(found[0].map, own[1] - own[3]) < 1e-12 and found[0].classes.tolist() == [1, 1]
    with torch.no_grad():
        y = net(x)
    for i, row in enumerate(y.tolist()):
        k = row.index(max(row))
        _, weights = finer_by_hand(row, k, 2, 0.8)
        assert apart(found[1].map[i], own[k][i] - sum(w * own[j][i] for j, w in weights.items())) < 1e-10
    assert found[1].classes.tolist() == y.argmax(1).tolist()
    if many:
        assert apart(found[-1].map, own[0] - (own[1] + own[2]) / 2) < 1e-12


def test_a_contrast_is_a_class_target_with_a_label() -> None:
    net = nets.smooth_tail()
    e = cl.explain(net, net.x(2), target=targets.against(1, 3), layer=net.layer, method="ablationcam")
    assert e.label() == "class 1" and e.facts.target == "class 1 against 3" and e.probability() is not None
    assert str(targets.finer()) == "top 1 against its 3 nearest rivals" and str(classes(1, "finer")).endswith(
        "3 nearest rivals"
    )
    assert (
        str(targets.against([1, 2], 3, 4)) == "class per picture against 3, 4"
        and str(classes(2, "rest")) == "class 2, rest"
    )


@pytest.mark.parametrize("score", ["finer:2:0.8", "finer", "logit", "against:2", "rest"])
def test_fixed_target_scores_and_slopes_as_the_free_one_where_it_was_fixed(score: str) -> None:
    row = Y[1:2].clone().requires_grad_()
    free, fixed = ClassTarget(score=score), ClassTarget(score=score).fixed(1, Y[1:2])
    found = [t(row) for t in (free, fixed)]
    assert apart(found[1], found[0]) < 1e-12
    slopes = [torch.autograd.grad(f.sum(), row)[0] for f in found]
    assert apart(slopes[1], slopes[0]) < 1e-12
    assert fixed.indices == (1,) and fixed.fixed(1, Y[:1]) == fixed


@pytest.mark.parametrize(
    ("make", "match"),
    [(lambda: targets.against(1), "no contrast"), (lambda: targets.against(1, 1), "against itself"),
     (lambda: targets.against([1, 2], 2), "against itself"), (lambda: targets.against(1, 2.5), "whole number"),
     (lambda: targets.finer(rivals=0), "no contrast"), (lambda: targets.finer(alpha=math.nan), "no contrast"),
     (lambda: classes(1, "against:x"), "no contrast"), (lambda: classes(1, "finer:1:2:3"), "no contrast"),
     (lambda: classes(1, "finest"), "finer"), (lambda: classes(1, "logit:3"), "no score"),
     (lambda: targets.against(1, 7)(Y), "class 7 does not exist"), (lambda: targets.finer()(Y[:, :1]), "two classes")],
)  # fmt: skip
def test_contrasts_that_make_no_sense_are_refused(make: Any, match: str) -> None:
    with pytest.raises(TargetError, match=match):
        make()
