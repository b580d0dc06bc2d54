"""What people see: rows, lines and bars for the terminal. Standard output has the answers, standard error the rest."""

import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from camlucida.files import printable

Record: TypeAlias = Mapping[str, Any]
"""What is known of one picture, as `--json` prints it."""

FEW = 4  # pictures that get a table each


def out() -> Console:
    """Standard output, as it is now."""
    return Console(highlight=False, emoji=False, markup=False)


def err() -> Console:
    """Standard error, as it is now."""
    return Console(stderr=True, highlight=False, emoji=False, markup=False)


def safe(text: str) -> str:
    """One line, safe for any terminal."""
    return printable(" ".join(text.split()))


def error(message: str, problem: BaseException | None = None) -> None:
    """One line on standard error, after the traceback of ``problem`` where there is one."""
    if problem is not None:
        sys.stderr.write("".join(map(_visible, traceback.format_exception(problem))))
    line(Text.assemble(("error: ", "bold red"), safe(message)), err())


def _visible(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def note(message: str) -> None:
    """One quiet line on standard error."""
    line(Text(safe(message), "dim"), err())


def line(text: Text, where: Console) -> None:
    """One line, never broken by us: the terminal breaks it, and a file gets it whole."""
    where.print(text, soft_wrap=True)


def as_json(value: object) -> None:
    """One line of JSON, in ASCII, so that any name and any terminal will do."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
    sys.stdout.flush()


def percent(probability: float | None) -> str:
    """A share for people: 45%, 0.3%, or nothing where it is not known.

    >>> percent(0.4512), percent(0.0031), percent(None)
    ('45%', '0.31%', '')
    """
    if probability is None:
        return ""
    if 0 < probability < 1e-4:
        return "<0.01%"
    return f"{probability:.0%}" if probability >= 0.01 or probability == 0 else f"{100 * probability:.2g}%"


def table(*columns: str, right: Sequence[str] = (), cut: Sequence[str] = ()) -> Table:
    """A quiet table with these columns; where it is too wide those of ``cut`` are shortened first, names never."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        side: Literal["left", "right"] = "right" if column in right else "left"
        kept = None if i == 0 or column in cut else len(column)
        made.add_column(column, justify=side, overflow="ellipsis" if column in cut else "fold", min_width=kept)
    return made


# ------------------------------------------------------------------------------------------------- pictures explained


def answer(record: Record, many: bool) -> None:
    """One picture: a table of its predictions and a line for each map; of many pictures, a line for each."""
    where = out()
    if many:
        return line(Text.assemble((f"{safe(record['picture'])}: ", "bold"), _short(record)), where)
    where.print(Text(safe(record["picture"]), "bold"), soft_wrap=True)
    if record["predictions"]:
        where.print(_predictions(record["predictions"]))
    if record["confident"] is False:
        line(Text("  low confidence: perhaps none of the model's classes", "bold yellow"), where)
    files = record["outputs"]
    apart = len(files) == len(record["explanations"])
    for i, found in enumerate(record["explanations"]):
        line(Text.assemble("  ", _map(found), f" → {safe(files[i])}" if apart else ""), where)
    for file in () if apart else files:
        line(Text(f"  → {safe(file)}"), where)
    where.print()


def _predictions(rows: Sequence[Record]) -> Table:
    made = table("class", "label", "probability", right=("class", "probability"))
    for row in rows:
        made.add_row(str(row["class"]), Text(safe(row["label"] or "")), percent(row["probability"]))
    return made


def _map(found: Record) -> Text:
    score = "not finite" if found["score"] is None else f"{found['score']:.3g}"
    sure = percent(found["probability"]) or f"score {score}"
    words = f"{safe(found['label'])} {sure} · {found['title']} · {found['layer']} · "
    return Text.assemble(words, (found["status"], "green" if found["status"] == "ok" else "bold yellow"))


def _doubt(record: Record) -> tuple[str, str]:
    return ("low confidence · " if record["confident"] is False else "", "bold yellow")


def _short(record: Record) -> Text:
    found, files = record["explanations"], record["outputs"]
    more = f" (+{len(files) - 1})" if len(files) > 1 else ""
    end = f" → {safe(files[0])}{more}"
    if len(found) == 1:
        return Text.assemble(_doubt(record), _map(found[0]), end)
    blank = [f["status"] for f in found if f["status"] != "ok"]
    why = ", ".join(sorted(set(blank)))
    state = (f"{len(blank)} blank ({why})", "bold yellow") if blank else ("all ok", "green")
    first = next(iter(record["predictions"]), None)
    best = f"{safe(first['label'] or str(first['class']))} {percent(first['probability'])} · " if first else ""
    return Text.assemble(_doubt(record), best, f"{len(found)} maps · ", state, end)


@contextmanager
def progress(total: int, wanted: bool) -> Iterator[Any]:
    """A bar on standard error, where that is a terminal: yields what to call after each picture."""
    where = err()
    if not (wanted and where.is_terminal):
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("explaining"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # lines of standard output go round the bar only where both share a terminal; else they would land on the wrong one
    with Progress(*columns, console=where, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("explaining", total=total)
        yield lambda: bar.advance(task)
