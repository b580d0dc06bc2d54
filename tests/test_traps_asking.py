"""Asking the model again, and what stands around it: what once gave a wrong map or a bare traceback."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import camlucida as cl
from camlucida import combine
from camlucida.core.capture import Inputs
from camlucida.core.layers import survey
from camlucida.core.layouts import channels_first, infer
from camlucida.core.supervise import supervised
from camlucida.errors import InputError, LayerError, LayoutError, MethodError, TargetError


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    ).eval()  # fmt: skip


PICTURES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------------- targets of the user's own


@pytest.mark.parametrize(
    "method",
    ["fasterscorecam:channels=2", "rise:samples=2", "opticam:steps=1", "smoothgradcampp:samples=3", "occlusion",
     "integratedgradients:steps=3", "smoothgrad:samples=3", "reciprocam", "fullgrad", "ablationcam"],
)  # fmt: skip
@pytest.mark.parametrize("gathers", [True, False])
def test_a_target_that_knows_the_rows_of_the_batch_is_refused(method: str, gathers: bool) -> None:
    labels = torch.tensor([1, 4, 2])

    def whole(y: Tensor) -> Tensor:
        return y.gather(1, labels[:, None])[:, 0]

    def begun(y: Tensor) -> Tensor:
        return y[torch.arange(len(y)), labels[: len(y)]]

    with pytest.raises(TargetError, match=r"target=cl\.classes\(\[…\]\)"):
        cl.explain(small(), PICTURES, target=whole if gathers else begun, method=method)


def test_a_target_that_looks_at_each_row_alone_is_asked_again() -> None:
    for method in ("fasterscorecam:channels=2", "occlusion", "smoothgrad:samples=3", "opticam:steps=1", "reciprocam"):
        mine = cl.explain(small(), PICTURES, target=lambda y: y[:, 2], method=method, layer="1")
        assert torch.allclose(
            mine.map, cl.explain(small(), PICTURES, target=2, method=method, layer="1").map, atol=1e-5
        )


def test_advice_never_names_the_layer_that_does_not_work() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.net(x)
            return y - 3 * y.mean(0, keepdim=True) if len(y) > 1 else y

    with pytest.raises(LayerError, match=r"'net\.1' alone.*another method\.$"):
        cl.explain(Mixing().eval(), PICTURES, target=1, method="shapleycam")


# --------------------------------------------------------------------------------------------------------- layouts


class Heads(nn.Module):
    """Attention whose queries are normalised head by head, ``b heads tokens d``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.q_norm = nn.LayerNorm(24), nn.Linear(24, 72), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, 3, 8)).permute(2, 0, 3, 1, 4)
        made = torch.nn.functional.scaled_dot_product_attention(self.q_norm(q), k, v)
        return x + made.transpose(1, 2).flatten(2)


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.cls = nn.Conv2d(3, 24, 16, 16), nn.Parameter(torch.randn(1, 1, 24))
        self.blocks, self.head = nn.Sequential(Heads(), Heads(), Heads()), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).mT
        made: Tensor = self.head(self.blocks(torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1))[:, 0])
        return made


def test_heads_times_tokens_are_no_grid() -> None:
    net, x = Vit().eval(), torch.randn(1, 3, 48, 48)  # 3 heads × 10 tokens, halved, is 2 × 5: ten places
    places = survey(net, Inputs((x,))).all
    assert {p.grid for p in places} == {(3, 3)} and {p.layout.prefix for p in places} == {0, 1}
    assert cl.explain(net, x).map.shape == (1, 3, 3)
    with pytest.raises(LayoutError, match="say how to read it"):
        cl.explain(net, x, layer="blocks.1.q_norm")


def test_a_grid_of_its_own_proportions_is_one_where_others_like_it_were_met() -> None:
    seen = [(12, 40)]
    assert infer((2, 80, 6, 20), (48, 48), nn.ReLU(), seen) == channels_first
    assert infer((2, 80, 6, 40), (48, 48), nn.MaxPool2d((2, 1)), seen) == channels_first
    with pytest.raises(LayoutError, match="12×40 met before"):
        infer((2, 80, 7, 33), (48, 48), nn.ReLU(), seen)


def test_a_padded_convolution_may_give_more_places_than_the_picture_has() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 2, padding=1), nn.Flatten(), nn.Linear(90, 4))
    e = cl.explain(net, torch.randn(1, 3, 4, 5), target=1, layer="0", method="hirescam")
    assert e.facts.layout == "channels first" and e.map.shape == (1, 5, 6)


# ----------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("after", [lambda y: {"logits": y}, lambda y: (y, y[:, :1, None])], ids=["mapping", "tuple"])
def test_a_head_is_known_whatever_holds_its_logits(after: Any) -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, x: Tensor) -> Any:
            return after(self.net(x))

    assert torch.equal(
        cl.explain(Held(), PICTURES, target=1, method="cam", layer="net.1").map,
        cl.explain(small(), PICTURES, target=1, method="cam", layer="1").map,
    )


# ------------------------------------------------------------------------------------------------------ supervision


def test_supervision_runs_compiled_models_as_plain_code() -> None:
    net = small().train()
    plain = supervised(net, PICTURES, target=1)[1]
    for compiled in (torch.compile(net, backend="eager"), net):
        if compiled is net:
            net.compile(backend="eager")
        assert torch.equal(supervised(compiled, PICTURES, target=1)[1], plain)  # type: ignore[arg-type]


def test_supervision_of_a_head_behind_frozen_layers() -> None:
    net = small()
    net[0].requires_grad_(False)
    y, maps = supervised(net, PICTURES, target=1)
    (maps.square().sum() + y.sum()).backward()
    grads = dict(net.named_parameters())
    last = grads["4.weight"].grad
    assert grads["0.weight"].grad is None and last is not None and bool(last[1].any())


def test_supervised_maps_are_made_in_full_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert supervised(small(), PICTURES, target=1)[1].dtype == torch.float32


def test_supervision_wants_a_layer_for_what_works_at_the_pixels() -> None:
    with pytest.raises(MethodError, match="name one with layer="):
        supervised(small(), PICTURES, method="gradient")
    assert supervised(small(), PICTURES, method="gradient", layer="1")[1].shape == (3, 8, 8)


# --------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "method", ["opticam:rate=0.0", "opticam:rate=-1.0", "smoothgrad:noise=-0.1", f"random:seed={2**127}"]
)
def test_options_that_mean_nothing_are_refused(method: str) -> None:
    with pytest.raises(MethodError):
        cl.explain(small(), PICTURES, target=1, method=method)


def test_combinations_take_iterators_and_refuse_what_is_no_number() -> None:
    both = cl.sweep(small(), PICTURES, targets=[1], layers=["0", "1"])
    assert torch.equal(combine.fuse(e for e in both).map, combine.fuse(both).map)
    for scale in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="shares of the picture's size"):
            combine.augmented(small(), PICTURES, scales=(scale,))
    with pytest.raises(InputError, match="noise of 0 or more"):
        combine.smooth(small(), PICTURES, noise=float("nan"))
