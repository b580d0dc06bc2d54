"""Targets and methods put to one model and one batch: one forward pass, then what has to be asked again."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from camlucida import maps
from camlucida.core import layers as layers_
from camlucida.core import settle
from camlucida.core import targets as targets_
from camlucida.core.capture import Inputs, Tape, read
from camlucida.core.evidence import Answers, Evidence, put
from camlucida.core.layouts import has_space, infer, plain
from camlucida.core.probe import centred
from camlucida.core.scope import black_box, named, unwrap
from camlucida.core.scorer import Subject
from camlucida.core.settle import Settled, Task
from camlucida.errors import InputError, LayerError, LayoutError, MethodError, TargetError
from camlucida.registry import Method, list_methods
from camlucida.types import Layout, Target

LayerAsk = str | int | nn.Module | tuple[str | nn.Module, Layout] | None


@dataclass(frozen=True)
class Seen:
    """What is left of a forward pass once its graph is gone."""

    answers: Answers
    layouts: dict[str, Layout]
    raw: dict[str, Tensor]
    scores: Float[Tensor, "t b"]
    index: Int[Tensor, "t b"] | None
    logits: Float[Tensor, "b k"] | None
    seconds: float
    settled: tuple[Settled | None, ...] = ()

    def statuses(self) -> dict[tuple[str, Method], list[tuple[maps.Status, ...]]]:
        """The status of every map, by layer and method, then target; all of one kind looked at together."""
        found = {}
        for (name, method), raw in self.answers.maps.items():
            dead = noise = None
            if method.needs in ("gradient", "head") and name in self.answers.steepest:
                steepest = self.answers.steepest[name]
                floor = 8 * torch.finfo(raw.dtype).eps * steepest * self.answers.largest[name] * method.homogeneous
                dead, noise = (steepest == 0).flatten().tolist(), floor.flatten().tolist()
            flat = maps.status(raw.flatten(0, 1), dead, noise)
            sound = self.scores.isfinite().flatten().tolist()  # a rectifier hides a NaN score from its own gradient
            flat = tuple(f if ok else "non-finite" for f, ok in zip(flat, sound, strict=True))
            b = raw.shape[1]
            found[name, method] = [flat[i : i + b] for i in range(0, len(flat), b)]
        return found


@dataclass(frozen=True)
class Question:
    """Targets and methods asked of one model and one batch.

    ``given`` are the targets as they were given, before any was told the pictures: what is remembered of one is by its
    object. ``branches`` are the layers found by themselves that do not carry all the evidence, noted as they are found.
    """

    net: nn.Module
    inputs: Inputs
    targets: Sequence[Target]
    methods: Sequence[Method]
    given: Sequence[Target] = ()
    branches: set[str] = field(default_factory=set)

    def place(self, ask: LayerAsk) -> tuple[str, Layout | None]:
        """The layer asked for by name, with its layout where that is known before the run."""
        if isinstance(ask, tuple) and len(ask) == 2 and callable(ask[1]):
            return self._seeing(layers_.resolve(self.net, ask[0])), ask[1]
        if not isinstance(ask, str | int | nn.Module | None) or isinstance(ask, bool):
            raise LayerError(f"a layer is a module, a name, a number or (layer, layout); got {ask!r}.")
        if ask is None or isinstance(ask, int):
            seen = self.survey(complete=ask is not None)
            place = self.choice(seen) if ask is None else seen.numbered(ask)
            if ask is None and not seen.whole and place == seen.choice:
                self.branches.add(place.name)
            return place.name, place.layout
        return self._seeing(layers_.resolve(self.net, ask)), None

    def _seeing(self, name: str) -> str:
        """The layer again. Raises: LayerError where it looks at another picture among the inputs."""
        if self.inputs.rivals() and name in self.survey().strangers:
            raise LayerError(
                f"layer {name!r} gives the same whatever {self.inputs.spoken} shows, so its map would lie on the wrong "
                "picture: say which one is meant, as cl.Inputs(args, kwargs, mapped=…), or ask for another layer."
            )
        return name

    @property
    def _own(self) -> Target | None:
        # A target of the user's own must itself judge the layers; class targets all agree with the logits.
        return next((t for t in self.targets if not isinstance(t, targets_.ClassTarget)), None)

    def survey(self, again: bool = False, complete: bool = False) -> layers_.Survey:
        """What is seen of all layers; a task looks for its own among them, and so at all their shares."""
        own = self._own
        complete |= isinstance(own, Task)
        steady = not isinstance(own, Task) or own.steady
        given = next((g for g, t in zip(self.given, self.targets, strict=False) if t is own and steady), own)
        return layers_.survey(self.net, self.inputs, own, again, given, complete)

    def choice(self, seen: layers_.Survey) -> layers_.Place:
        """The layer that is taken where none is named: the last place, or the one that a task finds of use."""
        return self._own.place(seen) if isinstance(self._own, Task) else seen.choice

    def answer(self, asked: Sequence[LayerAsk]) -> tuple[list[tuple[Method, str]], Seen]:
        """The (method, layer) pairs and what they answer; where a remembered place no longer runs, the model is looked
        at anew."""
        pairs, known = self.places(asked)
        try:
            return pairs, self.ask(pairs, known)
        except LayerError:
            fresh, anew = self.places(asked)  # an error looks at the model again
            if (fresh, anew) == (pairs, known):
                raise
            return fresh, self.ask(fresh, anew)

    def centres(self, seen: Seen) -> dict[str, tuple[tuple[int, ...], maps.Centres | None]]:
        """The grid of each layer, and where its cells lie in the input; None: spread evenly."""
        found = centred(self.net, self.inputs, seen.layouts)
        grids = {n: tuple(seen.layouts[n](raw).shape[2:]) for n, raw in seen.raw.items()}
        reach = settle.reach(self.targets)
        if reach:  # the model pads within itself: its grids end beyond the picture
            far = [r * n for r, n in zip(reach, self.inputs.x.shape[2:], strict=True)]
            found = {n: c or (maps.Centres.even(far, grids[n]) if n != "input" else None) for n, c in found.items()}
        return {n: (grid, found[n]) for n, grid in grids.items()}

    def places(self, asked: Sequence[LayerAsk]) -> tuple[list[tuple[Method, str]], dict[str, Layout | None]]:
        """Every method at every layer asked for, and each layer's layout where that is known before the run."""
        pairs: list[tuple[Method, str]] = []
        known: dict[str, Layout | None] = {}
        hidden = black_box(unwrap(self.net))
        for method in self.methods:
            for ask in asked:
                if hidden:
                    _check_asks(hidden, method, ask)
                name, layout = ("input", None) if ask is None and method.at == "input" else self.place(ask)
                if name in known and known[name] != layout:
                    raise InputError("a layer was asked for with two layouts at once: ask for one after the other.")
                known[name] = layout
                pairs.append((method, name))
        return pairs, known

    def ask(self, pairs: Sequence[tuple[Method, str]], known: dict[str, Layout | None]) -> Seen:
        """One forward pass and everything it answers, then what is to be asked again.

        Raises: LayerError that names the layer to use.
        """
        wanted = {n: list(dict.fromkeys(m for m, name in pairs if name == n)) for n in known}
        reading = {n: ms for n, ms in wanted.items() if n != "input" or not all(m.asks for m in ms)}
        try:
            try:
                seen = self._answered(wanted, known, reading, forward=True)
            except NotImplementedError:  # an operation that knows no forward mode: every target back, then
                seen = self._answered(wanted, known, reading, forward=False)
        except LayerError as problem:
            raise self._advised(problem) from None
        for name in seen.answers.blind():
            self._refuse_blind(name)
        return seen

    def _answered(
        self,
        wanted: dict[str, list[Method]],
        known: dict[str, Layout | None],
        reading: dict[str, list[Method]],
        forward: bool,
    ) -> Seen:
        seen = read(self.net, self.inputs, list(reading), lambda tape: self._read(tape, known, reading, forward))
        for name, methods in wanted.items():
            if again := [m for m in methods if (name, m) not in seen.answers.maps]:
                self._ask_again(seen, name, again)
        return seen

    def _ask_again(self, seen: Seen, name: str, methods: Sequence[Method]) -> None:
        """The maps of methods that ask the model again, picture by picture, put to those that are there."""
        picked = [class_of(t, seen.logits) for t in self.targets]
        kind = self.inputs.x.device.type
        subject = Subject(
            self.net, self.inputs, name, seen.layouts[name], seen.raw[name], self.targets, picked, seen.scores,
            seen.answers.slopes.get(name), torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
            seen.logits, seen.settled,
        )  # fmt: skip
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(kind, enabled=False):
            for method in methods:
                ask = method if method.asks else method.by_place
                rows = [ask(subject.picture(i)) for i in range(len(self.inputs.x))]  # type: ignore[misc]
                seen.answers.maps[name, method] = torch.stack(rows, 1)

    def _read(
        self, tape: Tape, known: dict[str, Layout | None], reading: dict[str, list[Method]], forward: bool
    ) -> Seen:
        count = len(self.inputs.x)
        for name, act in tape.acts.items():
            if len(act) != count:
                rows = f"{len(act)} rows for {count} picture{'s' * (count > 1)}"
                raise LayerError(f"layer {name!r} gave {rows}: windows, heads or steps, which are no map of a picture")
        raw = {n: tape.acts[n].detach() if n in tape.acts else self.inputs.x for n in known}
        layouts = {n: layout or self._layout(n, raw[n]) for n, layout in known.items()}
        for name, layout in layouts.items():
            if not has_space(layout(raw[name]).shape[2:]):
                raise LayerError(f"layer {name!r} has one place only: no space is left to show anything in")
        asked = put(self.targets, tape.output, count)
        with torch.autocast(self.inputs.x.device.type, enabled=False):  # maps are summed in full precision
            found = Evidence(tape, layouts, unwrap(self.net), asked, reading, forward).answers()
        settled = settle.settled(self.targets, tape.output)
        return Seen(found, layouts, raw, asked.scores, asked.index, self._logits(tape), tape.seconds, settled)

    def _logits(self, tape: Tape) -> Tensor | None:
        """The class logits; None of a model of another kind, explained by a target of the user's own."""
        try:
            y = targets_.logits(tape.output)
        except TargetError:
            return None
        targets_.refuse_sigmoid(self.targets, y)
        return y.detach()

    def _layout(self, name: str, act: Tensor) -> Layout:
        space = tuple(self.inputs.x.shape[2:])
        module = named(unwrap(self.net)).get(name)
        if name == "input" or plain(act.shape, space, module):
            return infer(act.shape, space, module)
        seen = self.survey()
        if name in seen.texts:
            raise LayoutError(
                f"a text takes part in what layer {name!r} gives, so it is no grid of the picture's places: say where "
                "they are in it, as layer=(name, function to channels first), or ask for another layer"
            )
        place = seen.of(name)
        return place.layout if place else infer(act.shape, space, module, *seen.met_before(name))

    def _advised(self, problem: LayerError) -> LayerError:
        """The same error, naming the layer that works, unless it is the very one that does not."""
        try:
            kind = LayoutError if isinstance(problem, LayoutError) else LayerError
            best = self.choice(self.survey(again=True)).name
            same = f"layer {best!r}" in str(problem)
            return kind(str(problem) if same else f"{str(problem).rstrip('.')}: use layer={best!r}.")
        except (LayerError, TargetError):
            return LayerError(str(problem))

    def _refuse_blind(self, name: str) -> None:
        """Raise where no place of this layer matters though one before it does: the evidence goes another way.

        Where nothing before it matters either, this picture's score is dead, not the layer: that is a status.
        """
        seen = self.survey(complete=True)
        place = seen.of(name)
        if place is None or place.share:
            return
        if any(p.share and p.order < place.order for p in seen.all):
            raise LayerError(
                f"the score does not depend on any place of layer {name!r} (its gradient there is exactly zero): "
                f"use layer={self.choice(seen).name!r}."
            )


def _check_asks(hidden: str, method: Method, ask: LayerAsk) -> None:
    """Raise where something is to be read inside a model that hides its layers."""
    if not method.answers_only:
        able = " or ".join(f"method={m.name!r}" for m in list_methods().values() if m.answers_only)
        raise MethodError(
            f"{method.title} reads inside the model, and {hidden} hides its layers and gradients: {able} asks for its "
            "answers alone, and works."
        )
    if ask not in (None, "input"):
        raise LayerError(f"{hidden} hides its layers: {method.title} covers the picture there; leave layer= out.")


def class_of(target: Target, logits: Tensor | None) -> Tensor | None:
    """The class that a target means for each picture; None where it is no class."""
    return target.pick(logits) if isinstance(target, targets_.ClassTarget) and logits is not None else None
