"""The result: a raw map with everything one must know to trust it, and the steps from it to a picture."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from camlucida import maps
from camlucida.core.pictures import Pictures as Pictures  # one imports them from here, too
from camlucida.core.scores import probable
from camlucida.types import Map, Scores

if TYPE_CHECKING:
    from PIL.Image import Image

_WHY = {
    "all-negative": "no evidence for this answer: the whole map is negative",
    "zero gradient": "the score does not change with this layer here",
    "constant": "the map is the same everywhere",
    "no evidence": "the map is zero everywhere, or rounding noise",
    "non-finite": "the map holds NaN or infinity",
}


@dataclass(frozen=True)
class Facts:
    """How a map came about: what was explained, by which method, where, with which version, at what cost.

    ``cost`` is the time of the whole call over the time of its forward pass, the choice of the layer included.
    """

    target: str
    method: str
    title: str
    layer: str
    layout: str
    cost: float
    version: str
    paper: str = ""
    class_agnostic: bool = False
    notes: tuple[str, ...] = ()  # what one should know of the model: random weights, a partial load
    confident: float | None = None  # the probability of the best class below which an answer is of low confidence
    kind: str = "class"  # or label, binary, value: what a column of the logits is (`camlucida.core.targets.Kind`)


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Where the evidence lies, for a batch of ``b`` pictures, one target, one method, one layer.

    ``map`` is raw and signed, in units of the score, at the layer's own resolution: it is the result. All else is
    made from it by recorded steps. Indexing and iterating give the explanations of single pictures. ``sure`` is the
    probability of what was explained where it is not one of the logits' own, ``where`` the region or box looked at,
    ``centres`` where the cells of the map lie in the model's input, unless they are spread over it evenly.
    """

    map: Map
    scores: Scores
    statuses: tuple[maps.Status, ...]
    facts: Facts
    pictures: Pictures
    classes: Int[Tensor, " b"] | None = None
    logits: Float[Tensor, "b k"] | None = None
    labels: tuple[str, ...] = ()
    sure: Float[Tensor, " b"] | None = None
    where: tuple[str, ...] = ()
    centres: maps.Centres | None = None

    def __len__(self) -> int:
        return len(self.map)

    def __getitem__(self, i: int) -> "Explanation":
        at = slice(self._at(i), self._at(i) + 1)
        return replace(
            self,
            map=self.map[at],
            scores=self.scores[at],
            statuses=self.statuses[at],
            pictures=self.pictures[at],
            classes=None if self.classes is None else self.classes[at],
            logits=None if self.logits is None else self.logits[at],
            sure=None if self.sure is None else self.sure[at],
            where=self.where[at],
        )

    def _at(self, i: int) -> int:
        if not isinstance(i, int) or not -len(self) <= i < len(self):
            raise IndexError(f"picture {i} does not exist: this explanation has {len(self)}.")
        return i % len(self)

    def __iter__(self) -> "Iterator[Explanation]":
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        grid = "×".join(map(str, self.map.shape[1:]))
        return f"<{len(self)} × {self.facts.title} of {self.facts.target} at {self.layer}, {grid}: {self.status}>"

    # ------------------------------------------------------------------------------------------ what it says

    @property
    def layer(self) -> str:
        """The layer the map was taken at."""
        return self.facts.layer

    @property
    def method(self) -> str:
        """The method's name in the registry."""
        return self.facts.method

    @property
    def cost(self) -> float:
        """Time of the call in forward passes."""
        return self.facts.cost

    @property
    def probabilities(self) -> Float[Tensor, "b k"] | None:
        """The softmax of the logits, or the output itself where it is probabilities; None for a model of numbers.

        Labels that do not exclude each other have their sigmoid.
        """
        kind = self.facts.kind
        if self.logits is None or kind == "value" or (self.logits.shape[1] < 2 and kind == "class"):
            return None
        return self.logits.float().sigmoid() if kind in ("label", "binary") else probable(self.logits)

    @property
    def status(self) -> str:
        """``ok``, or why the map is blank; of a batch, every different one."""
        return ", ".join(dict.fromkeys(self.statuses))

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps from the model to `heatmap`, in order."""
        f = self.facts
        grid = "×".join(map(str, self.map.shape[1:]))
        taken = f"{f.title} of {f.target} at {f.layer} ({f.layout}), {grid}"
        laid = f"laid at {self.centres}" if self.centres else "spread evenly"
        return (taken, "ReLU", "divided by its maximum", f"linear interpolation to the picture, {laid}")

    def label(self, i: int = 0) -> str:
        """The name of the explained class of picture ``i``, or the target where it is no class."""
        if self.classes is None:
            return self.facts.target
        index, kind = int(self.classes[i]), {"label": "label", "value": "output"}.get(self.facts.kind, "class")
        return self.labels[index] if index < len(self.labels) else f"{kind} {index}"

    def probability(self, i: int = 0) -> float | None:
        """The probability of the explained class of picture ``i``, where it is one: softmax, or a label's sigmoid."""
        if self.sure is not None:
            return float(self.sure[i])
        sure = self.probabilities
        return None if self.classes is None or sure is None else float(sure[i, int(self.classes[i])])

    def confident(self, i: int = 0) -> bool | None:
        """Whether the best class of picture ``i`` is as probable as the model's answers mostly are; None: not known."""
        sure, least = self.probabilities, self.facts.confident
        return None if sure is None or least is None or self.facts.kind != "class" else bool(sure[i].max() >= least)

    def caption(self, i: int = 0) -> str:
        """One line: what was explained, how sure the model is, how and where it was read."""
        p = self.probability(i)
        sure = self._number(i) if p is None else f"{p:.0%}" if p >= 0.01 else f"{p:.2g}"
        low = " · low confidence" if self.confident(i) is False else ""
        return f"{self._named(i)}{self._rivals()} {sure} · {self.facts.title} · {self.facts.layer}{low}"

    def _named(self, i: int) -> str:
        """The label, and which region or box of the picture it was looked for in."""
        return f"{self.label(i)} {self.where[i]}" if self.where else self.label(i)

    def _number(self, i: int) -> str:
        """What stands where a class has its probability: a number itself, whatever was asked of it; else the score."""
        if self.facts.kind != "value" or self.classes is None or self.logits is None:
            return f"score {float(self.scores[i]):.3g}"
        way = self.facts.target.rpartition(", ")[2]
        return f"= {float(self.logits[i, int(self.classes[i])]):.3g}, {way}"

    def _rivals(self) -> str:
        """What the class is held against, by name, where the target is a contrast."""
        told = self.facts.target.partition(" against ")[2] if self.classes is not None else ""
        names = [self.labels[int(j)] if j.isdigit() and int(j) < len(self.labels) else j for j in told.split(", ")]
        return f" against {', '.join(names)}" if told else ""

    # ------------------------------------------------------------------------------------------ what it shows

    def heatmap(self, i: int = 0, *, signed: bool = False, scale: float | None = None) -> Float[Tensor, "*full"]:
        """The evidence on picture ``i``'s own pixels, in [0, 1] (in [−1, 1] ``signed``); zeros where blank or unseen.

        ``relu(M)/scale``, linearly interpolated between the true centres of the layer's cells, where those are known;
        ``scale`` is the map's own maximum unless given (`shared_scale`).
        Shape ``height width`` of the picture as opened; for other inputs the input's own space.
        """
        i = self._at(i)
        raw = self.map[i : i + 1]
        scale = maps.scale_of(raw, signed) if scale is None else scale
        if self.statuses[i] != "ok" and not (signed and self.statuses[i] == "all-negative"):
            scale = 0.0
        values = maps.unit(raw if signed else maps.rectify(raw), scale, signed)
        if self.centres:
            values = maps.resize(values, self.pictures.space, self.centres)
        return self.pictures.lay(values[0], i)[0]

    def seen(self, i: int = 0) -> Bool[Tensor, "*full"]:
        """Which pixels of picture ``i`` the model saw at all: a centre crop leaves out the margins."""
        i = self._at(i)
        return self.pictures.lay(self.map[i], i)[1]

    def overlay(self, i: int = 0, *, signed: bool = False, scale: float | None = None, **look: Any) -> "Image":
        """Heat laid over picture ``i``; what the model never saw is marked. ``look``: alpha, colours, … of the view.

        A signal is drawn as curves over the evidence, a volume as slices, a clip as frames: see `core.shown`.
        """
        from camlucida.core import shown

        return shown.overlay(self, self._at(i), signed, scale, **look)

    def panel(self, i: int = 0, *, signed: bool = False, scale: float | None = None, **look: Any) -> "Image":
        """Original · heat map · overlay of picture ``i``, with caption and scale; a blank map says why.

        A signal is a strip, a volume three planes through the peak, a clip its frames above the overlays.
        """
        from camlucida.core import shown

        return shown.panel(self, self._at(i), signed, scale, **look)

    def save(self, path: str | PathLike[str], i: int = 0) -> None:
        """Write a picture (overlay of picture ``i``) or, as .npz or .safetensors, everything without loss.

        Of a clip or volume .gif and .mp4 are a film of the overlays, .nii and .nii.gz the heat map on its own voxels.

        Raises: OutputError where the suffix is unknown or the file cannot be written; it is whole or not there.
        """
        from camlucida.core import store

        store.save(self, path, i)

    def _repr_png_(self) -> bytes | None:
        from camlucida import view

        return view.png_bytes(self.panel()) if len(self.pictures.space) in (1, 2, 3) else None

    def _repr_html_(self) -> str | None:
        from camlucida import view

        if len(self.pictures.space) not in (1, 2, 3):
            return None
        return "".join(view.card(self.panel(i), self.summary(i)) for i in range(min(len(self), 16)))

    def why(self, i: int = 0) -> str:
        """Why the map of picture ``i`` shows nothing; empty where it does."""
        return _WHY.get(self.statuses[i], "")

    def summary(self, i: int = 0) -> Mapping[str, str]:
        """What a reader must know about the map of picture ``i``, as text."""
        i = self._at(i)
        f, p = self.facts, self.probability(i)
        notes = [*f.notes, *filter(None, self.pictures.notes[i : i + 1])]
        grid, sure = "×".join(map(str, self.map.shape[1:])), self.confident(i)
        more = {} if sure is None else {"confidence": "as usual" if sure else _low(f.confident)}
        return (
            {
                "picture": self.pictures.names[i],
                "explained": self._named(i),
                "score": f"{float(self.scores[i]):.4g}" + ("" if p is None else f" (probability {p:.3g})"),
                "method": f.title + (" (class-agnostic)" if f.class_agnostic else ""),
                "layer": f"{f.layer}, {f.layout}, {grid}" + (f" at {self.centres}" if self.centres else ""),
                "status": self.statuses[i],
                "cost": f"{f.cost:.2f} forwards",
            }
            | more
            | ({"notes": "; ".join(notes)} if notes else {})
        )


def _low(least: float | None) -> str:
    return f"low: no class reaches {least}, as the best one does in 95 % of pictures of known classes"


def shared_scale(explanations: Sequence[Explanation], signed: bool = False) -> float:
    """One scale for several explanations, so that the same colour means the same evidence: pass it as ``scale=``."""
    good = [e[i].map for e in explanations for i in range(len(e)) if e.statuses[i] in ("ok", "all-negative")]
    return max((maps.scale_of(m, signed) for m in good), default=0.0)
