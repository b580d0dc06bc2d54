"""The faster body of a model: what may be folded, what may not, and that nobody can tell the difference."""

import threading
from collections.abc import Callable
from typing import Any

import fingerprint
import pytest
import torch
from replicas import apart
from torch import Tensor, nn

import camlucida as cl
from camlucida.core import swift
from camlucida.core.capture import How, Inputs, run
from camlucida.core.swift import WORTH, Body, fastest, folded

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def learned(net: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and weights as training leaves them, in float64."""
    draw = torch.Generator().manual_seed(seed)
    for value in (*net.parameters(), *net.buffers()):
        if value.is_floating_point():
            value.data = torch.rand(value.shape, generator=draw, dtype=torch.float64) + 0.2
    for value in net.parameters():
        value.data -= 0.6
    return net.double().eval()


class Block(nn.Module):
    """Two convolutions and a shortcut with one of its own; one rectifier for all, and in place."""

    def __init__(self, dims: int = 2, **norm: Any) -> None:
        super().__init__()
        self.conv1, self.bn1 = CONV[dims](3, 5, 3, padding=1, bias=False), NORM[dims](5, **norm)
        self.conv2, self.bn2 = CONV[dims](5, 4, 3, padding=1), NORM[dims](4, **norm)
        self.short = nn.Sequential(CONV[dims](3, 4, 1), NORM[dims](4, **norm))
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        made = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.head(self.relu(made + self.short(x)).flatten(2).mean(2))


def pictures(count: int = 2, dims: int = 2, seed: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, *(6, 5, 4)[:dims], generator=draw, dtype=torch.float64)


def body_of(net: nn.Module, xs: Tensor | None = None) -> Body:
    xs = pictures() if xs is None else xs
    return fastest(net, Inputs((xs[:1],)), xs)


def kinds(net: nn.Module) -> list[str]:
    return [type(m).__name__ for m in net.modules()]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("norm", [{}, {"affine": False}, {"eps": 0.3}], ids=["", "not affine", "eps"])
def test_folded_twin_answers_as_the_model(dims: int, norm: dict[str, Any]) -> None:
    net = learned(Block(dims, **norm))
    xs = pictures(3, dims)
    with fingerprint.untouched(net):
        body = body_of(net, xs)
    assert kinds(body.net).count("Identity") == 3 and not any("Norm" in k for k in kinds(body.net))
    assert body.last == (dims == 2) and kinds(net).count("Identity") == 0
    with torch.no_grad():
        assert apart(body.net(pictures(4, dims, seed=9)), net(pictures(4, dims, seed=9))) < 1e-12


def test_what_is_not_folded_is_the_models_own() -> None:
    net = learned(Block())
    twin = body_of(net).net
    assert isinstance(twin, Block) and twin is not net and twin.short is not net.short
    assert twin.head is net.head and twin.relu is net.relu and twin.conv1.weight.is_contiguous(
        memory_format=torch.channels_last
    )  # fmt: skip
    shared = {id(p) for p in net.parameters()} & {id(p) for p in twin.parameters()}
    assert shared == {id(net.head.weight), id(net.head.bias)}


class Other(nn.BatchNorm2d):
    """A BatchNorm of somebody's own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class Twice(nn.Module):
    """One convolution for two BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.conv(self.one(self.conv(x))))


class Beside(nn.Module):
    """What the convolution gave goes another way, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        return made.flatten(1) + self.norm(made).flatten(1)


class Looking(nn.Module):
    """Reads a weight of the BatchNorm by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).flatten(2).mean(2) * self.norm.weight


def parametrized() -> nn.Module:
    net = learned(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()))
    nn.utils.parametrizations.weight_norm(net[0])
    return net


def overwritten() -> nn.Module:
    net = learned(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()))
    real = net[1].forward
    net[1].forward = lambda x: real(x) * 2
    return net


NOT_FOLDED: dict[str, Callable[[], nn.Module]] = {
    "rectifier between": lambda: learned(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten())),
    "no statistics": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()).double(),
    "a subclass": lambda: learned(nn.Sequential(nn.Conv2d(3, 4, 3), Other(4), nn.Flatten())),
    "run twice": lambda: learned(Twice()), "used beside": lambda: learned(Beside()),
    "looked at": lambda: learned(Looking()),
    "parametrized": parametrized, "forward overwritten": overwritten,
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_FOLDED)
def test_what_cannot_be_folded_is_left_as_it_is(name: str) -> None:
    net = NOT_FOLDED[name]()
    with fingerprint.untouched(net):
        assert body_of(net) == Body(net, last=name == "run twice")  # two convolutions ran: channels last alone


@pytest.mark.parametrize(
    "name", ["rectifier between", "a subclass", "run twice", "parametrized", "forward overwritten"]
)
def test_such_pairs_are_not_even_proposed(name: str) -> None:
    """The proof would refuse them: it is the last guard, not the only one."""
    net = NOT_FOLDED[name]()
    with run(net, Inputs((pictures(),)), [], spy=[n for n, _ in net.named_modules() if n]) as tape:
        assert folded(net, tape.calls) is net


def test_model_that_looks_at_the_order_in_memory_keeps_its_own() -> None:
    class Viewed(Block):
        def forward(self, x: Tensor) -> Tensor:
            made = self.bn2(self.conv2(self.bn1(self.conv1(x))))
            return made.view(len(x), -1)

    body = body_of(learned(Viewed()))
    assert not body.last and kinds(body.net).count("Identity") == 2


def test_half_precision_hooks_and_nan_are_left_alone() -> None:
    net = learned(Block())
    for dtype in (torch.bfloat16, torch.float16):
        half = learned(Block()).to(dtype)
        assert body_of(half, pictures().to(dtype)) == Body(half)
    assert body_of(net, pictures() * torch.nan) == Body(net)
    seen: list[nn.Module] = []
    handle = net.short[0].register_forward_hook(lambda module, a, made: seen.append(module))
    assert body_of(net) == Body(net) and not seen
    handle.remove()
    assert body_of(net).last


def test_model_in_training_is_run_as_in_evaluation() -> None:
    net = learned(Block())
    truth = net(pictures()).detach()
    net.train()
    with fingerprint.untouched(net):
        body = body_of(net)
        with run(body.net, Inputs((pictures(),)), [], how=How(graph=False)) as tape:
            assert apart(tape.output, truth) < 1e-12
    assert kinds(body.net).count("Identity") == 3


# ---------------------------------------------------------------------------------------------------- asking many times


def rows_of(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The bodies that are run from here on."""
    settled: list[Any] = []
    real = swift.fastest

    def seen(*given: Any) -> Body:
        settled.append(real(*given))
        return settled[-1]

    monkeypatch.setattr("camlucida.core.scorer.fastest", seen)
    return settled


@pytest.mark.parametrize("method", ["occlusion:window=2:stride=1", "rise:samples=40:grid=3", "scorecam"])
@pytest.mark.parametrize("target", [1, cl.rank(1, "probability"), lambda y: y[:, 1] * 2], ids=["", "rank", "own"])
def test_maps_are_those_of_the_model_itself(monkeypatch: pytest.MonkeyPatch, method: str, target: Any) -> None:
    net = learned(Block())
    net.conv1 = CONV[2](3, 40, 3, padding=1).double()
    net.bn1, net.conv2 = NORM[2](40).double(), CONV[2](40, 4, 3, padding=1).double()
    learned(net)
    x = torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    layer = "bn1" if method == "scorecam" else None
    bodies = rows_of(monkeypatch)
    found = cl.explain(net, x, target=target, method=method, layer=layer)
    assert [b.last for b in bodies] == [True, True] and all(b.net is not net for b in bodies)
    monkeypatch.setattr("camlucida.core.scorer.WORTH", 10**9)
    assert apart(found.map, cl.explain(net, x, target=target, method=method, layer=layer).map) < 1e-10
    assert len(bodies) == 2


def test_few_pictures_are_not_worth_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = rows_of(monkeypatch)
    net = learned(Block())
    cl.explain(net, pictures(1), target=1, method="occlusion:window=2:stride=2")
    assert WORTH > 9 and not bodies


def test_what_the_model_cannot_see_is_still_exactly_nothing() -> None:
    """In single precision the body is off by rounding: where nothing changes, that must not show as evidence."""

    class Blind(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * (torch.arange(x.shape[-1]) > 5))

    net = learned(Blind()).float()
    x = torch.rand(1, 3, 10, 12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        net.head.bias -= net(x)[0] - 1e-3
    assert body_of(net, torch.cat([x, x / 2])).last
    found = cl.explain(net, x, target=1, method="occlusion:window=2:stride=1").map[0]
    assert (found[:, :5] == 0).all() and (found[:, 5:] != 0).all()


def test_many_threads_on_one_model_get_the_same_bits() -> None:
    net = learned(Block()).float()
    asked = [dict(target=k, method="occlusion:window=2:stride=1") for k in range(4)]
    x = torch.rand(1, 3, 7, 8)
    truth = [cl.explain(net, x, **one).map for one in asked]
    wrong: list[int] = []

    def work(turn: int) -> None:
        for i in range(len(asked)):
            k = (i + turn) % len(asked)
            if not torch.equal(cl.explain(net, x, **asked[k]).map, truth[k]):
                wrong.append(k)

    with fingerprint.untouched(net):
        crew = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for one in crew:
            one.start()
        for one in crew:
            one.join()
    assert not wrong


def test_a_pair_is_what_a_run_shows_not_what_the_names_say() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.conv2, self.bn2 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return (self.bn2(self.conv1(x)) + self.bn1(self.conv2(x))).flatten(1)

    net = learned(Crossed())
    with run(net, Inputs((pictures(),)), [], spy=["conv1", "bn1", "conv2", "bn2"]) as tape:
        twin = folded(net, tape.calls)
    with torch.no_grad():
        assert kinds(twin).count("Identity") == 2 and apart(twin(pictures()), net(pictures())) < 1e-12


def test_output_of_another_kind_or_shape_is_another() -> None:
    one = torch.ones(2, 3)
    assert swift.same({"y": one, "n": torch.tensor(3)}, {"y": one * (1 + 1e-6), "n": torch.tensor(3)})
    others = [one[:1], one.double(), one * 1.001, (one, one), (), torch.full((2, 3), torch.nan)]
    assert not any(swift.same(other, one) for other in others)
    assert not swift.same(torch.tensor([3]), torch.tensor([4])) and not swift.same((), ())
