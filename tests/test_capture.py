"""Capture: what it must read, from any model in any state, and that it leaves no trace."""

import ast
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fingerprint import untouched
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import camlucida as cl
from camlucida.core import capture
from camlucida.core.capture import How, Inputs, run
from camlucida.core.scope import named, one_walk, unwrap
from camlucida.errors import LayerError, TargetError


class Net(nn.Module):
    """Two convolutions, a batch norm, dropout and a nonlinear head; the same weights, ``inplace`` or not."""

    def __init__(self, inplace: bool = False, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.relu1 = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.relu2 = nn.ReLU(inplace=inplace)
        self.drop = nn.Dropout(0.5)
        self.fc1 = nn.Linear(8 * 16, 12)
        self.fc2 = nn.Linear(12, 5)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn(self.conv1(x)))
        x = self.relu2(self.conv2(x))
        x = nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
        return self.fc2(self.drop(self.act(self.fc1(x))))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def by_hand(net: nn.Module, layer: nn.Module, x: Tensor = X, index: int = 2) -> Tensor:
    """Grad-CAM with one hook and autograd, the whole graph kept: the plainest way there is."""
    kept: dict[str, Tensor] = {}

    def hook(_m: nn.Module, _i: Any, out: Tensor) -> Tensor:
        kept["a"] = out
        return out.clone()

    handle = layer.register_forward_hook(hook)
    was = net.training
    with torch.enable_grad():
        y = net.eval()(x)
        (g,) = torch.autograd.grad(y[:, index].sum(), kept["a"])
    handle.remove()
    net.train(was)
    return (g.mean((2, 3), keepdim=True) * kept["a"]).sum(1).detach()


def plain(layer: str = "conv2") -> Tensor:
    """The map that every variant of the net must give."""
    net = Net()
    return by_hand(net, net.get_submodule(layer))


def gradcam(net: nn.Module, layer: Any = "conv2", x: Any = X, target: Any = 2) -> Tensor:
    return cl.explain(net, x, layer=layer, target=target).map


# ------------------------------------------------------------------------------------------------- it reads rightly


@pytest.mark.parametrize("layer", ["conv1", "bn", "relu1", "conv2", "relu2"])
@pytest.mark.parametrize("inplace", [False, True])
def test_the_map_is_the_plain_one_in_place_or_not(layer: str, inplace: bool) -> None:
    assert torch.allclose(gradcam(Net(inplace), layer), plain(layer), atol=1e-7)


def test_an_in_place_addition_after_the_layer_leaves_the_map_alone() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)
            self.same = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            kept = self.same(y)
            y += 1.5 * self.b(kept).tanh()  # writes into the tensor that `same` handed on
            return self.fc(y.tanh().mean((2, 3)))

    net = Residual()
    act = net.a(X).detach()
    leaf = act.clone().requires_grad_()
    score = net.fc((act + 1.5 * net.b(leaf).tanh()).tanh().mean((2, 3)))[:, 2].sum()
    (grad,) = torch.autograd.grad(score, leaf)
    expected = (grad.mean((2, 3), keepdim=True) * act).sum(1)
    # What `same` handed on is read before it is overwritten, and only what follows through it counts.
    assert torch.allclose(cl.explain(net, X, layer="same", target=2).map, expected, atol=1e-6)


def test_layers_come_back_in_the_order_asked() -> None:
    net = Net()
    both = cl.sweep(net, X, targets=[2], layers=["relu2", "conv1"])
    assert [e.layer for e in both] == ["relu2", "conv1"]
    assert torch.equal(both[0].map, gradcam(net, "relu2")) and torch.allclose(both[1].map, gradcam(net, "conv1"))


def test_the_layers_before_the_captured_one_leave_no_graph() -> None:
    net = Net()
    with run(net, Inputs((X,)), ["conv2"], spy=["conv1", "relu1", "fc1"]) as tape:
        made = {c.name: c.made for c in tape.calls}
        assert made["conv1"].grad_fn is None and made["relu1"].grad_fn is None
        assert tape.acts["conv2"].is_leaf and made["fc1"].grad_fn is not None


def test_gradients_are_taken_at_the_captured_layers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    grad = torch.autograd.grad

    def watched(outputs: Any, inputs: Any, *rest: Any, **how: Any) -> Any:
        asked.append(len(inputs))
        return grad(outputs, inputs, *rest, **how)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    gradcam(Net())
    assert asked == [1]


Pair = namedtuple("Pair", "features extra")


@dataclass
class Held:
    features: Tensor
    note: str = "n"


@pytest.mark.parametrize(
    "wrap, unpack",
    [
        (lambda f: (f, 1), lambda o: o[0]),
        (lambda f: [None, f], lambda o: o[1]),
        (lambda f: {"n": 1, "f": f}, lambda o: o["f"]),
        (lambda f: Pair(f, None), lambda o: o.features),
        (lambda f: Held(f), lambda o: o.features),
        (lambda f: {"deep": (Held(f),)}, lambda o: o["deep"][0].features),
    ],
    ids=["tuple", "list", "dict", "named tuple", "dataclass", "nested"],
)
def test_a_layer_may_give_its_features_in_any_container(wrap: Any, unpack: Any) -> None:
    class Layer(nn.Module):
        def __init__(self, conv: nn.Module) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> Any:
            return wrap(self.conv(x))

    class Outer(Net):
        def __init__(self) -> None:
            super().__init__()
            self.conv2 = Layer(self.conv2)  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu2(unpack(self.conv2(self.relu1(self.bn(self.conv1(x))))))
            return self.fc2(self.act(self.fc1(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))))

    plain = Net()
    assert torch.allclose(gradcam(Outer()), by_hand(plain, plain.conv2), atol=1e-7)


def test_a_transformers_style_output_is_swapped_and_read(transformers: Any) -> None:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        num_labels=5,
    )
    torch.manual_seed(0)
    net = transformers.ViTForImageClassification(config)
    e = cl.explain(net, torch.randn(2, 3, 16, 16), target=1)
    assert e.map.shape == (2, 4, 4) and e.status == "ok" and "tokens(prefix=1, grid=4×4)" in e.facts.layout


def test_arguments_and_keywords_reach_the_model_untouched() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, scale: float, *, pixels: Tensor, flip: bool = False) -> dict[str, Tensor]:
            return {"logits": self.net(pixels.flip(3) if flip else pixels) * scale, "aux": pixels}

    inputs = Inputs((2.0,), {"pixels": X, "flip": True})
    e = cl.explain(Two(), inputs, layer="net.conv2", target=2)
    net = Net()
    assert torch.allclose(e.map, 2 * by_hand(net, net.conv2, X.flip(3)), atol=1e-6)
    keywords = cl.explain(Two(), {"scale": 1.0, "pixels": X}, layer="net.conv2", target=2)
    assert torch.allclose(keywords.map, by_hand(net, net.conv2), atol=1e-6)


def test_a_target_of_ones_own_reads_the_models_own_output() -> None:
    class Segment(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.classes = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 1)

        def forward(self, x: Tensor) -> Any:
            return {"masks": self.classes(self.conv(x).relu()), "n": 3}

    e = cl.explain(
        Segment(), X, target=lambda out: out["masks"][:, 2, :4].mean((1, 2)), layer="conv", method="hirescam"
    )
    assert e.probabilities is None and e.classes is None
    assert e.map[:, 4:].abs().max() == 0 < e.map[:, :4].abs().max()  # HiResCAM keeps to where the target looks


# ------------------------------------------------------------------------------------------------- in any state


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "enable_grad"])
def test_the_callers_gradient_mode_does_not_matter(mode: str) -> None:
    net = Net()
    with getattr(torch, mode)():
        x = X * 1  # made inside: under inference_mode it is an inference tensor
        got = gradcam(net, x=x)
    assert torch.allclose(got, by_hand(net, net.conv2), atol=1e-7)


def test_frozen_parameters_do_not_matter() -> None:
    net = Net().requires_grad_(False)
    assert torch.allclose(gradcam(net), plain(), atol=1e-7)


def test_a_model_in_training_is_explained_in_evaluation_and_left_in_training() -> None:
    net = Net()
    net.train()
    net.drop.eval()  # a mixture must come back as that mixture
    with untouched(net):
        got = gradcam(net)
    assert torch.allclose(got, plain(), atol=1e-7)


def test_a_live_graph_outside_still_runs_backward_afterwards() -> None:
    net, x = Net().eval(), X.clone().requires_grad_()
    loss = net(x).sum()
    net.conv1.weight.grad = torch.ones_like(net.conv1.weight)
    with untouched(net):
        gradcam(net, x=x)
        assert x.grad is None
    loss.backward()
    assert x.grad is not None and not torch.equal(net.conv1.weight.grad, torch.ones_like(net.conv1.weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_give_float32_maps_close_to_the_full_ones(dtype: torch.dtype) -> None:
    e = cl.explain(Net().to(dtype), X.to(dtype), layer="conv2", target=2)
    full = plain()
    assert e.map.dtype == torch.float32
    assert torch.allclose(e.map, full, atol=0.05 * float(full.abs().max()))


def test_fp16_gradients_too_small_for_fp16_survive() -> None:
    class Faint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).relu().mean((2, 3)).tanh()) * 1e-5

    half = cl.explain(Faint().half(), X.half(), layer="conv", target=0).map
    full = cl.explain(Faint(), X, layer="conv", target=0).map
    assert torch.corrcoef(torch.stack([half.flatten(), full.flatten()]))[0, 1] > 0.99


def test_autocast_outside_is_kept() -> None:
    net = Net()
    with torch.autocast("cpu", torch.bfloat16), untouched(net):
        e = cl.explain(net, X, layer="conv2", target=2)
    full = by_hand(net, net.conv2)
    assert e.map.dtype == torch.float32 and torch.allclose(e.map, full, atol=0.05 * float(full.abs().max()))
    assert not torch.equal(e.map, full)  # it did run in bfloat16


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("how", ["whole", "in place", "part"])
def test_compiled_models_that_have_already_run_are_read(backend: str, how: str) -> None:
    net = Net().eval()
    model: Any = net
    if how == "whole":
        model = torch.compile(net, backend=backend)
    elif how == "in place":
        net.compile(backend=backend)
    else:
        net.conv2 = torch.compile(net.conv2, backend=backend)  # type: ignore[assignment]
    with torch.no_grad():
        model(X)
    got = gradcam(model)
    assert torch.allclose(got, plain(), atol=1e-6)
    assert torch._dynamo.eval_frame._stance.stance == "default"
    torch._dynamo.reset()


def test_data_parallel_is_looked_through() -> None:
    net = Net()
    wrapped = nn.DataParallel(net)
    assert unwrap(wrapped) is net
    assert torch.equal(gradcam(wrapped), gradcam(net)) and torch.equal(gradcam(wrapped, net.conv2), gradcam(net))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("layer", ["a.0", "b.0"])
def test_gradient_checkpointing_is_no_obstacle(reentrant: bool, layer: str) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, on: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.on = on
            self.a = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
            self.b = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh())
            self.c = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh())
            self.fc = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            for part in (self.a, self.b, self.c):
                x = checkpoint(part, x, use_reentrant=reentrant) if self.on else part(x)
            return self.fc(x.mean((2, 3)))

    net = Checkpointed(True)
    with untouched(net):
        got = cl.explain(net, X, layer=layer, target=2).map
    assert torch.allclose(got, cl.explain(Checkpointed(False), X, layer=layer, target=2).map, atol=1e-7)


def test_a_backbone_that_its_author_runs_without_gradients_is_read() -> None:
    class Probe(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.relu1(self.bn(self.conv1(x)))
                x = self.relu2(self.conv2(x))
            x = nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
            return self.fc2(self.act(self.fc1(x)))

    net = Probe()
    with untouched(net):
        got = gradcam(net)
    assert torch.allclose(got, plain(), atol=1e-7)


def test_recurrent_layers_after_the_features_are_read() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gru, self.fc = (
                nn.Conv2d(3, 4, 3, padding=1),
                nn.GRU(4, 6, batch_first=True),
                nn.Linear(6, 5),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.gru(self.conv(x).relu().mean(2).transpose(1, 2))[0][:, -1])

    net = Reader().train()
    with untouched(net):
        e = cl.explain(net, X, layer="conv", target=1)
    assert e.status == "ok" and e.map.shape == (2, 8, 8)


def test_a_score_that_is_dead_for_a_picture_is_a_status_not_a_wrong_layer() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    for p in net.parameters():
        nn.init.constant_(p, 1.0)
    nn.init.constant_(net[2].weight[1].data, -1.0)
    nn.init.constant_(net[2].bias.data[1:], -1.0)
    x = torch.rand(1, 1, 8, 8)
    for target in (1, lambda y: y[:, 1]):
        e = cl.explain(net, x, target=target, layer="1")
        assert e.status == "zero gradient" and e.heatmap().abs().max() == 0


def test_random_numbers_drawn_by_the_model_are_given_back() -> None:
    class MonteCarlo(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.dropout(x, 0.5, training=True))

    net = MonteCarlo()
    with untouched(net):
        gradcam(net)


def test_hooks_of_the_users_own_are_called_once_a_forward() -> None:
    net, seen = Net(), []
    handle = net.conv2.register_forward_hook(lambda *_: seen.append(1))
    net.conv2.register_forward_pre_hook(lambda *_: None)
    with untouched(net):
        gradcam(net)
        assert seen == [1, 1], "once for the map, and once to see where the cells of its grid look"
        gradcam(net)
    assert seen == [1, 1, 1], "which is remembered"
    handle.remove()


def test_the_input_itself_is_a_layer() -> None:
    net = Net().eval()
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(net(x)[:, 2].sum(), x)
    e = cl.explain(net, X, layer="input", method="hirescam", target=2)
    assert torch.allclose(e.map, (grad * X).sum(1), atol=1e-7) and e.layer == "input"


# ------------------------------------------------------------------------------------------------- refusals


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn(self.conv1(x)))
        x = self.relu1(self.conv2(x))
        return self.fc2(self.act(self.fc1(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))))


class Aside(Net):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Conv2d(3, 2, 1)
        self.aside = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x)
        return super().forward(x)


@pytest.mark.parametrize(
    "net, layer, says",
    [
        (Twice(), "relu1", "ran 2 times.*use layer='conv2'"),
        (Aside(), "idle", "did not run.*use layer='relu2'"),
        (Aside(), "aside", "does not depend on it.*use layer='relu2'"),
        (Net(), "fc1", "no floating-point tensor with room for places.*use layer='relu2'"),
        (Net(), "conv3", "no layer 'conv3'.*Did you mean 'conv"),
    ],
)
def test_a_layer_that_cannot_serve_is_refused_and_the_right_one_named(net: nn.Module, layer: str, says: str) -> None:
    with untouched(net), pytest.raises(LayerError, match=says):
        gradcam(net, layer)


def test_a_model_that_hides_its_layers_is_refused() -> None:
    from camlucida.errors import MethodError

    with pytest.warns(DeprecationWarning):
        script = torch.jit.script(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()))
    with pytest.raises(MethodError, match="TorchScript hides its layers"):
        cl.explain(script, X)


def test_a_module_that_is_not_part_of_the_model_is_refused() -> None:
    with pytest.raises(LayerError, match="not part of this model"):
        gradcam(Net(), nn.Conv2d(3, 3, 1))


def test_a_layer_with_zero_gradient_is_refused_and_the_right_one_named(timm: Any) -> None:
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4, depth=2)
    for blind in ("blocks.1", "norm"):
        with pytest.raises(LayerError, match=r"exactly zero.*use layer='blocks\.1\.norm1'"):
            cl.explain(net, torch.randn(1, 3, 32, 32), layer=blind)


# ------------------------------------------------------------------------------------------------- no trace


class Broken(Net):
    """Raises what it is told to, half-way."""

    def __init__(self, problem: BaseException) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.conv2(self.relu1(self.bn(self.conv1(x)))))
        if x.requires_grad or len(x) > 1:
            raise self.problem
        return x


PROBLEMS = [ValueError("model's own"), KeyboardInterrupt(), torch.OutOfMemoryError("full"), SystemExit(3)]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("where", ["forward", "target"])
def test_nothing_is_left_behind_when_something_raises(problem: BaseException, where: str) -> None:
    def target(_output: Any) -> Tensor:
        raise problem

    net: nn.Module = Broken(problem) if where == "forward" else Net()
    net.train()
    with untouched(net), pytest.raises(type(problem)):
        gradcam(net, target=2 if where == "forward" else target)


def test_nothing_is_left_behind_by_an_interrupt_while_hooks_go_in(monkeypatch: pytest.MonkeyPatch) -> None:
    net, real = Net(), nn.Module.register_forward_hook

    def interrupted(self: nn.Module, hook: Any, **how: Any) -> Any:
        real(self, hook, **how)
        raise KeyboardInterrupt

    monkeypatch.setattr(nn.Module, "register_forward_hook", interrupted)
    with untouched(net), pytest.raises(KeyboardInterrupt):
        gradcam(net)


def test_nothing_is_left_behind_by_wrong_targets_and_layers() -> None:
    net = Net().train()
    for how in ({"target": 9999}, {"target": lambda y: y}, {"layer": "nowhere"}, {"x": X[:0]}):
        with untouched(net), pytest.raises((TargetError, LayerError, ValueError)):
            gradcam(net, **how)


def test_two_calls_do_not_keep_memory_or_the_model_alive() -> None:
    import gc
    import weakref

    net = Net()
    watch = weakref.ref(net)
    results = [cl.explain(net, X, target=2) for _ in range(3)]
    assert all(e.map.grad_fn is None and e.scores.grad_fn is None for e in results)
    del net
    gc.collect()
    assert watch() is None


def test_the_core_never_accumulates_gradients() -> None:
    """``backward()`` beside ``zero_grad()`` in another thread aborts the process: neither occurs but in training."""
    source = Path(capture.__file__).parents[1]
    called = {
        node.func.attr
        for path in source.rglob("*.py")
        if path.parent.name != "gap"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert not called & {"backward", "zero_grad"}


def test_only_capture_knows_hooks_and_autograd() -> None:
    source = Path(capture.__file__).parents[1]

    def using(*words: str) -> set[str]:
        calls = {p.name: [n for n in ast.walk(ast.parse(p.read_text())) if isinstance(n, ast.Call)] for p in files}
        return {name for name, found in calls.items() for c in found if any(w in ast.unparse(c.func) for w in words)}

    files = list(source.rglob("*.py"))
    hooks = ("register_forward", "register_full", "register_backward", "register_module", "register_hook")
    assert using(*hooks) == {"capture.py"}
    assert using("autograd.grad") == {"capture.py", "gradients.py"}


def test_many_threads_on_one_model_give_the_bits_of_one() -> None:
    """In a child process, so that an abort is a failure and not the end of the tests."""
    script = Path(__file__).with_name("threads_on_one_model.py")
    done = subprocess.run([sys.executable, str(script), "16", "6"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "0 wrong, 0 errors" in done.stdout, done.stdout


# --------------------------------------------------------------------------------------------------------- one walk


def test_a_model_is_walked_through_once_and_only_while_it_is_said_to_stand_still() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
    with pytest.raises(RuntimeError, match="stop"), one_walk():
        first = named(net)
        with one_walk():
            assert named(net) is first
        assert named(net) is first and list(first) == ["", "0", "1"]
        raise RuntimeError("stop")
    net.append(nn.Tanh())
    assert list(named(net)) == ["", "0", "1", "2"]


def test_modules_that_are_exchanged_between_calls_are_seen() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    x = torch.rand(1, 1, 8, 8)
    assert cl.explain(net, x, target=0).layer == "1"
    net[1] = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Softplus())
    assert cl.explain(net, x, target=0).layer == "1" and cl.explain(net, x, target=0).map.shape == (1, 4, 4)
    assert cl.explain(net, x, target=0, layer="1.0").layer == "1.0"


def test_what_is_spent_may_be_written_into_and_what_is_not_stays() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(72, 2)).eval()
    x = torch.randn(1, 1, 8, 8)
    rows = torch.randn(3, 2, 6, 6)
    for spent in (False, True):
        given = rows.clone()
        with run(net, Inputs((x,)), ["0"], how=How({"0": given}, spent, graph=False)) as tape:
            assert torch.allclose(tape.output, net[1:](rows.clone()), atol=1e-6)
        assert torch.equal(given, rows) == (not spent)


class Fuses(nn.Module):
    """Fuses itself in its first pass in evaluation, as re-parametrised nets do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and len(self.body) == 3:
            fused = torch.nn.utils.fuse_conv_bn_eval(self.body[0], self.body[1].eval())  # type: ignore[arg-type]
            self.body = nn.Sequential(fused, nn.ReLU())
        return self.fc(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("asked", [{}, {"layer": "body"}, {"method": "ablationcam"}, {"method": "scorecam"}], ids=str)
def test_a_net_that_exchanges_its_modules_in_its_first_pass_is_explained_in_it(asked: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net, x = Fuses().eval(), torch.rand(1, 3, 16, 16)
    first, second = (cl.explain(net, x, target=0, **asked) for _ in range(2))
    assert first.layer == second.layer == "body" and torch.allclose(first.map, second.map, atol=1e-6)
