"""The rules for rectifiers: every spelling of ReLU, nothing else, this thread only, and no trace."""

import threading
from collections.abc import Callable

import nets
import pytest
import torch
import torch.nn.functional as F
from fingerprint import untouched
from replicas import apart
from test_scorer import subject
from torch import Tensor, nn

import camlucida as cl
from camlucida.core.rules import rectifiers
from camlucida.errors import MethodError

RULES = ("guided", "deconv")
X = torch.tensor([-2.0, -1e-9, 0.0, 1e-9, 1.0, 5.0, 7.0], dtype=torch.float64)
ALONG = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)

SPELLED: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU": nn.ReLU(), "nn.ReLU in place": nn.ReLU(inplace=True), "F.relu": F.relu,
    "F.relu positional in place": lambda x: F.relu(x, True), "F.relu by name": lambda x: F.relu(input=x),
    "F.relu_": F.relu_, "torch.relu": torch.relu, "torch.relu_": torch.relu_, "x.relu": lambda x: x.relu(),
    "x.relu_": lambda x: x.relu_(), "x.clamp": lambda x: x.clamp(min=0), "x.clamp(0)": lambda x: x.clamp(0),
    "x.clamp_": lambda x: x.clamp_(min=0.0), "torch.clamp": lambda x: torch.clamp(x, min=0),
    "x.clamp_min": lambda x: x.clamp_min(0), "x.clip": lambda x: x.clip(0), "nn.Threshold": nn.Threshold(0, 0),
    "F.threshold": lambda x: F.threshold(x, 0.0, 0.0), "torch.threshold": lambda x: torch.threshold(x, 0, 0),
    "no upper bound": lambda x: x.clamp(0, None),
}  # fmt: skip
CAPPED: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU6": nn.ReLU6(), "nn.ReLU6 in place": nn.ReLU6(inplace=True), "F.relu6": F.relu6,
    "F.hardtanh": lambda x: F.hardtanh(x, 0.0, 6.0), "x.clamp": lambda x: x.clamp(0, 6),
    "x.clamp_ by name": lambda x: x.clamp_(max=6, min=0), "torch.clip": lambda x: torch.clip(x, 0.0, 6.0),
}  # fmt: skip
NONE: dict[str, Callable[[Tensor], Tensor]] = {
    "SiLU": F.silu, "GELU": F.gelu, "leaky": lambda x: F.leaky_relu(x, 0.1), "ELU": F.elu,
    "clamp above zero": lambda x: x.clamp(min=0.1), "clamp below zero": lambda x: x.clamp(min=-1),
    "clamp from above": lambda x: x.clamp(max=0), "hardtanh": F.hardtanh, "hardtanh named": nn.Hardtanh(-1, 1),
    "threshold elsewhere": lambda x: F.threshold(x, 0.5, 0.5), "threshold to one": lambda x: F.threshold(x, 0.0, 1.0),
    "clamp by a tensor": lambda x: x.clamp(min=torch.zeros_like(x)), "empty range": lambda x: x.clamp(0, 0),
}  # fmt: skip


def back(call: Callable[[Tensor], Tensor], rule: str, way: float) -> tuple[Tensor, Tensor]:
    x = X.clone().requires_grad_()
    with rectifiers(rule):
        y = call(x * 1)
        x.relu()  # a rectifier, so that calls which are none are no error here
    return y.detach(), torch.autograd.grad(y, x, torch.full_like(X, way))[0]


@pytest.mark.parametrize("way", [3.0, 0.0, -3.0])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", [*SPELLED, *(f"{n} capped" for n in CAPPED)])
def test_every_spelling_of_a_rectifier_takes_the_rule(name: str, rule: str, way: float) -> None:
    capped = name.endswith(" capped")
    call = CAPPED[name.removesuffix(" capped")] if capped else SPELLED[name]
    y, found = back(call, rule, way)
    assert torch.equal(y, X.clamp(0, 6) if capped else X.clamp(0))
    active = [v > 0 and not (capped and v >= 6) for v in X.tolist()]
    assert found.tolist() == [way if way > 0 and (a or rule == "deconv") else 0.0 for a in active]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NONE)
def test_what_is_no_rectifier_keeps_its_own_gradient(name: str, rule: str) -> None:
    x = X.clone().requires_grad_()
    expected = NONE[name](x * 1)
    y, found = back(NONE[name], rule, -3.0)
    assert torch.equal(y, expected.detach())
    assert torch.equal(found, torch.autograd.grad(expected, x, torch.full_like(X, -3.0))[0])


def test_in_place_writes_where_it_would_have() -> None:
    x = X.clone().requires_grad_()
    with rectifiers("guided"):
        y = x * 1
        assert y.relu_() is y and torch.equal(y.detach(), X.clamp(0))
        z = x * 1
        assert z.relu() is not z and torch.equal(z.detach(), X)


def test_whole_numbers_and_tensors_off_the_path_are_left_alone() -> None:
    with rectifiers("guided"):
        assert torch.arange(-1, 2).clamp(min=0).tolist() == [0, 0, 1]
        made = X.relu()
    assert made.grad_fn is None and torch.equal(made, X.clamp(0))


@pytest.mark.parametrize("rule", RULES)
def test_many_directions_at_once_are_each_direction_alone(rule: str) -> None:
    x = X.clone().requires_grad_()
    with rectifiers(rule):
        y = torch.stack([(x * s).relu().sum() for s in (1.0, -1.0, 2.0)])
    eye = torch.diag(ALONG)
    batched = torch.autograd.grad(y, x, eye, is_grads_batched=True, retain_graph=True)[0]
    rows = [torch.autograd.grad(y, x, e, retain_graph=True)[0] for e in eye]
    assert torch.equal(batched, torch.stack(rows)) and batched.abs().max() > 0


@pytest.mark.parametrize("rule", RULES)
def test_nan_is_not_made_to_look_like_zero(rule: str) -> None:
    x = torch.tensor([float("nan"), 1.0], requires_grad=True)
    with rectifiers(rule):
        y = x.relu()
    assert y.isnan().tolist() == [True, False]
    found = torch.autograd.grad(y, x, torch.tensor([1.0, float("nan")]))[0]
    assert found.tolist()[0] == 1.0 and bool(found[1].isnan())


def test_rule_ends_with_the_block_for_calls_but_not_for_graphs() -> None:
    x = torch.tensor([-1.0], requires_grad=True)
    with rectifiers("deconv"):
        inside = x.relu()
    outside = x.relu()
    assert torch.autograd.grad(inside, x)[0] == 1 and torch.autograd.grad(outside, x)[0] == 0


def test_other_threads_keep_the_true_gradient() -> None:
    found: list[Tensor] = []
    ready, go = threading.Event(), threading.Event()

    def beside() -> None:
        x = torch.tensor([-1.0], requires_grad=True)
        ready.wait(10)
        found.append(torch.autograd.grad(x.relu(), x)[0])
        go.set()

    thread = threading.Thread(target=beside)
    thread.start()
    x = torch.tensor([-1.0], requires_grad=True)
    with rectifiers("deconv"):
        ready.set()
        assert go.wait(10)
        mine = torch.autograd.grad(x.relu(), x)[0]
    thread.join(10)
    assert found[0] == 0 and mine == 1


def test_unknown_rule_is_an_error_that_names_the_rules() -> None:
    with pytest.raises(MethodError, match="'guided', 'deconv'; got 'guide'"), rectifiers("guide"):
        pass


@pytest.mark.parametrize("rule", RULES)
def test_nothing_to_guide_is_an_error_that_says_so(rule: str) -> None:
    with pytest.raises(MethodError, match=f"no rectifier.*the {rule} rule.*'gradient'"), rectifiers(rule):
        F.gelu(X)


def test_error_from_inside_passes_as_it_is_and_the_mode_is_gone() -> None:
    with pytest.raises(KeyError, match="mine"), rectifiers("guided"):
        raise KeyError("mine")
    x = torch.tensor([1.0], requires_grad=True)
    assert torch.autograd.grad(x.relu(), x, torch.tensor([-1.0]))[0] == -1


def test_target_of_ones_own_is_no_part_of_the_model() -> None:
    """A target that calls relu is differentiated as it is: only the model's rectifiers take the rule."""
    net = nets.relu_tail()
    x = net.x(1)
    one = subject(net, x, [lambda y: -(3 - y[:, 0]).relu(), lambda y: y[:, 0]]).picture(0)
    found = one.pixels(x, "guided")
    assert (3 - net(x)[0, 0]) > 0 and found[1].abs().max() > 0 and torch.equal(found[0], found[1])


def test_models_are_left_untouched_and_spellings_agree() -> None:
    class Spelled(nets.Net):
        def forward(self, x: Tensor) -> Tensor:
            made = self.features[2](torch.clamp(self.features[0](x), min=0)).relu_()
            return self.tail[2:](F.relu(self.tail[0](made), inplace=True))

    base = nets.relu_tail()
    other = Spelled(base.features, base.tail, base.shape)
    x = base.x(2)
    for method in ("guidedbackprop", "deconvnet", "guidedgradcam"):
        with untouched(base), untouched(other):
            one, two = (
                cl.explain(n, x, target=1, method=method, layer=None if method[-3:] != "cam" else "features.2").map
                for n in (base, other)
            )
        assert apart(one, two) < 1e-12 and one.abs().max() > 0
