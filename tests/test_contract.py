"""What must hold of every method in the registry, whatever it is: no method is named here but where it differs."""

import importlib.util
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from replicas import apart
from torch import Tensor, nn

import camlucida as cl
from camlucida.errors import MethodError
from camlucida.registry import Method, get, list_methods, register

METHODS = list_methods()
QUICK = {
    "samples": 12,
    "steps": 6,
    "masks": 12,
}  # a contract needs no small error: fewer draws where a method takes so many
READING = {name: m for name, m in METHODS.items() if not m.asks}
SATURATING = {name for name, m in READING.items() if not m.homogeneous}
STEPS = {"fem", "kpcacam"}  # a threshold and a sign of near ties: rounding may move places across them
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
every_reader = pytest.mark.parametrize("method", READING.values(), ids=READING)
every_gradient = pytest.mark.parametrize(
    "method", [m for m in READING.values() if m.needs in ("gradient", "head")],
    ids=[m.name for m in READING.values() if m.needs in ("gradient", "head")],
)  # fmt: skip

# Each ends in a mean over all places and one linear layer, so that methods that need such a head apply as well.
LAYOUTS: dict[str, Callable[[], nets.Net]] = {
    "channels first": lambda: nets.gap_linear(2), "network in network": lambda: nets.nin(2),
    "channels last": lambda: nets.channels_last_net(), "tokens, prefix 1": lambda: nets.token_net(0, "mean"),
    "tokens, prefix 5": lambda: nets.token_net(4, "mean"), "1-D": lambda: nets.gap_linear(1),
    "3-D": lambda: nets.gap_linear(3),
}  # fmt: skip
GRIDS = {
    "channels first": (8, 9), "network in network": (8, 9), "channels last": (4, 5), "tokens, prefix 1": (4, 6),
    "tokens, prefix 5": (4, 6), "1-D": (11,), "3-D": (5, 6, 7),
}  # fmt: skip
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def quick(method: Method) -> Method:
    return method.having(**{k: type(method.choices[k])(v) for k, v in QUICK.items() if k in method.choices})


def layer_of(net: nets.Net, method: Method) -> str | None:
    return None if method.at == "input" else net.layer


RULED = {"guidedbackprop", "deconvnet", "guidedgradcam"}
CAPTUM = importlib.util.find_spec("captum") is not None


def refusal(method: Method, layout: str) -> str:
    """What a method must say of a net that it does not apply to; empty where it does. Any other refusal is a fault."""
    if method.name.startswith("captum") and not CAPTUM:
        return "Captum, which is not installed"
    if method.needs == "attention" and not layout.startswith("tokens"):
        return "no attention was seen"
    if method.name == "fullgrad" and layout.startswith("tokens"):
        return "no grid is known"
    if method.name in RULED and (layout == "channels last" or layout.startswith("tokens")):
        return "no rectifier"  # their nets are made of GELU
    return ""


def explained(net: nets.Net, x: Tensor, method: Method, target: object = 1) -> cl.Explanation:
    if method.name.startswith("captum") and not CAPTUM:
        pytest.skip("captum is not installed")
    return cl.explain(net, x, target=target, method=quick(method), layer=layer_of(net, method))


def mapped(net: nets.Net, x: Tensor, method: Method, target: object = 1) -> Tensor:
    return explained(net, x, method, target).map


def net_for(method: Method) -> nets.Net:
    """A net that the method applies to."""
    return nets.token_net(0, "mean") if method.needs == "attention" else nets.gap_linear()


WANTED = cl.classes([2, 0, 1])


def asked_for(layout: str, how: str) -> tuple[nets.Net, Tensor, object]:
    net = LAYOUTS[layout]()
    net = net if how in ("permuted", "thrice") or how.startswith("only") else net.to(getattr(torch, how.split()[0]))
    x, target = net.x(3), WANTED
    if how == "permuted":
        x, target = x[torch.tensor([2, 0, 1])], cl.classes([1, 2, 0])
    if how == "thrice":
        with torch.no_grad():
            net.head.weight.mul_(3)
    if how.startswith("only"):
        i = int(how[-1])
        x, target = x[i : i + 1], WANTED.indices[i]
    return net, x, target


@cache
def readers(layout: str, how: str) -> dict[str, cl.Explanation]:
    """Every reading method's explanation of three pictures, from one pass: each test looks at its own method's."""
    net, x, target = asked_for(layout, how)
    with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in how):
        found = [
            e
            for place in ("layer", "input")
            if (some := [m for m in READING.values() if m.at == place])
            for e in cl.sweep(net, x, targets=[target], methods=some, layers=[layer_of(net, some[0])])
        ]
    return {e.method: e for e in found}


@cache
def asker(name: str, layout: str, how: str) -> cl.Explanation | str:
    """An asking method's, or why it does not apply to this net."""
    net, x, target = asked_for(layout, how)
    method = METHODS[name]
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in how):
            return cl.explain(net, x, target=target, method=quick(method), layer=layer_of(net, method))
    except MethodError as no:
        return str(no)


def swept(method: Method, layout: str, how: str = "float64") -> cl.Explanation:
    """One method's explanation of three pictures; skipped where it must refuse (`refusal`), and does."""
    found = asker(method.name, layout, how) if method.asks else readers(layout, how)[method.name]
    why = refusal(method, layout)
    if isinstance(found, str):
        assert why and why in found, f"{method.name} refused {layout}: {found}"
        pytest.skip(found)
    assert not why, f"{method.name} should have refused {layout}: {why}"
    return found


def grid_of(method: Method, layout: str) -> tuple[int, ...]:
    return LAYOUTS[layout]().shape[1:] if method.at == "input" else GRIDS[layout]


# ---------------------------------------------------------------------------------------------------------------- maps


@every_method
@every_layout
@pytest.mark.parametrize("how", ["float64", "float32", "bfloat16", "float32 autocast"])
def test_map_has_one_finite_number_a_place_in_at_least_single_precision(method: Method, layout: str, how: str) -> None:
    e = swept(method, layout, how)
    assert tuple(e.map.shape) == (3, *grid_of(method, layout))
    assert e.map.dtype == (torch.float64 if how == "float64" else torch.float32)
    assert e.map.isfinite().all() and e.map.device == torch.device("cpu")
    assert not e.map.requires_grad and e.map.grad_fn is None
    assert len(e.statuses) == len(e.scores) == 3 and set(e.statuses) <= {
        "ok",
        "all-negative",
        "no evidence",
        "constant",
    }


@every_reader
@every_layout
@pytest.mark.parametrize(
    ("how", "slack"), [("float32", 1e-5), ("bfloat16", 0.1), ("float32 autocast", 0.1)], ids=["f32", "bf16", "autocast"]
)
def test_precisions_agree_up_to_their_rounding(method: Method, layout: str, how: str, slack: float) -> None:
    if slack > 1e-5 and (method.name in STEPS or method.at == "input"):
        pytest.skip("a step, or the kinks of a whole net, which rounding may cross")
    assert apart(swept(method, layout, how).map, swept(method, layout).map) < slack


@every_method
@every_layout
def test_pictures_permuted_are_maps_permuted(method: Method, layout: str) -> None:
    """Up to the model's own rounding, which may differ by row of a matrix product; P18 asks for every bit."""
    before, after = (swept(method, layout, how) for how in ("float64", "permuted"))
    order = torch.tensor([2, 0, 1])
    assert apart(after.map, before.map[order]) < 1e-12 and apart(after.scores, before.scores[order]) < 1e-12


@every_method
@every_layout
def test_maps_of_a_batch_are_those_of_its_pictures(method: Method, layout: str) -> None:
    whole = swept(method, layout).map
    for i in range(3):
        one = swept(method, layout, f"only {i}").map
        assert float((whole[i] - one[0]).abs().max()) <= 1e-12 * float(whole.abs().max())


@every_method
def test_map_asked_for_alone_is_that_of_a_sweep_and_the_same_twice(method: Method) -> None:
    net = net_for(method)
    one, two = (mapped(net, net.x(3), method, WANTED) for _ in range(2))
    layout = "tokens, prefix 1" if method.needs == "attention" else "channels first"
    assert torch.equal(one, two) and apart(one, swept(method, layout).map) < 1e-12


@every_gradient
@every_layout
def test_raw_map_keeps_the_units_of_the_score(method: Method, layout: str) -> None:
    """A head three times as large has a map three times as large: nothing was normalised on the way."""
    before, after = (swept(method, layout, how).map for how in ("float64", "thrice"))
    if method.name in SATURATING:
        assert apart(after, before) > 1e-3 and apart(after / after.max(), before / before.max()) > 1e-6
    else:
        assert apart(after, 3 * before) < 1e-10


@every_gradient
def test_raw_map_of_a_scaled_target_is_scaled(method: Method) -> None:
    if method.needs == "head" or method.name in SATURATING:
        pytest.skip("takes no target of one's own" if method.needs == "head" else "saturates, as its paper has it")
    net = nets.smooth_tail()
    x = net.x(2)
    assert apart(mapped(net, x, method, lambda y: 3 * y[:, 1]), 3 * mapped(net, x, method)) < 1e-10


@every_gradient
def test_raw_map_is_signed_wherever_its_formula_is(method: Method) -> None:
    if method.formula.startswith("max"):
        pytest.skip("magnitudes")
    act = torch.tensor([[[-1.0, 4.0, -3.0], [0.5, -2.0, 3.0]]])
    found = method(act, torch.ones_like(act))
    if not method.formula.startswith("Σ_k relu(G_k ⊙ A_k)"):
        assert (found < 0).any() and (found > 0).any()


@cache
def twins(layer: str) -> list[dict[str, Tensor]]:
    asked = [name for name, method in READING.items() if method.needs != "head"]
    pair = nets.inplace_pair()
    swept = [cl.sweep(net, net.x(2), targets=[1], methods=asked, layers=[layer]) for net in pair]
    return [{e.method: e.map for e in found} for found in swept]


@every_reader
@pytest.mark.parametrize("layer", nets.TWIN_LAYERS)
def test_operations_in_place_change_no_map(method: Method, layer: str) -> None:
    if method.needs == "head":
        pytest.skip("the twins end in another head")
    one, two = (maps[method.name] for maps in twins(layer))
    assert torch.equal(one, two) and one.abs().max() > 0


@every_method
def test_operations_in_place_change_no_map_right_before_the_pool(method: Method) -> None:
    def build(inplace: bool) -> nets.Net:
        features = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace), nn.Conv2d(3, 4, 3), nn.ReLU(inplace))
        return nets.seeded(nets.Net(features, nets.gap_linear().tail, (2, 8, 9)), 1)

    x = build(False).x(2)
    for layer in ("features.3", "features"):
        if method.needs == "attention":
            pytest.skip("there is no attention")
        nets_ = [build(inplace) for inplace in (True, False)]
        for n in nets_:
            n.layer = layer
        one, two = (mapped(n, x.clone(), method) for n in nets_)
        assert torch.equal(one, two)


# --------------------------------------------------------------------------------------------------------------- facts


@every_method
def test_registry_tells_what_a_reader_must_know(method: Method) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*", method.name) and METHODS[method.name] is method
    assert method.title and method.formula and method.cost and method.deviations
    assert re.fullmatch(r"[a-z]+\d{4}[a-z]?", method.paper)
    assert f"[{method.paper}" in (method.read.__doc__ or "") and re.search(
        r"\*(space|grid|full)", method.read.__doc__ or ""
    )
    assert method.needs in ("gradient", "head", "activation", "model", "attention")
    assert all(isinstance(v, bool | int | float | str | None) for v in method.choices.values())


@every_method
def test_paper_of_every_method_is_in_the_bibliography(method: Method) -> None:
    papers = Path(__file__).resolve().parent.parent / "docs" / "papers.bib"
    assert re.search(rf"^@\w+\{{{method.paper},", papers.read_text(encoding="utf-8"), re.M)


@every_method
def test_explanation_repeats_the_facts_of_its_method(method: Method) -> None:
    net = net_for(method)
    facts = explained(net, net.x(1), method).facts
    assert (facts.method, facts.title, facts.paper) == (quick(method).label, method.title, method.paper)
    assert facts.class_agnostic == method.class_agnostic


@every_method
def test_class_agnostic_says_whether_two_classes_have_one_map(method: Method) -> None:
    net = net_for(method)
    one, two = (mapped(net, net.x(2), method, k) for k in (1, 2))
    assert (apart(one, two) < 1e-10) == method.class_agnostic


# ------------------------------------------------------------------------------------------------------ names and no's


@pytest.mark.parametrize(
    ("said", "meant"),
    [("Grad-CAM++", "gradcampp"), ("grad_cam", "gradcam"), ("Grad CAM", "gradcam"), ("GRADCAM", "gradcam"),
     ("HiResCAM", "hirescam"), ("XGrad-CAM", "xgradcam"), ("Layer-CAM", "layercam"), ("CAM", "cam"),
     ("grad-cam-pp", "gradcampp"), ("element_wise", "elementwise")],
)  # fmt: skip
def test_names_are_read_as_people_write_them(said: str, meant: str) -> None:
    assert get(said).name == meant


@every_method
def test_every_title_and_name_finds_its_own_method(method: Method) -> None:
    assert get(method.name) is method and get(method) is method and get(method.name.upper()) is method


@pytest.mark.parametrize(("said", "meant"), [("gradcamm", "gradcam"), ("hirez-cam", "hirescam"), ("layer", "layercam")])
def test_unknown_method_is_an_error_that_names_the_nearest(said: str, meant: str) -> None:
    net = nets.gap_linear()
    with pytest.raises(MethodError, match=rf"no method '{said}'.*Did you mean .*'{meant}'"):
        cl.explain(net, net.x(1), target=1, method=said)


def test_unknown_method_that_is_near_to_none_is_an_error_that_names_some() -> None:
    with pytest.raises(MethodError, match=r"no method 'zzz'\. Known: '\w+'"):
        get("zzz")


def test_name_taken_twice_is_refused() -> None:
    with pytest.raises(MethodError, match="registered already"):
        register("gradcam", title="", paper="", formula="")(METHODS["gradcam"].read)


def test_list_of_methods_is_a_copy() -> None:
    list_methods().clear()
    assert list_methods() == METHODS and len(METHODS) >= 7


HEADLESS = ["flatten_linear", "gmp_linear", "gem_linear", "relu_tail", "biased_tail", "smooth_tail"]


@pytest.mark.parametrize("name", HEADLESS)
def test_cam_on_a_head_that_is_no_pooled_linear_layer_is_an_error_that_names_gradcam(name: str) -> None:
    net = nets.TAILS[name]()
    with pytest.raises(MethodError, match="gradcam"):
        cl.explain(net, net.x(2), target=1, method="cam", layer=net.layer)


def test_cam_before_the_last_convolution_is_an_error_that_names_gradcam() -> None:
    net = nets.gap_linear()
    with pytest.raises(MethodError, match=r"'features\.1'.*gradcam"):
        cl.explain(net, net.x(1), target=1, method="cam", layer="features.1")


def test_cam_of_a_target_of_ones_own_is_an_error_that_names_gradcam() -> None:
    net = nets.gap_linear()
    with pytest.raises(MethodError, match="gradcam"):
        cl.explain(net, net.x(1), target=lambda y: y[:, 1], method="cam", layer=net.layer)


def test_method_of_ones_own_need_not_be_registered() -> None:
    net = nets.smooth_tail()
    own = Method("mine", lambda act, grad: act.sum(1), title="Mine", paper="me2026", formula="Σ_k A_k")
    e = cl.explain(net, net.x(2), target=1, method=own, layer=net.layer)
    assert apart(e.map, net.act(net.x(2)).sum(1)) < 1e-12 and e.facts.title == "Mine" and "mine" not in list_methods()


def test_two_methods_of_one_name_are_not_mixed_up() -> None:
    net = nets.smooth_tail()
    x, targets = net.x(2), [0, 1]
    reads = (lambda act, grad: act.sum(1), lambda act, grad: grad.sum(1))
    own = [Method("mine", read, title="", paper="", formula="") for read in reads]
    found = cl.sweep(net, x, targets=targets, methods=own, layers=[net.layer])
    for e, read, k in zip(found, [0, 1, 0, 1], [0, 0, 1, 1], strict=True):
        assert apart(e.map, cl.explain(net, x, target=k, method=own[read], layer=net.layer).map) < 1e-12


@pytest.mark.parametrize("index", [1, np.int64(1), np.uint8(1), torch.tensor(1)])
@every_method
def test_class_may_be_any_kind_of_whole_number(method: Method, index: object) -> None:
    net = net_for(method)
    assert torch.equal(mapped(net, net.x(1), method, index), mapped(net, net.x(1), method, 1))
