"""Labels, binary answers and numbers: scores and probabilities by their formulas, and what is said of them."""

import math
import runpy
from pathlib import Path
from typing import Any

import nets
import pytest
import torch
from replicas import apart
from torch import nn

import camlucida as cl
from camlucida.errors import TargetError

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def sigmoid(y: float) -> float:
    return 1 / (1 + math.exp(-y))


@pytest.mark.parametrize("method", ["gradcam", "cam", "scorecam"])
def test_a_labels_map_is_its_classes_and_its_probability_its_own_sigmoid(method: str) -> None:
    net = nets.gap_linear()
    x = net.x(2)
    e, plain = (cl.explain(net, x, target=t, method=method, layer=net.layer) for t in (cl.labels(3), 3))
    assert apart(e.map, plain.map) < 1e-12 and e.label() == "label 3"
    for i, y in enumerate(net(x)[:, 3].tolist()):
        assert e.probability(i) == pytest.approx(sigmoid(y), rel=1e-6) and f"{sigmoid(y):.0%}" in e.caption(i)
        assert e.summary(i)["score"].endswith(f"(probability {sigmoid(y):.3g})")
    assert plain.probability() != pytest.approx(e.probability()) and e.confident() is None
    assert apart(e.probabilities.double(), net(x).detach().sigmoid().double()) < 1e-6


def test_the_likeliest_label_and_the_sigmoid_as_score() -> None:
    net = nets.gap_linear()
    x = net.x(3)
    e = cl.explain(net, x, target=cl.labels(score="sigmoid"), layer=net.layer)
    y = net(x).detach()
    assert e.classes.tolist() == y.argmax(1).tolist()
    assert apart(e.scores, y.amax(1).sigmoid()) < 1e-12 and e.facts.target == "top 1, sigmoid"


class One(nn.Module):
    """One number a picture: a class of another net, less what is ``apart`` from it by a constant."""

    def __init__(self, net: nets.Net, less: float) -> None:
        super().__init__()
        self.net, self.less = net, less

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)[:, 1:2] - self.less


def one_number(net: nets.Net) -> nn.Module:
    """Above zero for one of two pictures, below for the other."""
    return One(net, float(net(net.x(2)).detach()[:, 1].mean())).eval()


def test_a_binary_answer_has_two_sides() -> None:
    net = nets.smooth_tail()
    x, one = net.x(2), one_number(net)
    y = one(x).detach()[:, 0]
    plain = cl.explain(one, x, target=0, layer="net.features")
    yes, no, either = (cl.explain(one, x, target=cl.binary(k), layer="net.features") for k in (1, 0, None))
    assert apart(yes.map, plain.map) < 1e-12 and apart(no.map, -plain.map) < 1e-12
    assert yes.classes.tolist() == [1, 1] and no.classes.tolist() == [0, 0]
    assert either.classes.tolist() == (y > 0).long().tolist()
    for i in range(2):
        p = sigmoid(float(y[i]))
        assert yes.probability(i) == pytest.approx(p) and no.probability(i) == pytest.approx(1 - p)
        assert either.probability(i) == pytest.approx(max(p, 1 - p)) and float(either.scores[i]) == abs(float(y[i]))
        assert apart(either.map[i], (yes if y[i] > 0 else no).map[i]) < 1e-12
    assert no.label() == "class 0" and "class 0" in no.caption() and str(cl.binary()).startswith("the likelier")


@pytest.mark.parametrize("method", ["scorecam", "occlusion"])
def test_the_likelier_side_is_held_while_a_method_asks_again(method: str) -> None:
    """Where the disturbed number changes its sign, its size would rise again."""
    net = nets.gap_linear()
    x = net.x(1)
    near = One(net, 0.99 * float(net(x).detach()[0, 1])).eval()
    side = int(near(x) > 0)
    held, free = (cl.explain(near, x, target=cl.binary(k), method=method) for k in (side, None))
    assert apart(free.map, held.map) < 1e-12 and held.map.abs().max() > 0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_is_raised_or_lowered_and_has_no_probability(sign: int) -> None:
    net = nets.gap_linear()
    x = net.x(2)
    e, plain = (cl.explain(net, x, target=t, layer=net.layer) for t in (cl.value(2, sign), 2))
    assert apart(e.map, sign * plain.map) < 1e-12 and apart(e.scores, sign * plain.scores) < 1e-12
    assert e.probability() is None and e.probabilities is None and e.label() == "output 2"
    number = float(net(x)[1, 2].detach())
    assert e.caption(1).startswith(f"output 2 = {number:.3g}, {'raised' if sign == 1 else 'lowered'} · ")


def test_kinds_are_kept_on_disk(tmp_path: Path) -> None:
    net = nets.gap_linear()
    for target in (cl.labels(1), cl.value(0, -1)):
        e = cl.explain(net, net.x(2), target=target, layer=net.layer)
        for name in ("a.npz", "a.safetensors"):
            e.save(tmp_path / name)
            again = cl.load_explanation(tmp_path / name)
            assert again.caption(1) == e.caption(1) and again.summary(1) == e.summary(1)


@pytest.mark.parametrize(
    "make",
    [lambda: cl.labels(1, "probability"), lambda: cl.labels(1, "margin"), lambda: cl.labels("dog"),
     lambda: cl.labels([]), lambda: cl.binary(2), lambda: cl.binary(True), lambda: cl.binary(-1),
     lambda: cl.value(0, 2), lambda: cl.value(0, True), lambda: cl.value("age"), lambda: cl.value([])],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make: Any) -> None:
    with pytest.raises(TargetError):
        make()


def test_binary_is_no_class_of_several_in_a_sweep_either() -> None:
    net = nets.gap_linear()
    with pytest.raises(TargetError, match="one number a picture"):
        cl.sweep(net, net.x(1), targets=[0, cl.binary(1), 4], layers=[net.layer])


@pytest.mark.parametrize("end", [nn.Sigmoid(), nn.Sequential(nn.Sigmoid(), nn.Flatten(0), nn.Unflatten(0, (2, -1)))])
def test_a_sigmoid_at_the_end_is_no_logit(end: nn.Module) -> None:
    """The sigmoid of a probability lies above one half, whatever it is."""
    net = nets.gap_linear()
    x, ended = net.x(2), nn.Sequential(net, end).eval()
    with pytest.raises(TargetError, match=r"ends in a sigmoid.*output=torch.logit"):
        cl.explain(ended, x, target=cl.labels(3), layer=f"0.{net.layer}")
    e = cl.explain(ended, x, target=cl.labels(3), layer=f"0.{net.layer}", output=torch.logit)
    assert e.probability(1) == pytest.approx(float(net(x).detach()[1, 3].sigmoid()), rel=1e-6)
    assert cl.explain(ended, x, target=3, layer=f"0.{net.layer}").label() == "class 3"  # its score is what it is


def test_binary_asked_of_several_numbers_says_what_to_ask() -> None:
    net = nets.gap_linear()
    with pytest.raises(TargetError, match=r"this one has 5.*cl\.labels\(0\)"):
        cl.explain(net, net.x(1), target=cl.binary(), layer=net.layer)
    with pytest.raises(TargetError, match="class 9 does not exist"):
        cl.explain(net, net.x(1), target=cl.value(9), layer=net.layer)


@pytest.mark.parametrize("k", [0, 1])
def test_noisy_views_keep_the_side_of_the_picture_as_it_is(k: int) -> None:
    net = nets.smooth_tail()
    x, one = net.x(2), one_number(net)
    e = cl.smooth(one, x[:1], target=cl.binary(k), samples=2, layer="net.features")
    assert e.classes.tolist() == [k] and e.map.isfinite().all()


# --- examples/multilabel.py


def test_multilabel_finds_each_label_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path(str(EXAMPLES / "multilabel.py"))["main"](str(tmp_path / "a" / "labels.png"))
    assert found == {"red": True, "blue": True} and "green 12%" in capsys.readouterr().out
    assert (tmp_path / "a" / "labels.png").stat().st_size > 5000
