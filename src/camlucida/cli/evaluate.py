"""How good a model is on pictures whose classes are known, class by class, and what it takes for what."""

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from camlucida.cli import blame, screen
from camlucida.errors import ModelError
from camlucida.gap.data import Table, read_table
from camlucida.gap.evaluate import Evaluation
from camlucida.gap.evaluate import evaluate as evaluated
from camlucida.models import Model

_CONFUSIONS = 10
_EMPTY = 10  # classes without pictures that are shown; more would hide the others
_SHOWN = 5  # pictures that cannot be read, by name


def run(model: Model, place: str, split: str, as_json: bool) -> int:
    """Judge a model by the pictures of a folder or a table; the exit status. Raises: CamlucidaError."""
    table = read_table(place, split, model.labels)
    with blame.of_model("on these pictures"):
        found = evaluated(model, table, model.preprocess)
    if (count := found.logits.shape[1]) != len(table.classes):
        names = f"names for {len(model.labels)}" if model.labels else "no names for them"
        raise ModelError(
            f"the model has {count} classes and {names}; the pictures have {len(table.classes)}: they cannot be told "
            "apart by order."
        )
    told = record(model, table, found)
    if as_json:
        screen.as_json(told)
    else:
        _show(told)
    for fault in found.faults[:_SHOWN]:
        screen.error(fault)
    if found.faults:
        screen.note(f"{len(found.faults)} pictures cannot be read and are left out")
    return 1 if found.faults else 0


def record(model: Model, table: Table, found: Evaluation) -> dict[str, Any]:
    """Everything that is known, in the types of JSON."""
    rows = zip(table.classes, found.counts.tolist(), found.per_class.tolist(), strict=True)
    return {
        "model": model.name,
        "pictures": len(found.known),
        "top1": _number(found.top1),
        "mean_per_class": _number(found.mean_per_class),
        "calibration_error": _number(found.calibration_error),
        "classes": [{"class": c, "pictures": n, "right": _number(right)} for c, n, right in rows],
        "confusions": confusions(table.classes, found),
        "low_confidence": _low(found.known, model.confident),
        "none_of_these": {"pictures": len(found.other), "low_confidence": _low(found.other, model.confident)},
        "left_out": len(found.faults),
    }


def confusions(classes: tuple[str, ...], found: Evaluation) -> list[dict[str, Any]]:
    """The classes most often taken for another one, most frequent first.

    >>> import torch
    >>> confusions(("cat", "dog"), Evaluation(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])))
    [{'class': 'dog', 'taken_for': 'cat', 'pictures': 1}]
    """
    most = found.mistaken[:_CONFUSIONS].tolist()
    return [{"class": classes[i], "taken_for": classes[j], "pictures": n} for i, j, n in most]


def _low(found: Evaluation, least: float | None) -> float | None:
    """The share of pictures whose best class is less probable than the model's card calls confident."""
    if least is None or not len(found):
        return None
    return float((found.confidence < least).double().mean())


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _show(told: dict[str, Any]) -> None:
    where = screen.out()
    if told["pictures"]:
        _show_classes(told["classes"], where)
    if told["confusions"]:
        made = screen.table("class", "taken for", "pictures", right=("pictures",))
        for row in told["confusions"]:
            made.add_row(*(Text(screen.safe(row[k])) for k in ("class", "taken_for")), str(row["pictures"]))
        where.print(made)
    if told["pictures"]:
        right, mean, gap = (screen.percent(told[k]) for k in ("top1", "mean_per_class", "calibration_error"))
        words = f"{right} of {told['pictures']} pictures right · mean of the classes {mean} · calibration error {gap}"
        screen.line(Text(words, "bold"), where)
    if told["low_confidence"] is not None:
        screen.line(Text(f"low confidence: {screen.percent(told['low_confidence'])} of these pictures"), where)
    _show_others(told["none_of_these"], where)


def _show_classes(rows: Sequence[dict[str, Any]], where: Console) -> None:
    empty = sum(not row["pictures"] for row in rows)
    made = screen.table("class", "pictures", "right", right=("pictures", "right"))
    for row in rows:
        if row["pictures"] or empty <= _EMPTY:
            made.add_row(Text(screen.safe(row["class"])), str(row["pictures"]), screen.percent(row["right"]))
    where.print(made)
    if empty > _EMPTY:
        screen.note(f"{empty:,} classes have no picture here")


def _show_others(others: dict[str, Any], where: Console) -> None:
    if not others["pictures"]:
        return
    known = others["low_confidence"] is not None
    share = f"{screen.percent(others['low_confidence'])} of" if known else "not known of this model, for"
    screen.line(Text(f"low confidence: {share} {others['pictures']} pictures of none of the classes"), where)
