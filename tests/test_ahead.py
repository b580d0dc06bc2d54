"""What runs before a layer, from memory: the same answers, each module run once, and the models that do not bear it."""

from collections.abc import Callable
from typing import Any

import fingerprint
import nets
import pytest
import torch
from replicas import apart
from torch import Tensor, nn

import camlucida as cl
from camlucida.core import chunks
from camlucida.core.ahead import shortened
from camlucida.core.capture import How, Inputs, run

WORK: list[str] = []


class Counting(nn.Module):
    """Notes each of its runs, without a hook."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        WORK.append(self.name)
        return x


class Stages(nets.Net):
    """A stem with an operation in place, a block with a shortcut, the layer inside it, and a curved tail."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(), nn.Sequential(), (2, 7, 8), "block.two")
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), Counting("stem"))
        self.block = nn.ModuleDict({"one": nn.Conv2d(4, 4, 3, padding=1), "two": nn.Sequential(
            Counting("two"), nn.Conv2d(4, 4, 3, padding=1), nn.SiLU())})  # fmt: skip
        self.act, self.count, self.last = nn.ReLU(inplace=True), Counting("tail"), nn.Linear(4, nets.CLASSES)

    def written(self, made: Tensor) -> Tensor:
        return made

    def forward(self, x: Tensor) -> Tensor:
        made = self.written(self.stem(x * 2))
        two = self.block["two"](self.act(self.block["one"](made)))
        return self.last(self.count(self.act(two + made)).flatten(2).mean(2).tanh())


def stages() -> nets.Net:
    return nets.seeded(Stages(), 4)


def raw_of(net: nn.Module, x: Tensor, layer: str) -> Tensor:
    with run(net, Inputs((x,)), [layer], how=How(graph=False)) as tape:
        return tape.acts[layer].detach().clone()


def through(net: nn.Module, x: Tensor, layer: str, raw: Tensor) -> Tensor:
    with run(net, Inputs((x,)), [layer], how=How(put={layer: raw}, graph=False)) as tape:
        return tape.output


@pytest.mark.parametrize("layer", ["stem", "block.one", "block.two", "block.two.1"])
def test_answers_are_the_models_and_nothing_before_the_layer_runs(layer: str) -> None:
    net = stages()
    x = net.x(1)
    raw = raw_of(net, x, layer)
    with fingerprint.untouched(net):
        twin = shortened(net, Inputs((x,)), layer, raw)
        assert twin is not None and twin.last is net.last
        many = raw * torch.arange(1, 6, dtype=raw.dtype).reshape(5, 1, 1, 1)
        truth = torch.cat([through(net, x, layer, one[None]) for one in many])
        WORK.clear()
        for _ in range(2):  # what is remembered is not written into
            assert apart(through(twin, x, layer, many), truth) < 1e-12
    before = {"stem": ["stem"], "block.two": ["stem", "two"], "block.two.1": ["stem", "two"], "block.one": ["stem"]}
    assert not set(before.get(layer, [])) & set(WORK) and WORK.count("tail") == 2


class Writing(Stages):
    """Writes into what the stem gave: once more changes it once more."""

    def written(self, made: Tensor) -> Tensor:
        return made.add_(0.5)


class Nosy(Stages):
    """Reads a weight of a module before the layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.stem[0].weight.sum()


class Again(Stages):
    """Runs the layer twice."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(x)


class Other(Stages):
    """Runs the stem a second time, for another picture, after the layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.last(self.stem(x.flip(-1)).flatten(2).mean(2))


@pytest.mark.parametrize(("kind", "bears"), [(Writing, False), (Nosy, False), (Again, False), (Other, True)])
def test_model_that_needs_what_is_taken_from_memory_is_run_as_it_is(kind: Callable[[], nets.Net], bears: bool) -> None:
    net = nets.seeded(kind(), 4)
    x = net.x(1)
    with torch.no_grad():
        truth = net(x)
    raw = raw_of(net, x, "block.two") if kind is not Again else torch.zeros(1, 4, 5, 6, dtype=torch.float64)
    twin = shortened(net, Inputs((x,)), "block.two", raw)
    assert (twin is not None) == bears
    if twin is not None:
        assert apart(through(twin, x, "block.two", raw), truth) < 1e-12


def test_wrong_activation_and_hooks_of_others_are_refused() -> None:
    net = stages()
    x = net.x(1)
    raw = raw_of(net, x, "block.two")
    assert shortened(net, Inputs((x,)), "block.two", raw + 1) is None
    assert shortened(net, Inputs((x,)), "nowhere", raw) is None
    assert shortened(net, Inputs((x,)), "stem.0", raw_of(net, x, "stem.0")) is None, "nothing runs before it"
    handle = net.stem.register_forward_hook(lambda *_: None)
    assert shortened(net, Inputs((x,)), "block.two", raw) is None
    handle.remove()
    assert shortened(net, Inputs((x,)), "block.two", raw) is not None


METHODS = ["reciprocam", "rise:samples=150:grid=3", "occlusion:window=1:stride=1", "ablationcam"]


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_the_same_from_memory_or_not(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    net = stages()
    x = net.x(2)
    asked: dict[str, Any] = {"target": lambda y: y[:, 1] * 1, "method": method, "layer": "block.two"}
    whole = cl.explain(net, x, **asked)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4 * 4 * 5 * 6 * 8 * 3)  # four rows at a time, the least there are
    monkeypatch.setattr("camlucida.core.scorer.shortened", lambda *_: None)
    WORK.clear()
    assert apart(cl.explain(net, x, **asked).map, whole.map) < 1e-10
    runs = WORK.count("stem")
    monkeypatch.setattr("camlucida.core.scorer.shortened", shortened)
    WORK.clear()
    assert apart(cl.explain(net, x, **asked).map, whole.map) < 1e-10
    if method != "ablationcam":  # four channels fit one chunk
        assert WORK.count("stem") <= 1 + 2 * 2 < runs, "once for the pictures; each again to be remembered, and checked"


def test_one_chunk_is_not_worth_remembering(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("camlucida.core.scorer.shortened", lambda *given: asked.append(given))
    net = stages()
    cl.explain(net, net.x(1), target=lambda y: y[:, 1] * 1, method="reciprocam", layer="block.two")
    assert not asked
