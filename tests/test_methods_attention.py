"""Attention methods against their slow twins, by hand on small numbers, and on what must not change their maps."""

import math
from typing import Any

import nets
import pytest
import torch
from fingerprint import untouched
from replicas import apart
from replicas_attention import (
    CORES,
    Seer,
    open_book,
    seer,
    slow_gradeclip,
    slow_legrad,
    slow_relevance,
    slow_rollout,
)
from torch import Tensor, nn

import camlucida as cl
from camlucida.core.layouts import tokens
from camlucida.errors import MethodError
from camlucida.methods.attention import rollout
from camlucida.registry import get
from camlucida.types import Attention, Scorer

METHODS = ("rollout", "attentionrelevance", "legrad", "gradeclip")
KINDS = {
    "class token": lambda: seer(1, "class"), "class token and registers": lambda: seer(3, "class"),
    "class and distillation token": lambda: seer(2, "two"), "no class token": lambda: seer(0, "mean"),
    "mean past a class token": lambda: seer(1, "mean"), "mask": lambda: seer(1, "class", mask=True),
    "1-D": lambda: seer(0, "mean", dims=1), "3-D": lambda: seer(1, "mean", dims=3),
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS)
every_method = pytest.mark.parametrize("method", METHODS)


def show(net: nn.Module, x: Tensor, method: str, k: Any = 1, **more: Any) -> Tensor:
    return cl.explain(net, x, method=method, target=cl.classes(k), **more).map


def twin(net: Seer, x: Tensor, method: str, k: int = 1) -> Tensor:
    places = math.prod(net.grid)
    if method == "legrad":
        found = slow_legrad(net, x, k)
    elif method == "gradeclip":
        found = slow_gradeclip(net, x, k)
    else:
        probs, grads = open_book(net, x, lambda y: y[0, k])
        if method == "rollout":
            found = slow_rollout(probs, net.reads, places, lambda v: sum(v) / len(v))
        else:
            found = slow_relevance(probs, grads, net.reads, places)
    return torch.tensor(found, dtype=torch.float64).reshape(1, *net.grid)


@every_kind
@every_method
def test_map_is_that_of_the_slow_twin(kind: str, method: str) -> None:
    net = KINDS[kind]()
    x = net.x()
    found = show(net, x, method)
    assert found.dtype == torch.float64 and found.abs().max() > 1e-6
    assert apart(found, twin(net, x, method)) < 1e-10


@every_method
@pytest.mark.parametrize("form", CORES)
def test_map_does_not_depend_on_how_attention_is_written(form: str, method: str) -> None:
    net = seer(2, "class", mask=True)
    x = net.x()
    assert apart(show(net.written(form), x, method), twin(net, x, method)) < 1e-10


@pytest.mark.parametrize(("heads", "fuse"), [("min", min), ("max", max)])
def test_rollout_fuses_heads_as_asked(heads: str, fuse: Any) -> None:
    net = seer(1, "class")
    x = net.x()
    probs, _ = open_book(net, x, lambda y: y[0, 0])
    expected = torch.tensor(slow_rollout(probs, [0], 6, fuse), dtype=torch.float64).reshape(1, 2, 3)
    assert apart(show(net, x, f"rollout:heads={heads}"), expected) < 1e-12


class Handed:
    """A scorer that hands over numbers written down by hand."""

    def __init__(self, seen: Attention) -> None:
        for name in {*Scorer.__annotations__, *vars(Scorer)} - {*dir(self)}:
            setattr(self, name, list)
        self.seen = seen

    def attend(self, read: Any, *_: Any) -> Tensor:
        return read(self.seen)


def test_rollout_of_two_blocks_by_hand() -> None:
    one = torch.tensor([[[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    two = torch.tensor([[[0.0, 0.5, 0.5], [0.0, 0.0, 1.0], [0.5, 0.0, 0.5]]])
    # ½(A + I), row of the class token: second block (½, ¼, ¼); first (¾, ⅛, ⅛), (0, 1, 0), (½, 0, ½).
    seen = Attention((one, two), (), torch.tensor([1.0, 0.0, 0.0]), (2,))
    assert rollout(Handed(seen)).tolist() == [[0.5 * 0.125 + 0.25, 0.5 * 0.125 + 0.25 * 0.5]]


def test_relevance_of_two_blocks_by_hand() -> None:
    one, up = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]), torch.tensor([[[[2.0, -4.0], [4.0, 4.0]]]])
    two, on = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]]), torch.tensor([[[[2.0, 4.0], [-1.0, -1.0]]]])
    # gains: first (1, 0; 1, 3), second (1, 2; 0, 0). R = (I + second)(I + first) − I, row 0: 2·(2, 0) + 2·(1, 4) − …
    seen = Attention((one, two), (up, on), torch.tensor([1.0, 0.0]), (1,))
    assert get("attentionrelevance")(Handed(seen)).tolist() == [[8.0]]


def test_a_signal_with_a_class_token_needs_its_layout_said() -> None:
    net = seer(1, "class", dims=1)
    for method in METHODS:
        found = show(net, net.x(), method, layer=("blocks.1", tokens(prefix=1, grid=(6,))))
        assert apart(found, twin(net, net.x(), method)) < 1e-10


def test_rollout_is_a_share_of_all_tokens() -> None:
    net = seer(0, "mean")
    assert apart(show(net, net.x(3), "rollout").flatten(1).sum(1), torch.ones(3, dtype=torch.float64)) < 1e-12


def test_rollout_is_blind_to_the_class_and_says_so() -> None:
    net = seer(1, "class")
    x = net.x()
    assert torch.equal(show(net, x, "rollout", 0), show(net, x, "rollout", 3)) and get("rollout").class_agnostic
    assert not any(get(m).class_agnostic for m in METHODS[1:])


@every_method
def test_a_batch_is_its_pictures_one_by_one(method: str) -> None:
    net = seer(2, "class")
    x = net.x(3)
    together = show(net, x, method, [1, 0, 2])
    for i, k in enumerate((1, 0, 2)):
        assert apart(together[i : i + 1], show(net, x[i : i + 1], method, k)) < 1e-12


@every_method
def test_many_targets_at_once_are_each_of_them(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = seer(1, "class")
    x = net.x(2)
    monkeypatch.setattr("camlucida.core.looking.GRADIENT_BYTES", 5000)  # two targets at a time
    found = cl.sweep(net, x, targets=[cl.classes(k) for k in range(5)], methods=[method])
    for k, e in enumerate(found):
        assert apart(e.map, show(net, x, method, k)) < 1e-12


@pytest.mark.parametrize("method", METHODS[:3])
def test_last_blocks_alone(method: str) -> None:
    """What the earlier blocks do is then only what the later ones are given."""
    net = seer(1, "class")
    x = net.x()
    with torch.no_grad():
        given = net.blocks[0](torch.cat([net.first, net.patch(x).flatten(2).transpose(1, 2) + net.position], 1))
    short = seer(1, "class")
    short.blocks = short.blocks[1:]
    short.first, short.position = (nn.Parameter(t) for t in (given[:, :1], given[:, 1:]))
    short.patch.weight.data.zero_(), short.patch.bias.data.zero_()
    assert apart(show(net, x, f"{method}:last=2"), twin(short, x, method)) < 1e-10
    assert apart(show(net, x, f"{method}:last=3"), show(net, x, method)) < 1e-12


@pytest.mark.parametrize("last", [4, -1])
def test_more_blocks_than_there_are(last: int) -> None:
    net = seer(1, "class")
    with pytest.raises(MethodError, match="this model has 3 blocks"):
        show(net, net.x(), f"legrad:last={last}")


@every_method
def test_no_trace_is_left(method: str) -> None:
    net = seer(1, "class").train()
    net.blocks[0].attn.qkv.weight.requires_grad_(False)
    with untouched(net):
        show(net, net.x(), method)
    with torch.inference_mode(), untouched(net):
        show(net, net.x(), method)
    assert torch.overrides._len_torch_function_stack() == 0


class Bursting(nn.Module):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.runs = after, 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        if self.runs > self.after:
            raise ArithmeticError("burst")
        return x


@every_method
@pytest.mark.parametrize("after", [0, 1, 3])
def test_no_trace_is_left_by_an_exception_from_inside(method: str, after: int) -> None:
    net = seer(1, "class")
    net.blocks.append(Bursting(after))
    try:
        with untouched(net):
            show(net, net.x(), method)
    except ArithmeticError:
        pass
    assert torch.overrides._len_torch_function_stack() == 0 and net.blocks[-1].runs > min(after, 1)


@every_method
def test_a_dead_score_has_a_blank_map_or_one_by_custom(method: str) -> None:
    net = seer(1, "class")
    net.head.weight.data.zero_()
    found = show(net, net.x(), method, layer="blocks.2.norm1")
    if method == "rollout":
        assert apart(found, twin(net, net.x(), method)) < 1e-12
    else:
        assert not found.any()


@every_method
def test_a_picture_of_nan_gives_nan_and_no_picture(method: str) -> None:
    net = seer(1, "class")
    e = cl.explain(net, torch.full_like(net.x(), math.nan), method=method, target=cl.classes(1))
    assert e.status == "non-finite"


def test_grad_eclip_of_equal_keys_lets_every_place_count() -> None:
    net = seer(0, "mean")
    net.blocks[-1].attn.qkv.weight.data[8:16] = 0  # keys are their bias
    net.blocks[-1].attn.qkv.bias.data[8:16] = 1
    _, grads = open_book(net, net.x(), lambda y: y[0, 1])
    expected = grads[-1].sum((0, 1)).reshape(1, 2, 3)  # g · v of each place, over heads and asking tokens
    assert apart(show(net, net.x(), "gradeclip"), expected) < 1e-10


def test_grad_eclip_says_where_values_are_hidden() -> None:
    net = seer(1, "class")
    core = lambda q, k, v, mask: ((q @ k.mT).softmax(-1)[..., None] * v[:, :, None]).sum(-2)  # noqa: E731
    hidden = net.written("fused")
    for block in hidden.blocks:
        block.attn.core = lambda q, k, v: core(q, k, v, None)
    assert show(hidden, net.x(), "attentionrelevance").abs().max() > 0
    with pytest.raises(MethodError, match=r"code hides them.*attentionrelevance"):
        show(hidden, net.x(), "gradeclip")


def test_rollout_with_heads_unknown() -> None:
    net = seer(1, "class")
    with pytest.raises(MethodError, match="heads is one of mean, min, max"):
        show(net, net.x(), "rollout:heads=median")


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_small_numbers_give_float32_maps_that_are_nearly_the_same(method: str, dtype: torch.dtype) -> None:
    net = seer(1, "class")
    x = net.x()
    exact = show(net, x, method)
    found = show(net.to(dtype), x.to(dtype), method)
    assert found.dtype == torch.float32
    assert apart(found.double(), exact) < (0.2 if dtype == torch.bfloat16 else 1e-4)


@every_method
def test_autocast_of_the_caller_is_kept(method: str) -> None:
    net = seer(1, "class").float()
    x = net.x().float()
    exact = show(net, x, method)
    with torch.autocast("cpu", torch.bfloat16):
        found = show(net, x, method)
    assert found.dtype == torch.float32 and 0 < apart(found, exact) < 0.2


@every_method
def test_a_layer_named_with_its_layout_only_says_the_grid(method: str) -> None:
    net = seer(3, "class")
    x = net.x()
    named = show(net, x, method, layer=("blocks.0", tokens(prefix=3, grid=(2, 3))))
    assert apart(named, show(net, x, method)) < 1e-12
    assert apart(show(net, x, method, layer="patch"), named) < 1e-12


@every_method
def test_nets_of_the_house(method: str) -> None:
    for registers, pool in ((0, "class"), (2, "class"), (2, "mean")):
        net = nets.token_net(registers, pool)
        assert show(net, net.x(2), method).shape == (2, 4, 6)


def test_legrad_does_not_depend_on_what_the_model_pools() -> None:
    """Norm and head see the mean of a block's tokens, whichever tokens they see elsewhere."""
    one, two = seer(1, "class"), seer(1, "mean")
    x = one.x()
    assert apart(show(one, x, "legrad"), show(two, x, "legrad", layer="blocks.0")) < 1e-12
