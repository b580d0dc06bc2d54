"""Asking the model again: each answer against the tail run by hand, on every layout, and the models that do not bear
a batch that grows at a layer."""

from collections.abc import Callable
from typing import Any

import nets
import pytest
import torch
from replicas import apart
from torch import Tensor, nn

import camlucida as cl
from camlucida.core import chunks, evidence, targets
from camlucida.core import scorer as scorer_
from camlucida.core.capture import Inputs
from camlucida.core.layouts import channels_first, channels_last, tokens
from camlucida.core.scorer import PictureScorer, Subject
from camlucida.errors import LayerError
from camlucida.types import Scorer


def subject(net: nets.Net, x: Tensor, asked: list[Any], layer: str | None = None, layout: Any = None) -> Subject:
    """A subject as `sweep` makes it, from one plain forward pass."""
    layer = layer or net.layer
    raw: list[Tensor] = []
    handle = dict(net.named_modules())[layer].register_forward_hook(lambda m, a, made: raw.append(made.detach()))
    with torch.no_grad():
        y = net(x)
    handle.remove()
    picked = [t.pick(y) if isinstance(t, targets.ClassTarget) else None for t in asked]
    scores = targets.scores(asked, y, len(x))
    return Subject(net, Inputs((x,)), layer, layout or channels_first, raw[0], asked, picked, scores, logits=y)


LAYOUTS: dict[str, tuple[Callable[[], nets.Net], Any]] = {
    "channels first": (lambda: nets.smooth_tail(2), channels_first), "1-D": (lambda: nets.smooth_tail(1), None),
    "3-D": (lambda: nets.biased_tail(3), None), "channels last": (nets.channels_last_net, channels_last),
    "tokens": (lambda: nets.token_net(2), tokens(prefix=3, grid=(4, 6))),
}  # fmt: skip
every_layout = pytest.mark.parametrize("name", LAYOUTS)
ASKED = [cl.classes(1), cl.rank(1, "probability")]


def ask(name: str, i: int = 1) -> tuple[nets.Net, Subject, PictureScorer]:
    build, layout = LAYOUTS[name]
    net = build()
    about = subject(net, net.x(2), ASKED, layout=layout)
    return net, about, about.picture(i)


def tail(net: nets.Net, about: Subject, i: int, acts: Tensor, y_of: Callable[[Tensor], Tensor]) -> Tensor:
    """The scores with other activations, each row run by itself through the whole net, by a hook of the test's own."""
    found = []
    for act in acts:
        raw = about.raw[i : i + 1].clone()
        if about.layout is channels_last:
            raw = act.movedim(0, -1)[None]
        elif about.layout is channels_first:
            raw = act[None]
        else:
            raw[:, 3:] = act.flatten(1).T
        module = dict(net.named_modules())[about.name]
        handle = module.register_forward_hook(lambda m, a, made, raw=raw: raw)
        found.append(y_of(net(about.inputs.x[i : i + 1])))
        handle.remove()
    return torch.cat(found)


def by_hand(about: Subject, i: int) -> Callable[[Tensor], Tensor]:
    ks = [int(k[i]) for k in about.picked if k is not None]
    return lambda y: torch.stack([y[:, ks[0]], y.softmax(1)[:, ks[1]]], 1)


def rows(like: Tensor, n: int, seed: int = 5) -> Tensor:
    return like + torch.randn(n, *like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)


@every_layout
def test_scores_at_a_layer_are_those_of_what_follows_it(name: str) -> None:
    net, about, one = ask(name)
    acts = rows(one.act, 7)
    found = one.at_layer(7, lambda at: acts[at])
    with torch.no_grad():
        assert apart(found, tail(net, about, 1, acts, by_hand(about, 1)).T) < 1e-12
    assert isinstance(one, Scorer) and apart(one.base, about.scores[:, 1]) == 0


@every_layout
def test_scores_at_the_input_are_those_of_other_pictures(name: str) -> None:
    net, about, one = ask(name)
    xs = rows(one.x, 5)
    with torch.no_grad():
        assert apart(one.at_input(5, lambda at: xs[at]), by_hand(about, 1)(net(xs)).T) < 1e-12


@every_layout
def test_slopes_are_gradients_of_what_follows(name: str) -> None:
    net, about, one = ask(name)
    acts = rows(one.act, 3).requires_grad_()
    scores = tail(net, about, 1, acts, by_hand(about, 1))
    expected = torch.stack([torch.autograd.grad(s.sum(), acts, retain_graph=True)[0] for s in scores.T])
    assert apart(one.slopes(acts.detach()), expected) < 1e-10


@every_layout
def test_bend_is_the_second_derivative_along_a_direction(name: str) -> None:
    net, about, one = ask(name)
    act = one.act[None].clone().requires_grad_()
    along = rows(one.act, 2, seed=9) - one.act
    scores = tail(net, about, 1, act, by_hand(about, 1))[0]
    expected = []
    for score, way in zip(scores, along, strict=True):
        (slope,) = torch.autograd.grad(score, act, create_graph=True)
        expected.append(torch.autograd.grad((slope[0] * way).sum(), act, retain_graph=True, allow_unused=True)[0])
    expected = torch.cat([torch.zeros_like(act) if g is None else g for g in expected])
    assert apart(one.bend(along), expected) < 1e-10


@every_layout
def test_reads_are_what_the_layer_gives_for_other_pictures_and_the_gradients_there(name: str) -> None:
    _, about, one = ask(name)
    xs = rows(one.x, 3)
    acts, grads = one.reads(xs)
    for i in range(3):
        other = subject(about.net, xs[i : i + 1], about.fixed(1), layout=about.layout).picture(0)
        assert apart(acts[i], other.act) < 1e-12
        assert apart(grads[:, i], other.slopes(other.act[None])[:, 0]) < 1e-10


@every_layout
def test_pixels_are_gradients_at_the_input(name: str) -> None:
    net, about, one = ask(name)
    xs = rows(one.x, 3).requires_grad_()
    scores = by_hand(about, 1)(net(xs)).T
    expected = torch.stack([torch.autograd.grad(s.sum(), xs, retain_graph=True)[0] for s in scores])
    assert apart(one.pixels(xs.detach()), expected) < 1e-10


def test_classes_stay_those_of_the_undisturbed_picture() -> None:
    net = nets.smooth_tail()
    x = net.x(1)
    about = subject(net, x, [cl.top1])
    best = int(net(x).argmax())
    acts = rows(about.picture(0).act, 40) * 3
    found = about.picture(0).at_layer(40, lambda at: acts[at])
    with torch.no_grad():
        y = net.tail(acts)
    assert (y.argmax(1) != best).any() and apart(found[0], y[:, best]) < 1e-12


def test_target_of_ones_own_beside_a_class_is_asked_too() -> None:
    net = nets.smooth_tail()
    about = subject(net, net.x(2), [cl.top1, lambda y: y[:, 0] * y[:, 1]])
    acts = rows(about.picture(1).act, 4)
    with torch.no_grad():
        y, best = net.tail(acts), int(net(net.x(2))[1].argmax())
    assert (
        apart(about.picture(1).at_layer(4, lambda at: acts[at]), torch.stack([y[:, best], y[:, 0] * y[:, 1]])) < 1e-12
    )


def test_proved_slope_answers_in_place_of_the_model() -> None:
    net = nets.flatten_linear()
    x = net.x(2)
    whole = {e.method: e for e in cl.sweep(net, x, targets=[1], methods=["ablationcam"], layers=[net.layer])}
    about = subject(net, x, [cl.classes(1)])
    assert about.picture(0).slope is None
    act = about.raw[1]
    drop = [
        net.tail(act[None])[0, 1] - net.tail((act * (torch.arange(4) != k)[:, None, None])[None])[0, 1]
        for k in range(4)
    ]
    expected = sum(d * a for d, a in zip(drop, act, strict=True))
    assert apart(whole["ablationcam"].map[1], expected) < 1e-12


# -------------------------------------------------------------------------------------- models that join and that fold


class Joined(nets.Net):
    """Joins the layer with what ran beside it: a batch that grows at the layer no longer fits."""

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.cat([self.features(x), self.beside(x)], 1))


class Folded(nets.Net):
    """Remembers its batch size and folds with it: a batch that grows at the layer would be mixed up."""

    def forward(self, x: Tensor) -> Tensor:
        made = self.features(x)
        return self.tail(made).reshape(len(x), -1, nets.CLASSES).mean(1)


class Restless(nets.Net):
    """Another answer each time."""

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.features(x)) + torch.randn(nets.CLASSES, dtype=x.dtype)


def joined() -> nets.Net:
    net = Joined(nn.Conv2d(2, 4, 3), nn.Sequential(nn.Conv2d(7, 3, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1),
                 nn.Flatten(), nn.Linear(3, nets.CLASSES)), (2, 8, 9))  # fmt: skip
    net.beside = nn.Conv2d(2, 3, 3)
    return nets.seeded(net, 3)


def folded() -> nets.Net:
    base = nets.smooth_tail()
    return nets.seeded(Folded(base.features, base.tail, base.shape), 3)


@pytest.mark.parametrize("build", [joined, folded])
def test_model_that_does_not_bear_a_growing_batch_is_run_with_the_whole_one(build: Callable[[], nets.Net]) -> None:
    net = build()
    about = subject(net, net.x(2), [cl.classes(1), cl.classes(2)])
    one = about.picture(1)
    acts = rows(one.act, 6)
    with torch.no_grad():
        expected = tail(net, about, 1, acts, lambda y: y[:, [1, 2]])
    assert apart(one.at_layer(6, lambda at: acts[at]), expected.T) < 1e-12
    assert one._grows is False


def test_model_whose_batch_may_grow_runs_the_picture_once_a_chunk() -> None:
    net = nets.smooth_tail()
    seen: list[int] = []
    net.features[0].register_forward_hook(lambda m, a, made: seen.append(len(made)))
    one = subject(net, net.x(2), [cl.classes(1)]).picture(1)
    seen.clear()
    one.at_layer(50, lambda at: one.act.expand(len(at), *one.act.shape))
    assert seen == [1]


def test_scores_that_do_not_follow_from_the_layer_are_refused() -> None:
    base = nets.smooth_tail()
    net = nets.seeded(Restless(base.features, base.tail, base.shape), 3)
    one = subject(net, net.x(1), [cl.classes(1)]).picture(0)
    torch.manual_seed(0)
    with pytest.raises(LayerError, match="do not follow from layer 'features' alone"):
        one.at_layer(3, lambda at: one.act.expand(len(at), *one.act.shape))


# ----------------------------------------------------------------------------------------------------- chunks and rest


def test_chunks_are_halved_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nets.smooth_tail()
    one = subject(net, net.x(1), [cl.classes(1)]).picture(0)
    acts = rows(one.act, 40)
    sizes: list[int] = []

    def make(at: Tensor) -> Tensor:
        sizes.append(len(at))
        if len(at) > 9:
            raise torch.OutOfMemoryError("no")
        return acts[at]

    with torch.no_grad():
        assert apart(one.at_layer(40, make), net.tail(acts)[:, [1]].T) < 1e-12
    assert sizes[:4] == [40, 20, 10, 5]

    def never(at: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no")

    with pytest.raises(torch.OutOfMemoryError):
        one.at_layer(40, never)


def test_rows_are_made_in_chunks_that_fit_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nets.smooth_tail()
    one = subject(net, net.x(1), [cl.classes(1)]).picture(0)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", scorer_._WHOLE * one.x.numel() * 8 * 6)
    sizes: list[int] = []
    one.at_input(20, lambda at: sizes.append(len(at)) or one.x.expand(len(at), *one.x.shape))
    assert sizes == [6, 6, 6, 2]


def test_another_error_of_the_model_passes_as_it_is() -> None:
    net = nets.smooth_tail()
    one = subject(net, net.x(1), [cl.classes(1)]).picture(0)
    with pytest.raises(RuntimeError, match="size"):
        one.at_input(2, lambda at: torch.zeros(len(at), 2, 1, 1, dtype=torch.float64))


def test_differences_of_rounding_are_no_differences() -> None:
    net = nets.smooth_tail().float()
    one = subject(net, net.x(1), [cl.classes(1)]).picture(0)
    found = one.at_layer(64, lambda at: one.act * (1 + 1e-9 * at.reshape(-1, 1, 1, 1)))
    assert (found == one.base[:, None]).all()


def test_random_numbers_are_the_same_each_time_and_nobody_elses() -> None:
    net = nets.smooth_tail()
    about = subject(net, net.x(1), [cl.classes(1)])
    before = torch.random.get_rng_state()
    one, two = (torch.rand(3, generator=about.picture(0).random) for _ in range(2))
    assert torch.equal(one, two) and torch.equal(before, torch.random.get_rng_state())


# ------------------------------------------------------------------------------------------------------- forward mode


@every_layout
def test_along_is_the_derivative_along_a_direction(name: str) -> None:
    _, _, one = ask(name)
    ways = rows(one.act, 5, seed=9) - one.act
    expected = torch.einsum("tnc...,mc...->tm", one.slopes(one.act[None]), ways)
    assert apart(one.along(5, lambda at: ways[at]), expected) < 1e-10


@pytest.mark.parametrize("name", sorted(LAYOUTS.keys() - {"channels last"}))  # whose head has a closed form
def test_hirescam_of_many_classes_is_the_same_forward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, _ = LAYOUTS[name]
    net = build()
    x, targets_ = net.x(2), [cl.classes(k % 5, ("logit", "probability")[k % 2]) for k in range(7)]
    back = cl.sweep(net, x, targets=targets_, methods=["hirescam"], layers=[net.layer])
    monkeypatch.setattr(evidence, "DEARER", 0)
    went: list[int] = []
    monkeypatch.setattr(PictureScorer, "along", _counted(PictureScorer.along, went))
    forth = cl.sweep(net, x, targets=targets_, methods=["hirescam"], layers=[net.layer])
    assert len(went) == 2 and [e.statuses for e in forth] == [e.statuses for e in back]
    assert all(apart(one.map, two.map) < 1e-10 for one, two in zip(forth, back, strict=True))


def _counted(real: Callable[..., Any], went: list[int]) -> Callable[..., Any]:
    def along(self: PictureScorer, count: int, make: Any) -> Tensor:
        went.append(count)
        return real(self, count, make)

    return along


def test_what_has_no_forward_mode_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(_: Any, grad: Tensor) -> Tensor:
            return grad * 2

    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return OneWay.apply(x)

    net = nets.smooth_tail()
    net.tail = nn.Sequential(Doubled(), *net.tail)
    monkeypatch.setattr(evidence, "DEARER", 0)
    found = cl.sweep(net, net.x(1), targets=range(5), methods=["hirescam"], layers=[net.layer])
    one = subject(net, net.x(1), [cl.classes(3)]).picture(0)
    assert apart(found[3].map[0], (one.slopes(one.act[None])[0, 0] * one.act).sum(0)) < 1e-10


def test_a_layer_off_the_path_is_refused_forward_as_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class token's net: no place of the last block's output matters."""
    net = nets.token_net(2)
    asked = {"targets": range(5), "methods": ["hirescam"], "layers": ["blocks.1"]}
    for dearer in (2, 0):
        monkeypatch.setattr(evidence, "DEARER", dearer)
        with pytest.raises(LayerError, match=r"does not depend on any place of layer 'blocks\.1'.*use layer="):
            cl.sweep(net, net.x(1), **asked)


# ------------------------------------------------------------------------------------- what follows writes where it is


class Beside(nn.Module):
    """Behind the layer an activation in place, then what came from the picture by another way and does not grow."""

    def __init__(self, act: nn.Module, offset: float) -> None:
        super().__init__()
        self.skip, self.conv, self.act = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 6, 3, 2, 1), act
        self.fc, self.offset = nn.Linear(640, 4), offset

    def forward(self, x: Tensor) -> Tensor:
        k = self.skip(x)
        return self.tail(self.conv(x), k)

    def tail(self, a: Tensor, k: Tensor) -> Tensor:
        return self.fc(torch.cat([self.act(a), k], 1).flatten(1)) + self.offset


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("act", [nn.ReLU(True), nn.LeakyReLU(0.01, True), nn.SiLU(True), nn.Hardswish(True)], ids=str)
def test_a_second_try_begins_with_what_the_first_began_with(act: nn.Module, offset: float) -> None:
    torch.manual_seed(0)
    net, x = Beside(act, offset).double().eval(), torch.randn(1, 3, 16, 16, dtype=torch.float64)
    a, k, drops = net.conv(x).detach(), net.skip(x).detach(), []
    for c in range(6):
        less = a.clone()
        less[:, c] = 0
        drops.append(float((net.tail(a.clone(), k) - net.tail(less, k)).detach()[0, 1]))
    expected = (torch.tensor(drops, dtype=torch.float64)[:, None, None] * a[0]).sum(0)
    assert apart(cl.explain(net, x, target=1, method="ablationcam", layer="conv").map[0], expected) < 1e-9


def test_the_undisturbed_activation_is_never_written_into() -> None:
    """Not even by a method that hands it back itself, in each of its forms."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 3)).double().eval()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    raw = net[0](x).detach()
    subject = Subject(
        net,
        Inputs((x,)),
        "0",
        channels_first,
        raw,
        [targets.classes(0)],
        [torch.zeros(1).long()],
        net(x).detach()[:, :1].T,
    )
    one, before = subject.picture(0), raw.clone()
    for _ in range(3):
        for given in (one.act[None], one.act[None].detach(), one.act[None].clone(), raw):
            assert apart(one.at_layer(1, lambda _: given)[:, 0], one.base) < 1e-9  # noqa: B023
    assert torch.equal(raw, before)
