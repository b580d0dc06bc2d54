"""Attention of any transformer: probabilities and gradients as plain autograd has them, the model's numbers and
everything about it as they were."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fingerprint import untouched
from replicas import apart
from replicas_attention import CORES, Seer, moved, open_book, seer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import camlucida as cl
from camlucida.core.attention import Lens
from camlucida.core.capture import Inputs
from camlucida.core.layouts import tokens
from camlucida.core.looking import Looking
from camlucida.errors import MethodError
from camlucida.types import Attention, Layout

every_form = pytest.mark.parametrize("form", CORES)


def look(net: nn.Module, x: Tensor, grid: tuple[int, ...], layout: Layout, **more: Any) -> Attention:
    """What a method is handed of one picture, targets all at once."""
    kept: list[Attention] = []
    last, score, ks = (more.get(n, d) for n, d in (("last", 0), ("score", "output"), ("ks", (1,))))

    def read(seen: Attention) -> Tensor:
        kept.append(seen)
        return seen.map(seen.reads.expand(len(seen.grads[0]) if seen.grads else 1, -1))

    found = Looking(net, Inputs((x,)), [cl.classes(k) for k in ks], grid, layout).attend(read, last, score)
    assert found.shape == (len(ks), *grid) and len(kept) == 1
    return kept[0]


def seen_of(net: Seer, x: Tensor, **more: Any) -> Attention:
    return look(net, x, net.grid, tokens(net.prefix, net.grid), **more)


class Calls(TorchFunctionMode):
    """Counts the fused calls that reach torch."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.fused += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


# ----------------------------------------------------------------------------------------- probabilities and gradients


@every_form
@pytest.mark.parametrize("mask", [False, True])
def test_probabilities_and_gradients_are_those_of_plain_autograd(form: str, mask: bool) -> None:
    net = seer(2, "class", mask=mask)
    x = net.x()
    seen = seen_of(net.written(form), x, ks=(1, 3))
    for t, k in enumerate((1, 3)):
        probs, grads = open_book(net, x, lambda y, k=k: y[0, k])
        for block in range(3):
            assert apart(seen.probs[block], probs[block]) < 1e-12
            assert apart(seen.grads[block][t], grads[block]) < 1e-10
    assert all(apart(p.sum(-1), torch.ones(p.shape[:2], dtype=p.dtype)) < 1e-12 for p in seen.probs)


def test_gradients_are_differences() -> None:
    net = seer(1, "class")
    x, step = net.x(), 1e-5
    seen = seen_of(net, x)
    for block, at in ((0, (0, 2, 3)), (1, (1, 4, 0)), (2, (0, 0, 5)), (2, (1, 3, 3))):
        ups, downs = (moved(net, x, lambda y: y[0, 1], block, at, by) for by in (step, -step))
        assert float(seen.grads[block][(0, *at)]) == pytest.approx((ups - downs) / (2 * step), abs=1e-8)


@every_form
def test_the_last_block_opens_its_queries_keys_and_values(form: str) -> None:
    net = seer(1, "class", mask=True)
    x = net.x()
    seen = seen_of(net.written(form), x, last=1)
    plain = net.written("open").requires_grad_()
    y = plain(x)[0, 1]
    attn = plain.blocks[-1].attn
    (flow,) = torch.autograd.grad(y, attn.gathered)
    query, key, value = (t[0].detach() for t in attn.qkvs)
    scale = float((seen.inside[0] / query).mean())  # a query may come scaled: only its direction is used
    assert apart(seen.inside[0], query * scale) < 1e-10
    assert apart(seen.inside[1], key) < 1e-12 and apart(seen.inside[2], value) < 1e-12
    assert apart(seen.inside[3], flow) < 1e-10 and len(seen.probs) == 1


ASKED: dict[str, dict[str, Any]] = {
    "plain": {}, "scale": {"scale": 0.3}, "causal": {"is_causal": True},
    "added": {"attn_mask": torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)},
    "allowed": {"attn_mask": torch.rand(7, 7, generator=torch.Generator().manual_seed(3)) > 0.4},
    "nowhere": {"attn_mask": (torch.arange(7) != 2)[:, None].expand(7, 7)},
    "nothing added": {"attn_mask": torch.zeros(7, 7, dtype=torch.float64).masked_fill(torch.eye(7) == 1, -torch.inf)},
}  # fmt: skip


@pytest.mark.parametrize("how", ASKED)
@pytest.mark.parametrize("keywords", [False, True])
def test_explicit_attention_is_the_fused_one(how: str, keywords: bool) -> None:
    q, k, v = torch.randn(3, 1, 2, 7, 4, dtype=torch.float64)
    given: Any = ((), {"query": q, "key": k, "value": v}) if keywords else ((q, k, v), {})
    plain = F.scaled_dot_product_attention(*given[0], **given[1], **ASKED[how])
    with Lens(lambda n: n == 7, 0) as lens, Calls():
        made = F.scaled_dot_product_attention(*given[0], **given[1], **ASKED[how])
    assert apart(made.detach(), plain) < 1e-12 and len(lens.blocks) == 1 and made.requires_grad


def test_grouped_queries() -> None:
    q, (k, v) = torch.randn(1, 6, 7, 4), torch.randn(2, 1, 2, 7, 4)
    plain = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    with Lens(lambda n: n == 7, 0) as lens:
        made = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert apart(made.detach().double(), plain.double()) < 1e-6 and lens.blocks[0].probs.shape == (1, 6, 7, 7)


@every_form
def test_the_models_answer_is_the_same(form: str) -> None:
    net = seer(1, "class", mask=True).written(form)
    x = net.x()
    with torch.no_grad():
        plain = net(x)
        with Lens(lambda n: n == 7, 0):
            assert apart(net(x).detach(), plain) < 1e-12
        with Lens(lambda n: n == 7, 3):
            assert torch.equal(net(x), plain)


def test_only_the_blocks_asked_for_are_made_explicit() -> None:
    net = seer(1, "class")
    x = net.x()
    with Calls() as calls:
        assert len(seen_of(net, x).probs) == 3 and calls.fused == 0
        assert len(seen_of(net, x, last=2).probs) == 2 and calls.fused == 3 + 1  # three to count them
    every, last = seen_of(net, x), seen_of(net, x, last=2)
    assert all(apart(a, b) < 1e-12 for a, b in zip(every.grads[1:], last.grads, strict=True))


def test_recording_begins_at_the_first_attention_asked_for() -> None:
    net = seer(1, "class")
    with torch.no_grad(), Lens(lambda n: n == 7, 2) as lens:
        kept: list[Tensor] = []
        handle = net.blocks[1].register_forward_hook(lambda m, a, made: kept.append(made))
        y = net(net.x())
        handle.remove()
    assert not kept[0].requires_grad and y.requires_grad and lens.blocks[0].probs.is_leaf


def test_without_scores_no_gradients() -> None:
    net = seer(1, "class")
    seen = seen_of(net, net.x(), score="none", ks=(0, 1))
    assert not seen.grads and not seen.inside and len(seen.probs) == 3


# --------------------------------------------------------------------------------------------------- what is read out


@pytest.mark.parametrize(
    ("prefix", "pool"), [(1, "class"), (3, "class"), (2, "two"), (0, "mean"), (1, "mean"), (4, "mean")]
)
def test_what_the_model_reads_out_is_found(prefix: int, pool: str) -> None:
    net = seer(prefix, pool)
    seen = seen_of(net, net.x())
    assert seen.reads.nonzero()[:, 0].tolist() == net.reads and seen.reads.sum() == pytest.approx(1)


def test_a_score_that_cancels_out_over_targets_is_read_all_the_same() -> None:
    net = seer(1, "class")
    ways = [lambda y: y[:, 0] - y[:, 1], lambda y: y[:, 1] - y[:, 0]]
    kept: list[Attention] = []
    read = lambda seen: kept.append(seen) or seen.map(seen.reads[None].repeat(2, 1))  # noqa: E731
    Looking(net, Inputs((net.x(),)), ways, net.grid, tokens(1, net.grid)).attend(read)
    assert kept[0].reads.nonzero()[:, 0].tolist() == [0]


# ------------------------------------------------------------------------------------------------------- torch's own


class Encoded(nn.Module):
    """`nn.TransformerEncoder` on patches, in evaluation mode: its fused path hides everything."""

    def __init__(self, batch_first: bool = True, norm_first: bool = False) -> None:
        super().__init__()
        self.patch, self.first = nn.Conv2d(2, 8, 2, stride=2), batch_first
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        places = self.patch(x).flatten(2).mT
        made = self.encoder(places) if self.first else self.encoder(places.transpose(0, 1)).transpose(0, 1)
        return self.head(made.mean(1))


def by_hand(layer: nn.TransformerEncoderLayer, z: Tensor) -> tuple[Tensor, Tensor]:
    """One layer's probabilities and output from its weights, batch first."""
    attn, (b, n, c) = layer.self_attn, z.shape
    given = layer.norm1(z) if layer.norm_first else z
    q, k, v = (given @ attn.in_proj_weight.T + attn.in_proj_bias).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
    probs = (q @ k.mT / (c // 2) ** 0.5).softmax(-1)
    made = attn.out_proj((probs @ v).transpose(1, 2).reshape(b, n, c))
    ff = lambda t: layer.linear2(layer.linear1(t).relu())  # noqa: E731
    if layer.norm_first:
        z = z + made
        return probs, z + ff(layer.norm2(z))
    z = layer.norm1(z + made)
    return probs, layer.norm2(z + ff(z))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_the_encoder_of_torch_past_its_fast_path(batch_first: bool, norm_first: bool) -> None:
    net = Encoded(batch_first, norm_first).double().eval()
    x = torch.randn(1, 2, 4, 6, dtype=torch.float64)
    before = torch.backends.mha.get_fastpath_enabled()
    seen = look(net, x, (2, 3), lambda t: t)
    z = net.patch(x).flatten(2).mT
    for layer, found in zip(net.encoder.layers, seen.probs, strict=True):
        probs, z = by_hand(layer, z)
        assert apart(found, probs[0].detach()) < 1e-12
    assert torch.backends.mha.get_fastpath_enabled() == before
    for method in ("rollout", "attentionrelevance", "legrad", "gradeclip"):
        e = cl.explain(net, x, method=method, target=cl.classes(1), layer="patch")
        assert e.map.shape == (1, 2, 3) and e.map.abs().max() > 0


def test_batch_first_or_not_is_the_same_map() -> None:
    one, two = Encoded(True).double().eval(), Encoded(False).double().eval()
    two.load_state_dict(one.state_dict())
    x = torch.randn(2, 2, 4, 6, dtype=torch.float64)
    for method in ("rollout", "attentionrelevance", "legrad", "gradeclip"):
        a, b = (cl.explain(n, x, method=method, target=cl.classes(1), layer="patch").map for n in (one, two))
        assert apart(a, b) < 1e-12


@pytest.mark.parametrize("weights", [None, "each", "mean"])
def test_multihead_attention_gives_its_caller_what_it_asked_for(weights: str | None) -> None:
    attn = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    z = torch.randn(1, 6, 8, dtype=torch.float64)
    how = {"need_weights": weights is not None, "average_attn_weights": weights == "mean"}
    with torch.no_grad():
        made, told = attn(z, z, z, **how)
        _, each = attn(z, z, z, average_attn_weights=False)
        for first in (0, 1):
            with Lens(lambda n: n == 6, first) as lens:
                again, retold = attn(z, z, z, **how)
            assert apart(again.detach(), made) < 1e-12 and len(lens.inside) == 1 and len(lens.blocks) == 1 - first
            assert (retold is None) == (told is None) and (told is None or apart(retold.detach(), told) < 1e-12)
            if not first:
                assert apart(lens.blocks[0].probs.detach().reshape(1, 2, 6, 6), each) < 1e-12


def test_multihead_attention_with_padding() -> None:
    attn = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    z, pad = torch.randn(1, 6, 8, dtype=torch.float64), torch.arange(6)[None] > 3
    with torch.no_grad():
        made, _ = attn(z, z, z, key_padding_mask=pad, need_weights=False)
        with Lens(lambda n: n == 6, 0) as lens:
            again, _ = attn(z, z, z, key_padding_mask=pad, need_weights=False)
    assert apart(again.detach(), made) < 1e-12 and not lens.blocks[0].probs[..., 4:].any()


# ------------------------------------------------------------------------------------------------- models of others


@contextmanager
def eager(net: nn.Module) -> Iterator[list[Tensor]]:
    """Probabilities as timm's own unfused code makes them."""
    found: list[Tensor] = []
    fused = [m for m in net.modules() if hasattr(m, "fused_attn")]
    was = [m.fused_attn for m in fused]
    handles = [m.attn_drop.register_forward_pre_hook(lambda _, a: found.append(a[0].detach()[0])) for m in fused]
    for m in fused:
        m.fused_attn = False
    yield found
    for m, before, handle in zip(fused, was, handles, strict=True):
        m.fused_attn = before
        handle.remove()


TIMM: dict[str, tuple[str, int, list[int] | str]] = {
    "class token": ("vit_tiny_patch16_224", 1, [0]),
    "class and distillation": ("deit_tiny_distilled_patch16_224", 2, [0, 1]),
    "registers": ("vit_small_patch14_reg4_dinov2", 5, [0]),
    "mean": ("vit_base_patch16_siglip_gap_224", 0, "places"),
    "registers and mean": ("vit_medium_patch16_reg4_gap_256", 4, "places"),
    "relative position bias": ("beit_base_patch16_224", 1, "places"),
}


@pytest.mark.parametrize("kind", TIMM)
def test_transformers_of_timm(timm: ModuleType, kind: str) -> None:
    name, prefix, reads = TIMM[kind]
    size = 56 if "patch14" in name else 64
    net = timm.create_model(name, img_size=size, depth=2, num_classes=5).eval().requires_grad_(False)
    x = torch.randn(1, 3, size, size)
    with torch.no_grad(), eager(net) as expected:
        net(x)
    seen = look(net, x, (4, 4), tokens(prefix, (4, 4)))
    assert len(expected) == len(seen.probs) == 2
    for found, plain in zip(seen.probs, expected, strict=True):
        assert apart(found.double(), plain.double()) < 1e-5
    assert seen.reads.nonzero()[:, 0].tolist() == (list(range(prefix, prefix + 16)) if reads == "places" else reads)
    with untouched(net):
        for method in ("rollout", "attentionrelevance", "legrad", "gradeclip"):
            e = cl.explain(net, x, method=method, target=cl.classes(1))
            assert e.map.shape == (1, 4, 4) and e.status == "ok"


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "pvt_v2_b0", "resnet18"])
def test_models_whose_attention_is_no_map_say_so(timm: ModuleType, name: str) -> None:
    net = timm.create_model(name, num_classes=3, **({"img_size": 64} if name[0] == "s" else {})).eval()
    kind = {"s": "within .* windows", "p": "from .* tokens to .* others", "r": "no attention was seen"}[name[0]]
    x = torch.randn(1, 3, 64, 64)
    with untouched(net), pytest.raises(MethodError, match=rf"{kind}.*method='gradcam'"):
        cl.explain(net, x, method="rollout")


def test_attention_after_the_tokens_is_left_out(timm: ModuleType) -> None:
    """A pool that attends (SigLIP) and class attention (CaiT) come after the attention of all to all."""
    for name in ("vit_base_patch16_siglip_224", "cait_xxs24_224"):
        net = timm.create_model(name, img_size=48, depth=2, num_classes=5).eval()
        for method in ("rollout", "legrad"):
            assert cl.explain(net, torch.randn(1, 3, 48, 48), method=method).map.shape == (1, 3, 3)


@pytest.mark.parametrize("written", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["ViT", "DeiT", "Beit"])
def test_transformers_of_transformers(transformers: ModuleType, kind: str, written: str) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = getattr(transformers, f"{kind}Config")(
        image_size=24,
        patch_size=8,
        num_labels=5,
        **small,
        **({"use_relative_position_bias": True} if kind == "Beit" else {}),
    )
    net = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    x = torch.randn(1, 3, 24, 24)
    net.set_attn_implementation("eager")
    with torch.no_grad():
        expected = net(x, output_attentions=True).attentions
    net.set_attn_implementation(written)
    prefix = 2 if kind == "DeiT" else 1
    seen = look(net, x, (3, 3), tokens(prefix, (3, 3)))
    assert len(seen.probs) == 2
    for found, plain in zip(seen.probs, expected, strict=True):
        assert apart(found.double(), plain[0].double()) < 1e-5
    with untouched(net):
        for method in ("rollout", "attentionrelevance", "legrad", "gradeclip"):
            assert cl.explain(net, x, method=method, target=cl.classes(1)).map.shape == (1, 3, 3)


def test_the_transformer_of_torchvision(torchvision: ModuleType) -> None:
    net = torchvision.models.VisionTransformer(24, 8, 2, 2, 16, 24, num_classes=5).double().eval()
    nn.init.normal_(net.heads.head.weight)
    x = torch.randn(1, 3, 24, 24, dtype=torch.float64)
    seen = look(net, x, (3, 3), tokens(1, (3, 3)))
    z = torch.cat([net.class_token, net._process_input(x)], 1) + net.encoder.pos_embedding
    for block, found in zip(net.encoder.layers, seen.probs, strict=True):
        given = block.ln_1(z)
        _, plain = block.self_attention(given, given, given, average_attn_weights=False)
        assert apart(found, plain[0].detach()) < 1e-12
        z = block(z)
    assert seen.reads.nonzero()[:, 0].tolist() == [0]
    for method in ("rollout", "attentionrelevance", "legrad", "gradeclip"):
        assert cl.explain(net, x, method=method, target=cl.classes(1)).status == "ok"


# -------------------------------------------------------------------------------------------------- what it refuses


class Crossing(nn.Module):
    """Places that look at three tokens of their own."""

    def __init__(self, written_out: bool) -> None:
        super().__init__()
        self.patch, self.out, self.head = nn.Conv2d(2, 8, 2, stride=2), written_out, nn.Linear(8, 5)
        self.others = nn.Parameter(torch.randn(1, 1, 3, 8))

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.patch(x).flatten(2).mT[:, None], self.others.expand(len(x), -1, -1, -1)
        made = (q @ k.mT).softmax(-1) @ k if self.out else F.scaled_dot_product_attention(q, k, k)
        return self.head(made[:, 0].mean(1))


@pytest.mark.parametrize("written_out", [False, True])
def test_cross_attention_is_refused(written_out: bool) -> None:
    net = Crossing(written_out)
    with pytest.raises(MethodError, match=r"attends from 6 tokens to 3 others.*gradcam"):
        cl.explain(net, torch.randn(1, 2, 4, 6), method="rollout", layer="patch")


def test_a_softmax_that_is_no_attention_is_none() -> None:
    net = nn.Sequential(nn.Conv2d(2, 6, 2, stride=2), nn.Flatten(2), nn.Softmax(-1), nn.Flatten(), nn.Linear(36, 5))
    with pytest.raises(MethodError, match="no attention was seen"):
        cl.explain(net, torch.randn(1, 2, 4, 6), method="rollout", layer="0")


def test_another_grid_than_the_tokens_is_refused() -> None:
    net = seer(0, "mean")
    with pytest.raises(MethodError, match=r"among 6 tokens.*the layer's grid is 4×6"):
        cl.explain(net, net.x(), method="rollout", layer="input")


class Loose(Seer):
    """Blocks that are no modules of their own."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.patch(x).flatten(2).mT + self.position
        for b in self.blocks:
            q = z[:, None]
            z = z + F.scaled_dot_product_attention(q, q, q)[:, 0] + b.mlp(z)
        return self.end(z)


def test_blocks_that_are_no_modules_have_no_score_of_their_own() -> None:
    net = Loose(0, "mean").double().eval()
    assert cl.explain(net, net.x(), method="attentionrelevance", target=cl.classes(0)).map.any()
    with pytest.raises(MethodError, match=r"every block to be a module.*attentionrelevance"):
        cl.explain(net, net.x(), method="legrad", target=cl.classes(0))


# ----------------------------------------------------------------------------------------- modes, threads, checkpoints


class Frozen(Seer):
    """Its author runs all but the head without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = torch.cat([self.first, self.patch(x).flatten(2).mT + self.position], 1)
            for block in self.blocks:
                z = block(z)
        return self.end(z)


def test_blocks_that_their_author_runs_without_gradients() -> None:
    plain = seer(1, "class")
    net = Frozen(1, "class").double().eval()
    net.load_state_dict(plain.state_dict())
    x = net.x()
    assert all(apart(a, b) < 1e-10 for a, b in zip(seen_of(net, x).grads, seen_of(plain, x).grads, strict=True))
    for method in ("rollout", "attentionrelevance", "legrad", "gradeclip"):
        one, two = (cl.explain(n, x, method=method, target=cl.classes(1), layer="blocks.0").map for n in (net, plain))
        assert apart(one, two) < 1e-10


class Saving(Seer):
    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        z = torch.cat([self.first, self.patch(x).flatten(2).mT + self.position], 1)
        for block in self.blocks:
            z = checkpoint(block, z, use_reentrant=self.reentrant)
        return self.end(z)


@pytest.mark.parametrize("method", ["rollout", "attentionrelevance", "legrad", "gradeclip"])
def test_blocks_that_are_computed_twice_to_save_memory(method: str) -> None:
    plain = seer(1, "class")
    net = Saving(1, "class").double().eval()
    net.load_state_dict(plain.state_dict())
    x, net.reentrant = net.x(), True
    one, two = (cl.explain(n, x, method=method, target=cl.classes(1), layer="patch").map for n in (net, plain))
    assert apart(one, two) < 1e-10
    net.reentrant = False
    if method == "gradeclip":  # recording begins inside the last block, which is then not computed twice
        found = cl.explain(net, x, method=method, target=cl.classes(1), layer="patch").map
        assert apart(found, two) < 1e-10
        return
    with untouched(net), pytest.raises(MethodError, match="switch gradient checkpointing off"):
        cl.explain(net, x, method=method, target=cl.classes(1), layer="patch")


def test_training_mode_and_frozen_weights_do_not_matter() -> None:
    net = Encoded().double().eval()
    x = torch.randn(1, 2, 4, 6, dtype=torch.float64)
    before = cl.explain(net, x, method="attentionrelevance", layer="patch").map
    net.train().requires_grad_(False)
    with untouched(net), torch.inference_mode():
        assert apart(cl.explain(net, x, method="attentionrelevance", layer="patch").map, before) < 1e-12
    assert net.training and net.encoder.layers[0].training


def test_many_threads_on_one_model() -> None:
    net = seer(1, "class")
    xs = [net.x(seed=s) for s in range(4)]
    ask: Callable[[Tensor], Tensor] = lambda x: torch.cat(  # noqa: E731
        [cl.explain(net, x, method=m, target=cl.classes(1)).map for m in ("rollout", "attentionrelevance", "legrad")]
    )
    alone, found, wrong = [ask(x) for x in xs], {}, []
    with torch.no_grad():
        plain = net(xs[0])

    def watch() -> None:
        with torch.no_grad():
            for _ in range(40):
                wrong.append(not torch.equal(net(xs[0]), plain))

    def work(i: int) -> None:
        for _ in range(2):
            found.setdefault(i, []).append(ask(xs[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)] + [threading.Thread(target=watch)]
    with untouched(net):
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert len(wrong) == 40 and not any(wrong)
    assert all(torch.equal(m, alone[i]) for i in range(4) for m in found[i]) and len(found) == 4


@pytest.mark.parametrize("score", ["output", "block", "none"])
def test_an_exception_inside_leaves_no_trace(score: str) -> None:
    net = seer(1, "class")
    x = net.x()

    def burst(seen: Attention) -> Tensor:
        raise ArithmeticError("burst")

    asking = Looking(net, Inputs((x,)), [cl.classes(1)], net.grid, tokens(1, net.grid))
    with untouched(net), pytest.raises(ArithmeticError):
        asking.attend(burst, 0, score)
    assert torch.overrides._len_torch_function_stack() == 0 and not torch.is_inference_mode_enabled()
    with untouched(net), pytest.raises(RuntimeError):
        Looking(net, Inputs((x[:, :1],)), [cl.classes(1)], net.grid, tokens(1, net.grid)).attend(burst, 0, score)
    assert torch.overrides._len_torch_function_stack() == 0
