"""The commands and their options; what they do waits in other files, for `--help` must not wait for torch.

Exit status: 0 done · 1 some pictures failed · 2 the question makes no sense · 70 a bug in camlucida · 130 interrupted.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from camlucida.cli import screen
from camlucida.errors import CamlucidaError, ModelError
from camlucida.version import __version__

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


class Format(StrEnum):
    """What is written for a picture."""

    panel = "panel"
    overlay = "overlay"
    npz = "npz"
    safetensors = "safetensors"


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"camlucida {__version__}")
        raise typer.Exit
    return asked


_Model = Annotated[str, typer.Option("--model", "-m", help="timm/NAME, or your own: FILE.py:CALLABLE, MODULE:CALLABLE")]
_Weights = Annotated[str | None, typer.Option(help="a .safetensors or .pth file for the model; or: random")]
_Partial = Annotated[bool, typer.Option("--partial", help="go on where the weights fit only in part")]
_Device = Annotated[str | None, typer.Option(help="where to compute: cpu, cuda, cuda:1, mps")]
_Json = Annotated[bool, typer.Option("--json", help="JSON on standard output, and nothing else there")]
_Debug = Annotated[bool, typer.Option("--debug", help="show the whole traceback of an error")]


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="show it")] = False,
) -> None:
    """Where in a picture a vision model's evidence lies."""


@contextmanager
def _told(debug: bool) -> Iterator[None]:
    """Any error as one line and an exit status; the traceback only where it was asked for."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        screen.error("interrupted")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        raise  # whoever read our output has gone: not an error, and typer ends quietly
    except Exception as problem:
        meant = isinstance(problem, CamlucidaError)
        screen.error(str(problem) if meant else _bug(problem), problem if debug else None)
        raise typer.Exit(2 if meant else 70) from None


def _bug(problem: Exception) -> str:
    return f"this is a bug in camlucida: {type(problem).__name__}: {problem} (please report it, with --debug)"


def _run(debug: bool, work: Callable[[], int]) -> None:
    with _told(debug):
        raise typer.Exit(work())


def _named(model: str) -> str:
    if not model:
        raise ModelError("which model? Pass --model timm/NAME, or --model FILE.py:CALLABLE for your own.")
    return model


@app.command(short_help="show where the evidence lies in pictures")
def explain(  # noqa: PLR0913
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE", help="pictures, or folders of pictures")],
    model: _Model = "",
    weights: _Weights = None,
    target: Annotated[list[str] | None, typer.Option(help="classes: 281 or 281,285 or a label's name")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="each picture's own K best classes")] = None,
    method: Annotated[str, typer.Option(help="one or more of `camlucida methods`: gradcam,layercam")] = "gradcam",
    layer: Annotated[str | None, typer.Option(help="one of `camlucida layers`; found by itself if not given")] = None,
    score: Annotated[
        str, typer.Option(help="logit, probability, log_probability, margin or logit_minus_mean")
    ] = "logit",
    out: Annotated[Path, typer.Option("--out", "-o", help="the folder to write to")] = Path("camlucida-out"),
    format: Annotated[Format, typer.Option(help="what to write")] = Format.panel,
    device: _Device = None,
    partial: _Partial = False,
    json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Explain pictures: where the evidence for the model's answer lies, as a picture or a file of numbers."""

    def work() -> int:
        name = _named(model)
        from camlucida.cli import run
        from camlucida.cli.asked import Asked

        what = Asked(tuple(target or ()), top, method, layer, score)
        job = run.plan(pictures, what, out, format.value)
        return run.run(job, run.loading(name, weights, device, partial), json)

    _run(debug, work)


@app.command(short_help="list the layers of a model, and the one that is chosen")
def layers(  # noqa: PLR0913
    place: Annotated[str, typer.Argument(metavar="[MODEL]", help="as --model")] = "",
    model: _Model = "",
    weights: _Weights = None,
    size: Annotated[int | None, typer.Option(min=1, help="side of the input in pixels; else the model's own")] = None,
    all: Annotated[bool, typer.Option("--all", help="every layer with space, not only those worth a map")] = False,
    partial: _Partial = False,
    json: _Json = False,
    debug: _Debug = False,
) -> None:
    """List the layers of a model that a map can be read at, and the one that is chosen if none is named."""

    def work() -> int:
        if place and model:
            raise ModelError("two models: name one, either by itself or with --model.")
        name = _named(place or model)
        from camlucida.cli import run, tables

        return tables.layers(run.loading(name, weights, None, partial)(), size, all, json)

    _run(debug, work)


@app.command(short_help="list the methods: formula, paper, needs, cost")
def methods(json: _Json = False, debug: _Debug = False) -> None:
    """List the methods: formula, paper, what each needs and costs."""

    def work() -> int:
        from camlucida.cli import tables

        return tables.methods(json)

    _run(debug, work)
