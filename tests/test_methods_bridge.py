"""The bridge to Captum: a copy of the model, nobody's random numbers, kind errors; its numbers where it is."""

import random
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import nets
import numpy as np
import pytest
import torch
from conftest import guest
from fingerprint import untouched
from replicas import apart
from torch import Tensor, nn

import camlucida as cl
from camlucida.errors import MethodError
from camlucida.methods.bridge import _seeded
from camlucida.registry import get, list_methods

BRIDGED = [n for n in list_methods() if n.startswith("captum")]
CLASS = 1
every = pytest.mark.parametrize("method", BRIDGED)


def plain(norm: bool = False) -> nets.Net:
    features = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3) if norm else nn.Dropout(), nn.ReLU())
    tail = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, nets.CLASSES))
    return nets.seeded(nets.Net(features, tail, (2, 4, 5)), 4)


# ------------------------------------------------------------------------------------------- without it, and a stand-in


@every
def test_without_captum_the_error_says_what_to_install(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("captum") is not None:
        pytest.skip("captum is installed here")
    net = plain()
    with untouched(net), pytest.raises(MethodError, match=r"pip install camlucida\[captum\].*'integratedgradients'"):
        cl.explain(net, net.x(1), target=CLASS, method=method)


class Spoils:
    """What a guest may do to a model: hooks, training mode, other weights, random numbers; answers the gradient."""

    seen: list[nn.Module]

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        type(self).seen.append(model)

    def attribute(self, x: Tensor, *_more: Any, target: int, **_rest: Any) -> Tensor:
        for module in self.model.modules():
            module.register_forward_hook(lambda m, a, made: made)
            module.spoilt = True
        score = self.model(x)[:, target].sum()
        (grad,) = torch.autograd.grad(score, x)
        self.model.train()
        for p in self.model.parameters():
            p.data.zero_()
        return grad + random.random() + np.random.rand() + torch.rand(())


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Spoils]]:
    room = {n: ModuleType(n) for n in ("captum", "captum.attr", "captum.attr._utils", "captum.attr._utils.lrp_rules")}
    Spoils.seen = []
    for name in ("DeepLift", "GradientShap", "LRP"):
        setattr(room["captum.attr"], name, Spoils)
    room["captum.attr._utils.lrp_rules"].EpsilonRule = object  # type: ignore[attr-defined]
    for name, module in room.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield Spoils


@every
def test_guest_works_on_a_copy_and_nobodys_numbers_change(method: str, stand_in: type[Spoils]) -> None:
    net = plain(norm=True).train()
    x = net.x(2)
    numbers = np.random.get_state()[1].copy()
    with untouched(net), torch.no_grad():
        found = [cl.sweep(net, x, targets=[0, CLASS], methods=[method]) for _ in range(2)]
    assert (np.random.get_state()[1] == numbers).all()
    assert len(stand_in.seen) == 8 and not any(
        m is n for s in stand_in.seen for m in s.modules() for n in net.modules()
    )
    assert all(torch.equal(one.map, two.map) for one, two in zip(*found, strict=True))
    for k, e in zip([0, CLASS], found[0], strict=True):
        signed = cl.explain(net, x, target=k, method="gradient:signed=true").map
        assert e.map.shape == (2, 4, 5) and float((e.map - signed - (e.map - signed).mean()).abs().max()) < 1e-12


def test_seeded_block_gives_the_same_numbers_and_leaves_everybodys() -> None:
    def draw() -> tuple[float, ...]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    found = []
    for _ in range(2):
        with pytest.raises(KeyError), _seeded():
            found.append(draw())
            raise KeyError
    assert found[0] == found[1] and random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all() and torch.equal(torch.get_rng_state(), states[2])


@every
def test_guest_whose_error_passes_is_told_from_ours(
    method: str, stand_in: type[Spoils], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Spoils, *given: Any, **more: Any) -> Tensor:
        raise AssertionError("a module was used twice")

    monkeypatch.setattr(Spoils, "attribute", refuse)
    net = plain()
    with untouched(net), pytest.raises(MethodError, match="does not bear this model: a module was used twice"):
        cl.explain(net, net.x(1), target=CLASS, method=method)


@every
def test_guest_works_at_the_pixels_only(method: str, stand_in: type[Spoils]) -> None:
    net = plain()
    with pytest.raises(MethodError, match="works at the pixels"):
        cl.explain(net, net.x(1), target=CLASS, method=method, layer="features.0")


def test_model_that_cannot_be_copied_is_an_error_that_names_another_way(stand_in: type[Spoils]) -> None:
    net = plain()
    net.kept = (n for n in range(3))
    with pytest.raises(MethodError, match=r"cannot be copied .*'integratedgradients'"):
        cl.explain(net, net.x(1), target=CLASS, method="captumdeeplift")


def test_copy_answers_scores_of_all_targets_with_what_came_beside_the_picture(stand_in: type[Spoils]) -> None:
    class Scaled(nets.Net):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return super().forward(x * scale)

    base = plain()
    net = Scaled(base.features, base.tail, base.shape)
    x, scale = net.x(2), torch.tensor([2.0, 3.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    found = cl.explain(net, (x, scale), target=lambda y: y[:, 0] * y[:, 1], method="captumdeeplift").map
    y = x.clone().requires_grad_()
    scores = base(y * scale)
    (grad,) = torch.autograd.grad((scores[:, 0] * scores[:, 1]).sum(), y)
    assert float((found - grad.sum(1) - (found - grad.sum(1)).mean()).abs().max()) < 1e-12


def test_importing_the_methods_imports_no_guest() -> None:
    assert {"captumdeeplift", "captumgradientshap", "captumlrp"} <= set(BRIDGED)
    assert all(get(n).at == "input" and "Captum" in get(n).title + get(n).deviations for n in BRIDGED)


# --------------------------------------------------------------------------------------------------- the guest itself


@pytest.fixture(scope="module")
def attr() -> Any:
    guest("captum")
    return guest("captum.attr")


@pytest.mark.filterwarnings("ignore")
def test_numbers_are_captums_own(attr: Any) -> None:
    net = plain()
    x = net.x(2)
    with untouched(net):
        found = {m: cl.explain(net, x, target=CLASS, method=m).map for m in BRIDGED}
    assert apart(found["captumdeeplift"], attr.DeepLift(plain()).attribute(x, target=CLASS).sum(1)) < 1e-12
    with torch.no_grad():
        gap = (net(x) - net(torch.zeros_like(x)))[:, CLASS]
    assert apart(found["captumdeeplift"].sum((1, 2)), gap) < 1e-6
    more = cl.explain(net, x, target=CLASS, method="captumgradientshap:samples=2000").map
    start = [cl.explain(net, x, target=CLASS, method=f"integratedgradients:baseline={b}").map for b in ("zero", "mean")]
    assert apart(more, (start[0] + start[1]) / 2) < 0.1
    assert found["captumlrp"].abs().max() > 0


@pytest.mark.filterwarnings("ignore")
def test_layer_without_a_rule_is_an_error_in_captums_words(attr: Any) -> None:
    net = plain(norm=True)
    net.tail.append(nn.PReLU().double())
    with untouched(net), pytest.raises(MethodError, match=r"does not bear this model.*PReLU"):
        cl.explain(net, net.x(1), target=CLASS, method="captumlrp")


@pytest.mark.filterwarnings("ignore")
def test_saliency_methods_agree_with_captum(attr: Any) -> None:
    net = plain(norm=True)
    x = net.x(2)
    ours = {m: cl.explain(net, x, target=CLASS, method=f"{m}:signed=true").map for m in ("guidedbackprop", "deconvnet")}
    for name, kind in (("guidedbackprop", "GuidedBackprop"), ("deconvnet", "Deconvolution")):
        theirs = getattr(attr, kind)(plain(norm=True)).attribute(x.clone().requires_grad_(), target=CLASS)
        assert apart(ours[name], theirs.sum(1)) < 1e-12
