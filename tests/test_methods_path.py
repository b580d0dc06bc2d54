"""ShapleyCAM, layer Integrated Gradients and Smooth Grad-CAM++: slow twins, identities, and the peers' faults."""

from collections.abc import Callable
from typing import Any

import fingerprint
import nets
import pytest
import torch
from replicas import apart
from replicas_path import layerig, shapleycam, smoothgradcampp
from torch import Tensor, nn

import camlucida as cl
from camlucida.core import chunks
from camlucida.errors import LayerError, MethodError
from camlucida.methods import path
from camlucida.registry import get

NAMES = ["shapleycam", "layerig", "smoothgradcampp"]
every_method = pytest.mark.parametrize("name", NAMES)


def mapped(net: nets.Net, name: str, target: Any = 1, x: Tensor | None = None, layer: str | None = None) -> Tensor:
    return cl.explain(net, net.x(2) if x is None else x, target=target, method=name, layer=layer or net.layer).map


def small(last: nn.Module | None = None) -> nets.Net:
    """Few enough numbers for differences; curved, and its activation signed."""
    tail = nn.Sequential(nn.Conv2d(2, 2, 2), nn.SiLU(), nn.Flatten(), nn.Linear(2 * 6, 3), nn.Tanh(), nn.Linear(3, 3))
    features = nn.Sequential(nn.Conv2d(1, 2, 2), last or nn.GELU())
    return nets.seeded(nets.Net(features, tail, (1, 4, 5)), 3)


def tail_score(net: nets.Net, way: Callable[[Tensor], Tensor]) -> Callable[[Tensor], float]:
    def score(act: Tensor) -> float:
        with torch.no_grad():
            return way(net.tail(act[None])[0]).item()

    return score


def rest(y: Tensor) -> Tensor:
    return y[1] + y.log_softmax(0)[1]


# --------------------------------------------------------------------------------------------------------- slow twins


@pytest.mark.parametrize("way", ["logit", "rest"])
def test_shapleycam_equals_its_slow_twin(way: str) -> None:
    net = small()
    x = net.x(2)
    found = mapped(net, "shapleycam", cl.classes(1, way), x)
    plain = mapped(net, "gradcam", cl.classes(1, way), x)
    for i, act in enumerate(net.act(x)):
        twin = shapleycam(tail_score(net, rest if way == "rest" else lambda y: y[1]), act)
        assert apart(found[i], twin) < 1e-5
        assert apart(plain[i], twin) > 1e-3, "the second derivative counts here"


@pytest.mark.parametrize("baseline", ["zero", "blank"])
def test_layerig_equals_its_slow_twin(baseline: str) -> None:
    net = small()
    x = net.x(2)
    found = mapped(net, f"layerig:steps=3:gap=9.0:baseline={baseline}", 1, x)
    start = torch.zeros_like(net.act(x)[0]) if baseline == "zero" else net.act(torch.zeros_like(x))[0]
    for i, act in enumerate(net.act(x)):
        assert apart(found[i], layerig(tail_score(net, lambda y: y[1]), act, start, 3)) < 1e-6


def noisy(x: Tensor, samples: int, noise: float) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    grain = torch.randn(samples, *x.shape, generator=draw, dtype=torch.float64)
    return x + grain * (noise * float(x.max() - x.min()))


@pytest.mark.parametrize("last", [nn.GELU(), nn.Softplus()], ids=["signed", "positive"])
def test_smoothgradcampp_equals_its_slow_twin(last: nn.Module) -> None:
    """Peers take the last sample's gradient and activation; here every sample counts, and the clean activation."""
    net = small(last)
    x = net.x(2)
    found = mapped(net, "smoothgradcampp:samples=5:noise=0.2", 1, x)
    for i, act in enumerate(net.act(x)):
        acts = net.act(noisy(x[i], 5, 0.2)).requires_grad_()
        (grads,) = torch.autograd.grad(net.tail(acts)[:, 1].sum(), acts)
        assert apart(found[i], smoothgradcampp(act, list(grads))) < 1e-10
        assert apart(found[i], smoothgradcampp(act, [grads[-1]])) > 1e-3
        assert apart(found[i], smoothgradcampp(acts[-1].detach(), list(grads))) > 1e-3


# --------------------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("tail", ["gap_linear", "flatten_linear", "nin", "relu_tail", "biased_tail"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_shapleycam_is_gradcam_where_nothing_bends(tail: str, dims: int) -> None:
    """P15. Exactly: the second derivative of a piecewise linear score is zero, not small."""
    net = nets.TAILS[tail](dims)
    assert apart(mapped(net, "shapleycam"), mapped(net, "gradcam")) < 1e-12


def test_shapleycam_with_rest_is_not_gradcam_on_a_relu_net() -> None:
    net = nets.biased_tail()
    found = (mapped(net, m, cl.classes(1, "rest")) for m in ("shapleycam", "gradcam"))
    assert apart(*found) > 1e-3


@pytest.mark.parametrize("baseline", ["zero", "blank"])
@pytest.mark.parametrize("tail", [*nets.TAILS])
def test_layerig_sums_to_the_change_of_the_score(tail: str, baseline: str) -> None:
    """P17."""
    net = nets.TAILS[tail]()
    x = net.x(2)
    e = cl.explain(net, x, target=1, method=f"layerig:steps=200:baseline={baseline}", layer=net.layer)
    with torch.no_grad():
        start = torch.zeros_like(net.act(x)) if baseline == "zero" else net.act(torch.zeros_like(x))
        if tail == "gem_linear" and baseline == "zero":
            start += 1e-9
        change = net(x)[:, 1] - net.tail(start)[:, 1]
    assert torch.allclose(e.map.flatten(1).sum(1), change, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("tail", ["gap_linear", "flatten_linear", "nin"])
def test_layerig_is_hirescam_in_one_step_where_the_score_is_linear(tail: str) -> None:
    net = nets.TAILS[tail]()
    assert apart(mapped(net, "layerig:steps=1"), mapped(net, "hirescam")) < 1e-12


def test_layerig_at_the_input_is_integrated_gradients() -> None:
    net = nets.smooth_tail()
    x = net.x(2)
    e = cl.explain(net, x, target=1, method="layerig:steps=64", layer="input")
    leaf = torch.cat([x * (j + 0.5) / 64 for j in range(64)]).requires_grad_()
    (grads,) = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)
    assert apart(e.map, (x * grads.reshape(64, *x.shape).mean(0)).sum(1)) < 1e-10


def test_layerig_takes_more_steps_until_it_adds_up() -> None:
    net = nets.biased_tail()
    loose, tight = (mapped(net, f"layerig:steps=1:gap={gap}") for gap in (9.0, 0.002))
    x = net.x(2)
    with torch.no_grad():
        change = net(x)[:, 1] - net.tail(torch.zeros_like(net.act(x)))[:, 1]
    off = [float((m.flatten(1).sum(1) - change).abs().max()) for m in (loose, tight)]
    assert off[1] < off[0] / 5
    exact = {n: mapped(net, f"layerig:steps={n}:gap=9.0") for n in (1, 3, 9, 27)}
    assert min(apart(tight[:1], m[:1]) for m in exact.values()) < 1e-12, "tripled points hold the earlier ones"


class Straight(nn.Module):
    """Its backward pass is not the derivative of what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.square() * 3 - x).detach()


def test_layerig_refuses_gradients_that_are_not_those_of_the_score() -> None:
    net = nets.smooth_tail()
    net.tail = nn.Sequential(Straight(), *net.tail)
    with pytest.raises(MethodError, match=r"does not add up: after 27 steps it is \d+%"):
        mapped(net, "layerig:steps=1")


@pytest.mark.parametrize("tail", ["gap_linear", "flatten_linear", "nin", "relu_tail", "smooth_tail"])
def test_smoothgradcampp_without_noise_is_gradcampp(tail: str) -> None:
    net = nets.TAILS[tail]()
    assert apart(mapped(net, "smoothgradcampp:samples=2:noise=0.0"), mapped(net, "gradcampp")) < 1e-10


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e12])
def test_smoothgradcampp_keeps_gradients_of_any_size(size: float) -> None:
    """In float32 the square of 1e-30 is zero; the weight it belongs to is not."""
    net = nets.smooth_tail().float()
    x, last = net.x(2), net.tail[-1]
    with torch.no_grad():
        net.tail[-1].weight.mul_(size), net.tail[-1].bias.zero_()
        wide = nets.smooth_tail().double()
        wide.tail[-1].weight.mul_(size), wide.tail[-1].bias.zero_()
    found = mapped(net, "smoothgradcampp:samples=3", 1, x)
    assert last is net.tail[-1] and found.isfinite().all() and found.abs().max() > 0
    assert apart(found, mapped(wide, "smoothgradcampp:samples=3", 1, x.double())) < 1e-3


# ------------------------------------------------------------------------------------------------ all alike: contracts

LAYOUTS: dict[str, Callable[[], nets.Net]] = {
    "1-D": lambda: nets.smooth_tail(1), "2-D": lambda: nets.smooth_tail(2), "3-D": lambda: nets.smooth_tail(3),
    "channels last": nets.channels_last_net, "tokens": lambda: nets.token_net(2),
}  # fmt: skip


@every_method
@pytest.mark.parametrize("layout", LAYOUTS)
def test_maps_of_a_batch_are_those_of_its_pictures_in_every_layout(name: str, layout: str) -> None:
    net = LAYOUTS[layout]()
    x = net.x(3)
    whole = mapped(net, name, cl.classes([2, 0, 1]), x)
    assert whole.dtype == torch.float64
    for i, k in enumerate([2, 0, 1]):
        assert apart(mapped(net, name, k, x[i : i + 1])[0], whole[i]) < 1e-10


@every_method
def test_in_place_nets_have_the_maps_of_their_twins(name: str) -> None:
    there, not_there = nets.inplace_pair()
    for layer in ("features.0", "features.2", "tail.0"):
        assert apart(mapped(there, name, layer=layer), mapped(not_there, name, layer=layer)) < 1e-12


@every_method
def test_many_targets_are_answered_as_each_alone(name: str) -> None:
    net = nets.smooth_tail()
    targets = [cl.classes(k, s) for k in range(3) for s in ("logit", "rest")]
    together = cl.sweep(net, net.x(2), targets=targets, methods=[name], layers=[net.layer])
    for e, target in zip(together, targets, strict=True):
        assert apart(e.map, mapped(net, name, target)) < 1e-10


@every_method
@pytest.mark.parametrize("piece", [1, 3])
def test_little_memory_changes_nothing(name: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nets.smooth_tail()
    whole = mapped(net, name)
    monkeypatch.setattr(path, "PATH_BYTES", piece * net.act(net.x(1)).numel() * 8)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1)
    assert apart(mapped(net, name), whole) < 1e-12


@every_method
def test_a_call_leaves_no_trace_and_draws_no_random_numbers(name: str) -> None:
    net = nets.smooth_tail()
    with fingerprint.untouched(net):
        one = mapped(net, name)
    torch.rand(3)
    assert torch.equal(mapped(net, name), one)


@every_method
def test_an_error_from_inside_the_model_leaves_no_trace(name: str) -> None:
    net = nets.smooth_tail()
    calls = []

    def break_down(*_: object) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("out of order")

    net.tail[0].register_forward_pre_hook(break_down)
    with fingerprint.untouched(net), pytest.raises(RuntimeError, match="out of order"):
        mapped(net, name)


@every_method
def test_degenerate_inputs_give_a_status_and_never_a_lie(name: str) -> None:
    net = nets.biased_tail(last=nn.ReLU())
    with torch.no_grad():
        net.features[2].weight.zero_(), net.features[2].bias.fill_(-1)
    e = cl.explain(net, net.x(1), target=1, method=name, layer=net.layer)
    assert e.status == "no evidence" and (e.map == 0).all()
    constant = torch.full((1, 2, 8, 9), 0.5, dtype=torch.float64)
    assert mapped(nets.smooth_tail(), name, x=constant).isfinite().all()


@every_method
def test_a_picture_of_nan_is_an_error_or_a_status(name: str) -> None:
    nan = torch.full((1, 2, 8, 9), torch.nan, dtype=torch.float64)
    try:
        e = cl.explain(nets.smooth_tail(), nan, target=1, method=name, layer="features")
    except LayerError:
        return
    assert e.status == "non-finite"


@pytest.mark.parametrize(
    "name",
    ["layerig:steps=0", "layerig:gap=0.0", "layerig:baseline=grey", "smoothgradcampp:samples=0",
     "smoothgradcampp:noise=-0.1"],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(name: str) -> None:
    net = nets.smooth_tail()
    with pytest.raises(MethodError, match="takes"):
        mapped(net, name)


def test_fused_attention_can_bend(timm: Any) -> None:
    """Fused attention has no second derivative: it is taken in the open, and gives the numbers of attention written
    out."""
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=16, num_heads=2, patch_size=8, num_classes=4
    ).eval().double()  # fmt: skip
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=draw, dtype=p.dtype) / 5)
    x = torch.randn(1, 3, 32, 32, generator=draw, dtype=torch.float64)
    fused = mapped(net, "shapleycam", 1, x, "blocks.1.norm1")
    for block in net.blocks:
        block.attn.fused_attn = False
    assert apart(fused, mapped(net, "shapleycam", 1, x, "blocks.1.norm1")) < 1e-8
    assert apart(fused, mapped(net, "gradcam", 1, x, "blocks.1.norm1")) > 1e-4


@pytest.mark.parametrize("how", ["plain", "mask", "causal", "numbers"])
def test_attention_in_the_open_is_fused_attention(how: str) -> None:
    from camlucida.core.twice import InTheOpen

    draw = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 2, 5, 4, generator=draw, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(5, 5, generator=draw) > 0.3
    mask.fill_diagonal_(True)
    given: dict[str, Any] = {
        "plain": {}, "mask": {"attn_mask": mask}, "causal": {"is_causal": True},
        "numbers": {"attn_mask": torch.randn(5, 5, generator=draw, dtype=torch.float64), "scale": 0.3},
    }[how]  # fmt: skip
    expected = nn.functional.scaled_dot_product_attention(q, k, v, **given)
    many = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    x = torch.randn(2, 5, 8, generator=draw, dtype=torch.float64)
    plain = many(x, x, x, need_weights=False)
    with InTheOpen():
        assert apart(nn.functional.scaled_dot_product_attention(q, k, v, **given), expected) < 1e-12
        open_, weights = many(x, x, x, need_weights=False)
    assert weights is None and apart(open_, plain[0]) < 1e-12


def test_what_is_registered_is_what_is_true() -> None:
    assert [get(n).needs for n in NAMES] == ["model"] * 3
    assert not get("smoothgradcampp").homogeneous and get("shapleycam").homogeneous
