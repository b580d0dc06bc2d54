"""A signal over its evidence: a curve for each channel on the colours of the heat, and the heat itself as a curve."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from camlucida.errors import InputError
from camlucida.view.colour import paint
from camlucida.view.overlay import hatch
from camlucida.view.page import Text, page, tiled
from camlucida.view.panel import PAPER
from camlucida.view.sizes import fit_heat, letter
from camlucida.view.text import INK, Font, cut, font, height

Signal = NDArray[np.floating[Any]]
Span = tuple[float, float]

_FINE = 4  # lines are drawn so many times larger and shrunk, which makes them smooth
_THICK = 0.8  # half of a curve's width, in pixels
_MARGIN, _GAP, _TICK = 8, 6, 5
_MOST = 24  # more channels than this are rows of grey
_TALL, _LOW, _ALL = 160, 36, 480  # pixels of a lane: at most, at least, and of all together where that is possible
_EVIDENCE = 72
_FULL = 0.65  # how much of the colour shows behind the curves where the heat is 1
_EDGE = (190, 190, 190)


def strip(
    signal: Signal,
    heat: Signal,
    *,
    colours: str | None = None,
    signed: bool = False,
    width: int = 960,
    labels: Sequence[str] | None = None,
    **words: Unpack[Text],
) -> Image.Image:
    """The curves of a signal, float ``(c, n)``, each on the colours of `heat`, and the heat as a curve below them.

    `heat` is float ``(n,)`` in [0, 1], or in [−1, 1] when `signed`; NaN is marked as never seen. The stronger the
    evidence, the fuller the colour: where there is none the paper is white. Each curve fills its lane from its own
    lowest to its highest value; of samples narrower than a pixel both extremes are drawn, so that no peak is lost. More
    than 24 channels are rows of grey. The axis counts samples from 0. The `words` are those of `Text`. Raises
    `InputError` where lengths differ or labels are too few or too many.

    >>> strip(np.zeros((2, 50)), np.zeros(50), width=400, caption="class 3").width
    432
    """
    signal, heat = _checked(signal, heat, labels, width)
    names = labels or (["signal"] if len(signal) == 1 else [f"channel {k}" for k in range(len(signal))])
    plan = _Plan(len(signal), signal.shape[1], width, names)
    ground = _ground(heat, colours, signed)
    lanes = [_lane(channel, ground, plan) for channel in signal] if plan.curves else [_rows(signal, plan)]
    lanes.append(_evidence(heat, plan, colours, signed))
    unseen = np.isnan(fit_heat(heat[None], (plan.wide, 1)))
    lanes = [_framed(hatch(lane, lane, unseen.repeat(lane.height, 0))) for lane in lanes]
    rows = [[_name(name, lane.height, plan), lane] for name, lane in zip(plan.lines, lanes, strict=True)]
    body = tiled([*rows, [_name("", 1, plan), _axis(plan)]], 2)
    return page(body, colours=colours, signed=signed, **words)


@dataclass(frozen=True)
class _Plan:
    """Where things are: `count` channels of `length` samples, their names at the left, in `whole` pixels of width."""

    count: int
    length: int
    whole: int
    names: Sequence[str]

    @property
    def curves(self) -> bool:
        return self.count <= _MOST

    @property
    def lines(self) -> list[str]:
        return [*(self.names if self.curves else [f"{self.count} channels"]), "evidence"]

    @property
    def face(self) -> Font:
        return font(letter(self.whole // 2))

    @property
    def left(self) -> int:
        widest = max(self.face.getlength(cut(name, self.face, self.whole // 5)) for name in self.lines)
        return int(widest) + 2 * _GAP

    @property
    def wide(self) -> int:
        return self.whole - self.left - 2  # 2: between name and lane

    @property
    def lane(self) -> int:
        return min(_TALL, max(_LOW, _ALL // self.count))


def _checked(signal: Signal, heat: Signal, labels: Sequence[str] | None, width: int) -> tuple[Signal, Signal]:
    signal, heat = np.asarray(signal), np.asarray(heat)
    if signal.ndim != 2 or heat.ndim != 1 or signal.size == 0 or signal.shape[1] != len(heat):
        raise InputError(
            f"A strip shows a signal (channels, samples) and a heat map (samples,) as long; got shapes {signal.shape} "
            f"and {heat.shape}."
        )
    if labels is not None and (len(labels) != len(signal) or isinstance(labels, str)):
        raise InputError(f"A strip of {len(signal)} channels needs as many labels; got {len(labels)}: {labels!r}.")
    if width < 200:
        raise InputError(f"A strip is at least 200 pixels wide, to hold names and numbers; got width={width}.")
    return signal.astype(np.float64), heat.astype(np.float32)


# ------------------------------------------------------------------------------------------------------------ drawing


def _ground(heat: Signal, colours: str | None, signed: bool) -> Image.Image:
    """The colour behind the curves for each sample, one pixel high: paper that the heat's colour fills as it grows."""
    tint = paint(heat[None], colours, signed).astype(np.float32)
    share = _FULL * np.clip(np.nan_to_num(np.abs(heat) if signed else heat, nan=1.0), 0, 1)[None, :, None]
    return Image.fromarray(((1 - share) * np.array(PAPER, np.float32) + share * tint + 0.5).astype(np.uint8))


def _lane(channel: Signal, ground: Image.Image, plan: _Plan) -> Image.Image:
    made = _across(ground, plan.wide, plan.lane)
    seen = channel[np.isfinite(channel)]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 0.0)
    span = (low, high) if low < high else (low - 1, high + 1)
    made.paste(INK, (0, 0), _line(channel, made.size, span))
    return made


def _rows(signal: Signal, plan: _Plan) -> Image.Image:
    """Every channel as a row of grey, each from its own lowest value, black, to its highest."""
    signal = np.where(np.isfinite(signal), signal, np.nan)
    low = np.fmin.reduce(signal, axis=1, keepdims=True)
    extent = np.fmax.reduce(signal, axis=1, keepdims=True) - low
    unit = np.divide(signal - low, extent, out=np.full(signal.shape, 0.5), where=extent > 0)
    grey = Image.fromarray((np.nan_to_num(unit, nan=1.0) * 255).astype(np.uint8))
    tall = plan.count * (_ALL // plan.count) or _ALL
    return _across(grey, plan.wide, tall).convert("RGB")


def _evidence(heat: Signal, plan: _Plan, colours: str | None, signed: bool) -> Image.Image:
    """The heat as a curve over its zero line, the area between them in its colours."""
    shown = fit_heat(heat[None], (plan.wide, 1))
    span = (-1.0, 1.0) if signed else (0.0, 1.0)
    made = Image.new("RGB", (plan.wide, _EVIDENCE), PAPER)
    tint = Image.fromarray(paint(shown, colours, signed)).resize(made.size, Image.Resampling.NEAREST)
    level = _heights(np.clip(np.nan_to_num(shown[0]), *span), _EVIDENCE, span)
    zero = float(_heights(np.array([0.0]), _EVIDENCE, span)[0])
    places = np.arange(_EVIDENCE)[:, None] + 0.5
    inside = (places >= np.minimum(level, zero)) & (places <= np.maximum(level, zero))
    made.paste(tint, (0, 0), Image.fromarray(inside * np.uint8(255)))
    made.paste(INK, (0, 0), _line(np.clip(heat, *span).astype(np.float64), made.size, span))
    ImageDraw.Draw(made).line((0, round(zero), plan.wide, round(zero)), fill=_EDGE)
    return made


def _line(values: Signal, size: tuple[int, int], span: Span) -> Image.Image:
    """How much ink of a curve each pixel holds: a mask of `size` (width, height), smooth, broken where it is NaN."""
    wide, high = size[0] * _FINE, size[1] * _FINE
    places = (np.arange(len(values)) + 0.5) / len(values) * wide
    at = np.interp(np.arange(wide + 1), places, np.where(np.isfinite(values), values, np.nan))
    low, high_ = np.minimum(at[:-1], at[1:]), np.maximum(at[:-1], at[1:])
    column = np.minimum(places.astype(np.intp), wide - 1)
    np.fmin.at(low, column, values)
    np.fmax.at(high_, column, values)
    low, high_ = _widened(low, np.fmin), _widened(high_, np.fmax)
    below, above = (_heights(v, size[1], span) * _FINE for v in (low, high_))
    rows = np.arange(high)[:, None] + 0.5
    ink = (rows >= above - _THICK * _FINE) & (rows <= below + _THICK * _FINE)
    parts = ink.reshape(size[1], _FINE, size[0], _FINE).mean((1, 3))
    return Image.fromarray((parts * 255 + 0.5).astype(np.uint8))


def _widened(ends: Signal, extreme: np.ufunc) -> Signal:
    """Each column with its neighbours' extremes, so that a steep line is as thick as a flat one."""
    reach = round(_THICK * _FINE)
    around = np.pad(ends, reach, constant_values=np.nan)
    return extreme.reduce([around[k : k + len(ends)] for k in range(2 * reach + 1)])  # type: ignore[no-any-return]


def _heights(values: Signal, tall: int, span: Span) -> Signal:
    """Where values stand in a lane `tall` pixels high, counted from its top."""
    low, high = span
    return _GAP + (high - values) / (high - low) * (tall - 2 * _GAP)


def _across(row: Image.Image, wide: int, tall: int) -> Image.Image:
    """A picture at another size: averaged where it shrinks, in hard-edged pixels where it grows."""
    return row.resize((wide, tall), Image.Resampling.BOX)


def _framed(lane: Image.Image) -> Image.Image:
    ImageDraw.Draw(lane).rectangle((0, 0, lane.width - 1, lane.height - 1), outline=_EDGE)
    return lane


def _name(name: str, tall: int, plan: _Plan) -> Image.Image:
    made = Image.new("RGB", (plan.left, tall), PAPER)
    text = cut(name, plan.face, plan.left - 2 * _GAP)
    where = (plan.left - _GAP - plan.face.getlength(text), (tall - height(plan.face)) // 2)
    ImageDraw.Draw(made).text(where, text, fill=INK, font=plan.face)
    return made


def _axis(plan: _Plan) -> Image.Image:
    """Numbers of samples at round places, and what is counted."""
    made = Image.new("RGB", (plan.wide, _TICK + height(plan.face)), PAPER)
    draw, said = ImageDraw.Draw(made), "samples"
    room = plan.wide - plan.face.getlength(said) - 2 * _GAP
    step = _step(plan.length, max(1, int(room // (plan.face.getlength(str(plan.length)) + 4 * _GAP))))
    for sample in range(0, plan.length, step):
        x = (sample + 0.5) / plan.length * plan.wide
        half = plan.face.getlength(str(sample)) / 2
        if x + half < room:
            draw.line((x, 0, x, _TICK), fill=INK)
            draw.text((max(0, x - half), _TICK), str(sample), fill=INK, font=plan.face)
    draw.text((plan.wide - plan.face.getlength(said), _TICK), said, fill=INK, font=plan.face)
    return made


def _step(length: int, most: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, … that cuts `length` into at most `most` parts."""
    power = 1
    while True:
        for step in (power, 2 * power, 5 * power):
            if length <= step * most:
                return step
        power *= 10
