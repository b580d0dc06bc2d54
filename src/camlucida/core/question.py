"""Targets and methods put to one model and one batch: one forward pass, then what has to be asked again."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from camlucida import maps
from camlucida.core import layers as layers_
from camlucida.core import targets as targets_
from camlucida.core.capture import Inputs, Tape, read
from camlucida.core.evidence import Answers, Evidence, put
from camlucida.core.layouts import has_space, infer, plain
from camlucida.core.scope import named, unwrap
from camlucida.core.scorer import Subject
from camlucida.errors import InputError, LayerError, LayoutError, TargetError
from camlucida.registry import Method
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
    """Targets and methods asked of one model and one batch."""

    net: nn.Module
    inputs: Inputs
    targets: Sequence[Target]
    methods: Sequence[Method]

    def place(self, ask: LayerAsk) -> tuple[str, Layout | None]:
        """The layer asked for by name, with its layout where that is known before the run."""
        if isinstance(ask, tuple) and len(ask) == 2 and callable(ask[1]):
            return layers_.resolve(self.net, ask[0]), ask[1]
        if not isinstance(ask, str | int | nn.Module | None) or isinstance(ask, bool):
            raise LayerError(f"a layer is a module, a name, a number or (layer, layout); got {ask!r}.")
        if ask is None or isinstance(ask, int):
            seen = self.survey()
            place = seen.choice if ask is None else seen.numbered(ask)
            return place.name, place.layout
        return layers_.resolve(self.net, ask), None

    def survey(self, again: bool = False) -> layers_.Survey:
        # A target of the user's own must itself judge the layers; class targets all agree with the logits.
        own = next((t for t in self.targets if not isinstance(t, targets_.ClassTarget)), None)
        return layers_.survey(self.net, self.inputs, own, again)

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

    def places(self, asked: Sequence[LayerAsk]) -> tuple[list[tuple[Method, str]], dict[str, Layout | None]]:
        """Every method at every layer asked for, and each layer's layout where that is known before the run."""
        pairs: list[tuple[Method, str]] = []
        known: dict[str, Layout | None] = {}
        for method in self.methods:
            for ask in asked:
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
            seen.logits,
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
        try:
            logits = targets_.logits(tape.output).detach()
        except TargetError:
            logits = None  # a model of another kind, explained by a target of the user's own
        return Seen(found, layouts, raw, asked.scores, asked.index, logits, tape.seconds)

    def _layout(self, name: str, act: Tensor) -> Layout:
        space = tuple(self.inputs.x.shape[2:])
        module = named(unwrap(self.net)).get(name)
        if name == "input" or plain(act.shape, space, module):
            return infer(act.shape, space, module)
        seen = self.survey()
        place = seen.of(name)
        return place.layout if place else infer(act.shape, space, module, seen.grids_before(name))

    def _advised(self, problem: LayerError) -> LayerError:
        """The same error, naming the layer that works, unless it is the very one that does not."""
        try:
            kind = LayoutError if isinstance(problem, LayoutError) else LayerError
            best = self.survey(again=True).choice.name
            same = f"layer {best!r}" in str(problem)
            return kind(str(problem) if same else f"{str(problem).rstrip('.')}: use layer={best!r}.")
        except (LayerError, TargetError):
            return LayerError(str(problem))

    def _refuse_blind(self, name: str) -> None:
        """Raise where no place of this layer matters though one before it does: the evidence goes another way.

        Where nothing before it matters either, this picture's score is dead, not the layer: that is a status.
        """
        seen = self.survey()
        place = seen.of(name)
        if place is None or place.share > 0:
            return
        if any(p.share > 0 and p.order < place.order for p in seen.all):
            raise LayerError(
                f"the score does not depend on any place of layer {name!r} (its gradient there is exactly zero): "
                f"use layer={seen.choice.name!r}."
            )


def class_of(target: Target, logits: Tensor | None) -> Tensor | None:
    """The class that a target means for each picture; None where it is no class."""
    return target.pick(logits) if isinstance(target, targets_.ClassTarget) and logits is not None else None
