"""The result: a raw map with everything one must know to trust it, and the steps from it to a picture."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from camlucida import maps
from camlucida.errors import InputError
from camlucida.frame import Frame
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


@dataclass(frozen=True)
class Pictures:
    """What the maps lie on: the tensor the model saw or the pictures it came from, with names and geometry."""

    space: tuple[int, ...]
    names: tuple[str, ...]
    frames: tuple[Frame, ...] = ()
    images: "tuple[Image, ...]" = ()
    tensor: Tensor | None = None
    notes: tuple[str, ...] = ()  # what was done to each picture on opening; "" for nothing

    def __getitem__(self, i: slice) -> "Pictures":
        tensor = None if self.tensor is None else self.tensor[i]
        kept = {of: getattr(self, of)[i] for of in ("names", "frames", "images", "notes")}
        return replace(self, tensor=tensor, **kept)

    def image(self, i: int) -> "Image":
        """Picture ``i``; one that came as a tensor is shown with its own range stretched to black and white.

        Raises: InputError where the input is no picture.
        """
        from PIL import Image

        if self.images:
            return self.images[i]
        if self.tensor is None or len(self.space) != 2:
            raise InputError(f"an input with {len(self.space)} axes of space is no picture: use heatmap() or map.")
        x = self.tensor[i].detach().float().cpu().nan_to_num()
        x = x[:3] if len(x) >= 3 else x[:1].expand(3, -1, -1)
        x = (x - x.min()) / (x.max() - x.min()).clamp(min=torch.finfo(torch.float32).tiny)
        return Image.fromarray((x * 255).round().byte().movedim(0, -1).contiguous().numpy())


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Where the evidence lies, for a batch of ``b`` pictures, one target, one method, one layer.

    ``map`` is raw and signed, in units of the score, at the layer's own resolution: it is the result. All else is
    made from it by recorded steps. Indexing and iterating give the explanations of single pictures.
    """

    map: Map
    scores: Scores
    statuses: tuple[maps.Status, ...]
    facts: Facts
    pictures: Pictures
    classes: Int[Tensor, " b"] | None = None
    logits: Float[Tensor, "b k"] | None = None
    labels: tuple[str, ...] = ()

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
        """The softmax of the logits, or the output itself where it is probabilities; None for a model of one number."""
        if self.logits is None or self.logits.shape[1] < 2:
            return None
        y = self.logits.float()
        given = bool((y >= 0).all()) and bool(((y.sum(1) - 1).abs() < 1e-3).all())
        return y if given else y.softmax(1)

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
        return (taken, "ReLU", "divided by its maximum", "linear interpolation to the picture")

    def label(self, i: int = 0) -> str:
        """The name of the explained class of picture ``i``, or the target where it is no class."""
        if self.classes is None:
            return self.facts.target
        index = int(self.classes[i])
        return self.labels[index] if index < len(self.labels) else f"class {index}"

    def probability(self, i: int = 0) -> float | None:
        """The softmax probability of the explained class of picture ``i``, where the target is a class."""
        sure = self.probabilities
        return None if self.classes is None or sure is None else float(sure[i, int(self.classes[i])])

    def confident(self, i: int = 0) -> bool | None:
        """Whether the best class of picture ``i`` is as probable as the model's answers mostly are; None: not known."""
        sure, least = self.probabilities, self.facts.confident
        return None if sure is None or least is None else bool(sure[i].max() >= least)

    def caption(self, i: int = 0) -> str:
        """One line: what was explained, how sure the model is, how and where it was read."""
        p = self.probability(i)
        sure = f"score {float(self.scores[i]):.3g}" if p is None else f"{p:.0%}" if p >= 0.01 else f"{p:.2g}"
        low = " · low confidence" if self.confident(i) is False else ""
        return f"{self.label(i)}{self._rivals()} {sure} · {self.facts.title} · {self.facts.layer}{low}"

    def _rivals(self) -> str:
        """What the class is held against, by name, where the target is a contrast."""
        told = self.facts.target.partition(" against ")[2] if self.classes is not None else ""
        names = [self.labels[int(j)] if j.isdigit() and int(j) < len(self.labels) else j for j in told.split(", ")]
        return f" against {', '.join(names)}" if told else ""

    # ------------------------------------------------------------------------------------------ what it shows

    def heatmap(self, i: int = 0, *, signed: bool = False, scale: float | None = None) -> Float[Tensor, "*full"]:
        """The evidence on picture ``i``'s own pixels, in [0, 1] (in [−1, 1] ``signed``); zeros where blank or unseen.

        ``relu(M)/scale``, linearly interpolated; ``scale`` is the map's own maximum unless given (`shared_scale`).
        Shape ``height width`` of the picture as opened; for other inputs the input's own space.
        """
        i = self._at(i)
        raw = self.map[i : i + 1]
        scale = maps.scale_of(raw, signed) if scale is None else scale
        if self.statuses[i] != "ok" and not (signed and self.statuses[i] == "all-negative"):
            scale = 0.0
        values = maps.unit(raw if signed else maps.rectify(raw), scale, signed)
        if self.pictures.frames:
            return maps.lay(values[0], self.pictures.frames[i])[0]
        return maps.resize(values, self.pictures.space)[0]

    def seen(self, i: int = 0) -> Bool[Tensor, "*full"]:
        """Which pixels of picture ``i`` the model saw at all: a centre crop leaves out the margins."""
        i = self._at(i)
        if self.pictures.frames:
            return maps.lay(self.map[i], self.pictures.frames[i])[1]
        return torch.ones(self.pictures.space, dtype=torch.bool)

    def overlay(self, i: int = 0, *, signed: bool = False, scale: float | None = None, **look: object) -> "Image":
        """Heat laid over picture ``i``; what the model never saw is marked. ``look``: alpha, colours, … of the view."""
        from camlucida import view

        i = self._at(i)
        image = self.pictures.image(i)
        return view.overlay(image, self._painted(i, signed, scale), signed=signed, **look)  # type: ignore[arg-type]

    def panel(self, i: int = 0, *, signed: bool = False, scale: float | None = None, **look: object) -> "Image":
        """Original · heat map · overlay of picture ``i``, with caption and scale; a blank map says why."""
        from camlucida import view

        i = self._at(i)
        blank = self.statuses[i] != "ok" and not (signed and self.statuses[i] == "all-negative")
        words = {"titles": ("picture", self.facts.title, "overlay"), "caption": self.caption(i)}
        look = {**words, "note": self.why(i) if blank else "", **look}
        image = self.pictures.image(i)
        return view.panel(image, self._painted(i, signed, scale), signed=signed, **look)  # type: ignore[arg-type]

    def _painted(self, i: int, signed: bool, scale: float | None) -> "object":
        heat = self.heatmap(i, signed=signed, scale=scale).float().cpu()
        return heat.masked_fill(~self.seen(i).cpu(), torch.nan).numpy()

    def save(self, path: str | PathLike[str], i: int = 0) -> None:
        """Write a picture (overlay of picture ``i``) or, as .npz or .safetensors, everything without loss.

        Raises: OutputError where the suffix is unknown or the file cannot be written; it is whole or not there.
        """
        from camlucida.core import store

        store.save(self, path, i)

    def _repr_png_(self) -> bytes | None:
        from camlucida import view

        return view.png_bytes(self.panel()) if len(self.pictures.space) == 2 else None

    def _repr_html_(self) -> str | None:
        from camlucida import view

        if len(self.pictures.space) != 2:
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
        sure = self.confident(i)
        more = {} if sure is None else {"confidence": "as usual" if sure else _low(f.confident)}
        return (
            {
                "picture": self.pictures.names[i],
                "explained": self.label(i),
                "score": f"{float(self.scores[i]):.4g}" + ("" if p is None else f" (probability {p:.3g})"),
                "method": f.title + (" (class-agnostic)" if f.class_agnostic else ""),
                "layer": f"{f.layer}, {f.layout}, {'×'.join(map(str, self.map.shape[1:]))}",
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
