"""Train a net on a folder or a table of pictures; the model, its card and its history in one folder."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch import nn

from camlucida.cli import begin, blame, screen, write
from camlucida.cli.begin import Begun, Wanted
from camlucida.errors import OutputError
from camlucida.files import printable, write_whole
from camlucida.gap.calibrate import calibrated, can_be_calibrated
from camlucida.gap.card import Card, save_model, stored
from camlucida.gap.data import Table, read_table
from camlucida.gap.evaluate import Evaluation, judge
from camlucida.gap.recipe import Recipe
from camlucida.gap.train import Row, Trained, Training, Watch
from camlucida.models import placed

_FEW = 100  # pictures, for odds worth the name
_SHOWN = 5  # pictures that cannot be read, by name


def run(wanted: Wanted, threads: int | None, as_json: bool) -> int:
    """Train, or take the run up; the exit status. Raises: CamlucidaError."""
    told = begin.numbers(wanted)
    _check_place(wanted)
    if threads:
        torch.set_num_threads(threads)
    table = read_table(wanted.place, wanted.split)
    start = begin.begun(wanted, len(table.classes), int(told.get("seed", 0)))
    Card(wanted.model, start.options, table.classes, start.look)  # what no card can tell is told before the work
    recipe = Recipe.from_dict({"size": max(8, round(0.875 * min(start.look.size)))} | told)
    pictures, held = table.hold_out(wanted.hold_out, recipe.seed)
    job = Training(placed(start.net, wanted.device), pictures, held if len(held) else None, start.look, recipe)
    _tell(start.notes, job.faults)
    if wanted.fresh:
        wanted.checkpoint.unlink(missing_ok=True)  # not before all is ready: a slip of the pen must cost no run
    if wanted.checkpoint.exists():
        job.load(wanted.checkpoint)
        screen.note(f"taken up after epoch {len(job.history)} of {recipe.epochs}")
    try:
        _learn(job, wanted.checkpoint, wanted.until or recipe.epochs)
    except KeyboardInterrupt:
        go_on = "the same command without --fresh goes on" if wanted.fresh else "the same command goes on"
        screen.error(f"interrupted: {len(job.history)} of {recipe.epochs} epochs are done; {go_on}.")
        return 130
    _finish(wanted, job, start, table, as_json)
    return 0


def _check_place(wanted: Wanted) -> None:
    write.check_folder(wanted.folder)
    if wanted.file.exists() and not (wanted.fresh or wanted.checkpoint.exists()):
        raise OutputError(
            f"'{printable(str(wanted.file))}' is there already: --fresh trains it anew, or another --out."
        )


def _tell(notes: Sequence[str], faults: Sequence[str]) -> None:
    for note in (*notes, *faults[:_SHOWN]):
        screen.note(note)
    if faults:
        screen.note(f"{len(faults)} pictures cannot be read and are left out")


# ----------------------------------------------------------------------------------------------------------- the run


def _learn(job: Training, checkpoint: Path, until: int) -> None:
    with _watching(job) as watch:
        while not job.done and len(job.history) < until:
            with blame.of_model("in training"):
                job.epoch(watch)
            job.save(checkpoint)


@contextmanager
def _watching(job: Training) -> Iterator[Watch]:
    """A bar where standard error is a terminal, a line an epoch where it is not."""
    where = screen.err()
    if not where.is_terminal:
        yield lambda _step, _steps, row=None: screen.note(_epoch(row, job.recipe.epochs)) if row else None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=where, transient=True) as bar:
        task = bar.add_task("training", total=job.recipe.epochs * job.steps)

        def watch(step: int, steps: int, row: Row | None = None) -> None:
            if row is None:
                bar.update(task, completed=len(job.history) * steps + step)
            else:
                bar.update(task, description=_epoch(row, job.recipe.epochs))

        yield watch


def _epoch(row: Row, epochs: int) -> str:
    right = f", {screen.percent(row['held_accuracy'])} of the held-out right" if "held_accuracy" in row else ""
    return f"epoch {row['epoch']:.0f}/{epochs}: loss {row['loss']:.3f}{right}, {row['seconds']:.1f} s"


# ------------------------------------------------------------------------------------------------------- what is left


def _finish(wanted: Wanted, job: Training, start: Begun, table: Table, as_json: bool) -> None:
    net, card = _carded(wanted, job, start, table)
    _write_text(wanted.folder / "history.csv", _history(job.history))
    _write_text(wanted.folder / "model.md", card.markdown())
    save_model(wanted.file, net, card, wanted.half)
    if job.done:  # where --until ended it, the run can go on
        wanted.checkpoint.unlink(missing_ok=True)
    if as_json:
        told = json.loads(card.as_json())
        kept = {k: told[k] for k in ("accuracy", "temperature", "confident", "classes", "notes")}
        return screen.as_json({"model": str(wanted.file), "epochs": len(job.history), **kept})
    a, where = card.accuracy, screen.out()
    if a:
        right, mean, gap = (screen.percent(a[k]) for k in ("top1", "mean_per_class", "calibration_error"))
        screen.line(Text(f"{right} of {a['on']} right · mean of the classes {mean} · calibration error {gap}"), where)
    screen.line(Text(f"→ {screen.safe(str(wanted.file))} (camlucida explain … --model file:PATH)"), where)


def _carded(wanted: Wanted, job: Training, start: Begun, table: Table) -> tuple[nn.Module, Card]:
    """The net as it will be in its file, its odds made honest, and what is known of it."""
    net, temperature, notes = _honest(job.result())
    net.load_state_dict({k: stored(v, wanted.half).to(v.device, v.dtype) for k, v in net.state_dict().items()})
    found = judge(net, job.held) if job.held else None
    card = Card(
        wanted.model,
        start.options,
        table.classes,
        start.look,
        recipe=job.recipe.as_dict(),
        accuracy=accuracy(found, table.classes, f"{len(found.known)} pictures held out") if found else {},
        temperature=temperature,
        confident=found.reached() if found else None,
        origin=wanted.origin,
        licence=wanted.licence,
        notes=notes,
    )
    return net, card


def _honest(done: Trained) -> tuple[nn.Module, float, tuple[str, ...]]:
    """The net with its odds made honest where that can be done, the temperature, and what should be said of it."""
    if done.held is None:
        return done.net, 1.0, ("not calibrated: no pictures were held out",)
    if not can_be_calibrated(done.net):
        return done.net, 1.0, ("not calibrated: the net does not end in a linear head after a global average",)
    temperature, count = done.held.temperature(), len(done.held.known)
    few = (f"calibrated on {count} pictures only: its odds are rough",) if count < _FEW else ()
    return calibrated(done.net, temperature), temperature, few


def accuracy(found: Evaluation, classes: Sequence[str], on: str) -> dict[str, Any]:
    """What a card tells of an evaluation."""
    each = dict(zip(classes, found.per_class.tolist(), strict=True))
    told = {"top1": found.top1, "mean_per_class": found.mean_per_class, "calibration_error": found.calibration_error}
    return {**told, "per_class": each, "pictures": len(found.known), "on": on}


def _history(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda file: _put(file, text))


def _put(file: Any, text: str) -> None:
    file.write(text.encode())
