"""Explain many pictures with one model: one `sweep` a picture, one bad picture no reason to stop."""

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camlucida.cli import asked, blame, screen, write
from camlucida.cli.asked import Asked
from camlucida.core.explain import sweep
from camlucida.core.explanation import Explanation
from camlucida.core.originals import Original
from camlucida.core.prepare import opened
from camlucida.core.targets import ClassTarget
from camlucida.errors import AbsentError, CamlucidaError, ModelError, OutputError, PictureError
from camlucida.images import Picture
from camlucida.models import Model, builtin_source, load
from camlucida.registry import Method

_PREDICTIONS = 5


@dataclass(frozen=True)
class Job:
    """What is known before the model is loaded."""

    sources: tuple[str, ...]
    asked: Asked
    methods: tuple[Method, ...]
    folder: Path
    form: str


@dataclass(frozen=True)
class _Question:
    """One question, asked of every picture."""

    model: Model
    targets: Sequence[ClassTarget]
    methods: Sequence[Method]
    layer: str | int | None
    output: str | int | None = None


def plan(places: Sequence[str], words: Asked, folder: Path, form: str | None = None) -> Job:
    """Everything that can be wrong without a model is found here. Raises: CamlucidaError."""
    asked.check(words)
    methods = tuple(asked.methods(words.methods))
    write.check_folder(folder)
    sources = tuple(asked.pictures(places))
    form = form or ("grid" if len(methods) > 1 else "panel")
    if form in write.PAGES:  # one file a picture, whatever the targets will be
        write.plan(sources, [""], form, folder)
    return Job(sources, words, methods, folder, form)


def default() -> str:
    """The built-in model, where none is named. Raises: ModelError where it is not there."""
    if not builtin_source.place().there:
        raise ModelError("which model? Pass --model timm/NAME, or --model FILE.py:CALLABLE for your own.")
    screen.note("no --model was named: the built-in one is asked")
    return builtin_source.FORM


def loading(
    name: str, weights: str | None, device: str | None, partial: bool, prompts: Sequence[str] | None = None
) -> Callable[[], Model]:
    """The model, when its turn comes; what was done to it is told."""

    def now() -> Model:
        model = load(name, weights, device=device, partial=partial, prompts=prompts or ())
        for text in model.notes:
            screen.note(f"{model.name}: {text}")
        return model

    return now


def run(job: Job, model: Callable[[], Model], as_json: bool) -> int:
    """Explain every picture of the job; the exit status. Raises: CamlucidaError where no picture can work."""
    question = _question(job, model())
    tags = [f"{asked.tag(t)}-{m.name}" for t in question.targets for m in question.methods]
    outputs = write.plan(job.sources, tags, job.form, job.folder)
    many = len(job.sources) > screen.FEW
    tally = _Tally(len(job.sources))
    try:
        with screen.progress(tally.total, many and not (as_json and sys.stdout.isatty())) as step:
            for i, source in enumerate(job.sources):
                _one(question, outputs, (i, source), tally, lambda record: _say(record, many, as_json))
                step()
    except KeyboardInterrupt:
        screen.error(f"interrupted: {tally}")
        return 130
    except _Full as stop:
        screen.error(f"{stop} ({tally})")
        return 1
    if many and not as_json:
        screen.note(str(tally))
    return 1 if tally.failed else 0


def _question(job: Job, model: Model) -> _Question:
    targets = asked.wanted(job.asked, model.labels)
    return _Question(
        model, targets, job.methods, asked.layer(model.net, job.asked.layer), asked.output(job.asked.output)
    )


@dataclass
class _Tally:
    total: int
    done: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return f"{self.done} of {self.total} done" + (f", {self.failed} failed" if self.failed else "")


class _Full(Exception):
    """Results can no longer be written: to go on would be in vain."""


def _one(
    question: _Question,
    outputs: write.Outputs,
    numbered: tuple[int, str],
    tally: _Tally,
    say: Callable[[dict[str, Any]], None],
) -> None:
    """One picture: explained, written, told; or told why not."""
    i, source = numbered
    try:
        picture = opened(question.model.net, source, question.model.preprocess)
        found = _ask(question, picture)
        record = _record(question.model, (source, picture), found, outputs.save(i, found))
    except OutputError as problem:
        if not tally.done:
            raise
        raise _Full(str(problem)) from problem
    except CamlucidaError as problem:
        if not (tally.done or isinstance(problem, PictureError | AbsentError)):
            raise  # layer, target or model: it would be the same for every picture, and nothing is written yet
        tally.failed += 1
        return say({"picture": source, "error": screen.safe(str(problem))})
    tally.done += 1
    say(record)


def _ask(question: _Question, picture: Picture | Original) -> list[Explanation]:
    q = question
    with blame.of_model(f"on {picture.name}"):
        return sweep(q.model, picture, targets=q.targets, methods=q.methods, layers=[q.layer], output=q.output)


# ------------------------------------------------------------------------------------------------------ what is told


def _say(record: dict[str, Any], many: bool, as_json: bool) -> None:
    if "error" in record:
        screen.error(f"{record['picture']}: {record['error']}" if _nameless(record) else record["error"])
    if as_json:
        return screen.as_json(record)
    if "error" not in record:
        screen.answer(record, many)


def _nameless(record: dict[str, Any]) -> bool:
    return screen.safe(os.path.basename(record["picture"])) not in record["error"]


def _record(
    model: Model, asked_of: tuple[str, Picture | Original], found: Sequence[Explanation], files: Sequence[str]
) -> dict[str, Any]:
    """Everything known of one picture, in the types of JSON."""
    source, picture = asked_of
    return {
        "picture": source,
        "model": model.name,
        "notes": [*model.notes, *picture.notes],
        "outputs": list(files),
        "predictions": _predictions(found[0]),
        "confident": found[0].confident(),
        "explanations": [_facts(e) for e in found],
    }


def _predictions(e: Explanation) -> list[dict[str, Any]]:
    if e.probabilities is None or not bool(e.probabilities.isfinite().all()):
        return []
    best = e.probabilities[0].topk(min(_PREDICTIONS, e.probabilities.shape[1]))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [{"class": i, "label": _label(e.labels, i), "probability": p} for i, p in pairs]


def _label(labels: Sequence[str], i: int) -> str | None:
    return labels[i] if i < len(labels) else None


def _facts(e: Explanation) -> dict[str, Any]:
    return {
        "target": e.facts.target,
        "class": None if e.classes is None else int(e.classes[0]),
        "label": e.label(),
        "score": _number(float(e.scores[0])),
        "probability": _number(e.probability()),
        "method": e.method,
        "title": e.facts.title,
        "layer": e.layer,
        "layout": e.facts.layout,
        "status": e.statuses[0],
        "cost": _number(e.cost),
    }


def _number(value: float | None) -> float | None:
    """JSON knows no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None
