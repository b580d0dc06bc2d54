"""Asking the model again about one picture: other activations at a layer, other pictures, other directions.

A perturbed layer re-runs only what follows it: the picture enters once, and the batch grows at the layer. That this
is the same as running each row by itself is checked on each picture's first answer, whose first and last row are the
undisturbed activation. A model that does not bear it (one that folds its batch axis, say) is run with the whole batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from camlucida.core import targets
from camlucida.core.again import answers, astray, holds, mixed, own, put_again, steady
from camlucida.core.ahead import shortened
from camlucida.core.alone import Alone
from camlucida.core.biases import Bias, biases, placed, terms
from camlucida.core.capture import How, Inputs, Tape, bend, full, run, vjp
from camlucida.core.chunks import few_rows, in_chunks, rows_that_fit
from camlucida.core.evidence import put
from camlucida.core.gradients import jvp
from camlucida.core.looking import Looking
from camlucida.core.restore import fresh, put_back, scatter
from camlucida.core.rules import under
from camlucida.core.settle import Settled, of_picture
from camlucida.core.swift import WORTH, Body, fastest
from camlucida.core.twice import InTheOpen
from camlucida.types import Act, Attention, Layout, Make, Target

_TAIL, _WHOLE = 4, 64  # memory that a row needs on its way, in its own: from a layer on, and through the whole model
_Scope = AbstractContextManager[object]


@dataclass(frozen=True)
class Subject:
    """What is asked of one layer for a whole batch: ``raw`` is what the layer gave, in its own shape.

    ``picked``: each target's classes, None for a user's own; ``slopes``: a picture's, where they are proved constant.
    """

    net: nn.Module
    inputs: Inputs
    name: str
    layout: Layout
    raw: Tensor
    targets: Sequence[Target]
    picked: Sequence[Int[Tensor, " b"] | None]
    scores: Float[Tensor, "t b"]
    slopes: Callable[[int], Tensor] | None = None
    autocast: torch.dtype | None = None  # the caller's: the model runs under it, the arithmetic of methods does not
    logits: Float[Tensor, "b k"] | None = None
    settled: Sequence[Settled | None] = ()

    def picture(self, i: int) -> "PictureScorer":
        """The scorer of picture ``i``."""
        return PictureScorer(self, i)

    def fixed(self, i: int) -> list[Target]:
        """The targets of picture ``i``, with the classes that it had undisturbed."""
        return of_picture(i, self.targets, self.picked, self.settled, self.logits)


@final
class PictureScorer:
    """`camlucida.types.Scorer`, for picture ``i`` of a subject."""

    def __init__(self, subject: Subject, i: int) -> None:
        self._s, self._inputs, self._targets = subject, subject.inputs.row(i), subject.fixed(i)
        self._raw = subject.raw[i : i + 1]
        self.x, self.act = self._inputs.x[0], full(subject.layout(self._raw))[0]
        self.base = subject.scores[:, i]
        self.slope = subject.slopes(i) if subject.slopes else None
        self.random = Generator().manual_seed(0)
        self._grows: bool | None = None if subject.name != "input" else False
        self._sound = not own(self._targets) and self._inputs.lone  # whether other rows may stand beside the picture
        self._body: Body | None = None
        self._tail: nn.Module | None = None
        self._tried = subject.autocast is not None  # to have what runs before the layer from memory
        self._off: Tensor | float = 0.0

    @contextmanager
    def _run(
        self, inputs: Inputs, layers: Sequence[str], how: How | None = None, during: _Scope | None = None,
        net: nn.Module | None = None,
    ) -> Iterator[Tape]:  # fmt: skip
        dtype = self._s.autocast
        kind = self.x.device.type
        with torch.autocast(kind, dtype, enabled=dtype is not None), ExitStack() as held:
            with during or nullcontext():  # around the model alone: targets of one's own are no part of it
                tape = held.enter_context(run(net or self._s.net, inputs, layers, how=how))
            with torch.autocast(kind, enabled=False):
                yield tape

    def at_layer(self, count: int, make: Make) -> Float[Tensor, "t n"]:
        """As `Scorer`; a product instead where the scores are proved linear in the activation."""
        if self._s.name == "input":
            return self.at_input(count, make)
        if self.slope is not None:
            slope = self.slope.flatten(1)
            return self._chunks(
                count, lambda at: self.base[:, None] + slope @ (make(at) - self.act).flatten(1).T, self.act
            )
        if count > self._room(self.act):
            self._shorten()
        return self._chunks(count, lambda at: self._from_layer(make(at)), self.act)

    def at_input(self, count: int, make: Make) -> Float[Tensor, "t n"]:
        """As `Scorer`; of many pictures by the fastest body of the model that is proved on the first of them."""
        if count >= WORTH and self._body is None and self._s.autocast is None:
            self._hurry(torch.cat([self.x[None], make(torch.arange(1)).to(self.x)]))
        return self._chunks(count, lambda at: self._from_input(make(at)), self.x)

    def _from_layer(self, acts: Act) -> Float[Tensor, "t n"]:
        if self._grows is None:
            return self._first(acts)
        self._shorten()  # it is not the last time, it seems
        return self._resumed(acts, self._grows)

    def _shorten(self) -> None:
        """Find out, once, whether what runs before the layer can be had from memory: many chunks are to come."""
        if not self._tried:
            self._tail = shortened(self._s.net, self._inputs, self._s.name, self._raw)
        self._tried = True

    def _first(self, acts: Act) -> Float[Tensor, "t n"]:
        """The first answer, with the undisturbed activation at both its ends: so a mixed-up batch shows."""
        both = torch.cat([self.act[None], acts, self.act[None]])
        for grows in (True, False):
            try:
                found = self._resumed(both, grows)
            except torch.OutOfMemoryError:
                raise
            except Exception:
                if not grows:
                    raise
                continue
            if holds(found, self.base, self.base, 1e-3):
                self._grows = grows
                return found[:, 1:-1]
        if own(self._targets):
            raise mixed()
        raise astray(self._s.name)

    def _resumed(self, acts: Act, grows: bool) -> Float[Tensor, "t n"]:
        with self._from(put_back(acts, self._raw, self._s.layout), grows, False, None) as tape:
            return self._scores(tape, len(acts))

    def _from(self, raw: Tensor, grows: bool, graph: bool, during: _Scope | None) -> AbstractContextManager[Tape]:
        inputs = self._inputs if grows else self._inputs.showing(self._inputs.x.expand(len(raw), *self.x.shape))
        tail = self._tail if grows and not graph else None
        spent = self._grows is not None and not (graph or during) and fresh(raw, self._raw, self.act)
        return self._run(inputs, [self._s.name], How({self._s.name: raw}, spent, graph), during, tail)

    def _from_input(self, xs: Tensor) -> Float[Tensor, "t n"]:
        """As for a layer, the picture itself is at both ends of the first answer."""
        if self._sound:
            return self._shown(xs)
        found = self._shown(torch.cat([self.x[None], xs.to(self.x), self.x[None]]))
        half = self._s.autocast is not None or self.x.element_size() == 2
        if not holds(found, self.base, found, 0.1 if half else 1e-2):
            raise mixed()
        self._sound = True
        return found[:, 1:-1]

    def _beside(self) -> None:
        """Find out whether the picture is scored the same by itself and beside other rows, where that is not plain."""
        if not self._sound:
            self._from_input(self.x[None])

    def _hurry(self, xs: Tensor) -> None:
        """Settle the body, and how far by rounding its score of the picture is off: that is no drop."""
        self._beside()  # before anything is made up for
        self._body = fastest(self._s.net, self._inputs, xs)
        if self._body.net is not self._s.net or self._body.last:
            with self._by(self._body, xs[:1]) as tape:
                self._off = self.base[:, None] - answers(self._targets, tape.output, 1).detach()

    def _shown(self, xs: Tensor) -> Float[Tensor, "t n"]:
        with self._by(self._body or Body(self._s.net), xs) as tape:
            return self._scores(tape, len(xs), self._off)

    def _by(self, body: Body, xs: Tensor) -> AbstractContextManager[Tape]:
        return self._run(self._inputs.showing(body.seeing(xs)), [], How(graph=False), net=body.net)

    def _scores(self, tape: Tape, count: int, off: Tensor | float = 0.0) -> Float[Tensor, "t n"]:
        """Scores of all targets; what differs by no more than rounding is the undisturbed score."""
        return steady(answers(self._targets, tape.output, count).detach() + off, self.base)

    def _chunks(
        self, count: int, score: Callable[[Int[Tensor, " m"]], Float[Tensor, "t m"]], like: Tensor
    ) -> Float[Tensor, "t n"]:
        found = in_chunks(count, self._room(like), score)
        return torch.cat(found, 1) if found else self.base.new_zeros(len(self.base), 0)

    def _room(self, like: Tensor) -> int:
        if like is self.act and self._tail is not None:
            return few_rows(like, _TAIL)
        return rows_that_fit(like, _WHOLE if like is self.x else _TAIL)

    def slopes(self, acts: Float[Tensor, "n c *space"], rule: str = "") -> Float[Tensor, "t n c *space"]:
        """As `Scorer`."""
        if self.slope is not None and not rule:
            return self.slope[:, None].expand(-1, len(acts), *self.slope.shape[1:])
        found = []
        for part in acts.split(self._room(self.act)):
            with self._recorded(part, under(rule)) as tape:
                found.append(self._gradients(tape, len(part)))
        return torch.cat(found, 1)

    def _recorded(self, acts: Act, during: _Scope | None = None) -> AbstractContextManager[Tape]:
        if self._s.name == "input":
            self._beside()
            return self._run(self._inputs.showing(acts), ["input"], during=during)
        if self._grows is None:  # which the first answer tells
            self._first(self.act[None])
        return self._from(put_back(acts, self._raw, self._s.layout), bool(self._grows), True, during)

    def _gradients(self, tape: Tape, count: int) -> Float[Tensor, "t n c *space"]:
        asked = put_again(put, self._targets, tape.output, count)
        grads = tape.gradients(asked.at, asked.along, [self._s.name])[self._s.name]
        return torch.stack([full(self._s.layout(g)) for g in grads])

    def along(self, count: int, make: Make) -> Float[Tensor, "t n"]:
        """As `Scorer`."""
        if self._grows is None:
            self._first(self.act[None])
        return self._chunks(count, lambda at: self._derived(make(at)), self.act)

    def _derived(self, ways: Act) -> Float[Tensor, "t n"]:
        raw = put_back(self.act.expand_as(ways), self._raw, self._s.layout).contiguous()

        def answer(raw: Tensor) -> Tensor:
            with self._from(raw, bool(self._grows), False, InTheOpen()) as tape:
                return answers(self._targets, tape.output, len(raw))

        return jvp(answer, raw, ways if self._s.layout(self._raw) is self._raw else self._scatter(ways))

    def bend(self, along: Float[Tensor, "t c *space"]) -> Float[Tensor, "t c *space"]:
        """As `Scorer`."""
        if self.slope is not None:
            return torch.zeros_like(along)
        found = []
        with self._recorded(self.act[None], InTheOpen()) as tape:
            scores = targets.scores(self._targets, tape.output, 1)
            act = tape.acts[self._s.name]
            for score, way in zip(scores[:, 0], along, strict=True):
                found.append(full(self._s.layout(bend(score, act, self._scatter(way[None]).to(act))))[0])
        return torch.stack(found)

    def reads(self, xs: Tensor) -> tuple[Float[Tensor, "n c *space"], Float[Tensor, "t n c *space"]]:
        """As `Scorer`."""
        self._beside()
        acts, grads = [], []
        for part in xs.split(self._room(self.x)):
            with self._run(self._inputs.showing(part), [self._s.name]) as tape:
                acts.append(full(self._s.layout(tape.acts[self._s.name].detach())))
                grads.append(self._gradients(tape, len(part)))
        return torch.cat(acts), torch.cat(grads, 1)

    def pixels(self, xs: Tensor, rule: str = "") -> Tensor:
        """As `Scorer`."""
        self._beside()
        found = []
        for part in xs.split(self._room(self.x)):
            with self._run(self._inputs.showing(part), ["input"], during=under(rule)) as tape:
                asked = put_again(put, self._targets, tape.output, len(part))
                found.append(tape.gradients(asked.at, asked.along, ["input"])["input"])
        return torch.cat(found, 1)

    def flow(self, read: Callable[[list[Tensor], Tensor], Tensor], curved: bool = False) -> Tensor:
        """As `Scorer`."""
        found: list[Bias] = []
        with self._recorded(self.act[None], biases(found)) as tape:
            asked, act = put(self._targets, tape.output, 1), tape.acts[self._s.name]
            own, made = self._s.layout(act.detach()), [act, *(b.made for b in found)]
            rows = []
            for way in asked.along:
                first, *grads = (g if g is None else g[0] for g in vjp(asked.at, way[None], made, keep=True))
                shown, rest = terms(grads, found, lambda t, axis: placed(t, axis, self._raw, self._s.layout), curved)
                slope = torch.zeros_like(own) if first is None else self._s.layout(first)
                rows.append(read([(full(own) * full(slope))[0], *shown], full(rest)))
        return torch.stack(rows)

    def alone(self) -> nn.Module:
        """As `Scorer`."""
        return Alone(self._s.net, self._inputs, self._targets)

    def attend(self, read: Callable[[Attention], Tensor], last: int = 0, score: str = "output") -> Tensor:
        """As `Scorer`."""
        self._beside()
        s, grid = self._s, tuple(self.act.shape[1:])
        return Looking(s.net, self._inputs, self._targets, grid, s.layout, s.autocast).attend(read, last, score)

    def _scatter(self, acts: Act) -> Tensor:
        return scatter(acts, self._raw, self._s.layout)
