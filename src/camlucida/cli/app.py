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


class Fit(StrEnum):
    """How a picture is made to fit the net's square."""

    squash = "squash"
    crop = "crop"
    letterbox = "letterbox"


class Format(StrEnum):
    """What is written for a picture."""

    panel = "panel"
    grid = "grid"
    overlay = "overlay"
    npz = "npz"
    safetensors = "safetensors"
    nifti = "nifti"
    gif = "gif"
    mp4 = "mp4"


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"camlucida {__version__}")
        raise typer.Exit
    return asked


_Model = Annotated[
    str, typer.Option("--model", "-m", help="one of `camlucida models`, file:PATH, or your own FILE.py:CALLABLE")
]
_Weights = Annotated[str | None, typer.Option(help="a .safetensors or .pth file for the model; or: random")]
_Partial = Annotated[bool, typer.Option("--partial", help="go on where the weights fit only in part")]
_Prompts = Annotated[list[str] | None, typer.Option("--prompt", help="a text as a class: clip/, open_clip/")]
_Device = Annotated[str | None, typer.Option(help="where to compute: cpu, cuda, cuda:1, mps")]
_Place = Annotated[str, typer.Argument(help="a folder of class folders, or a CSV with columns file, class, split")]
_Split = Annotated[str, typer.Option(help="only the rows, or the folder, of this split: train, test, …")]
_Whole = Annotated[int | None, typer.Option(min=0)]
_Real = Annotated[float | None, typer.Option(min=0)]
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
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE", help="pictures, videos, volumes; folders")],
    model: _Model = "",
    weights: _Weights = None,
    prompt: _Prompts = None,
    target: Annotated[list[str] | None, typer.Option(help="classes: 281 or 281,285 or a label's name")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="each picture's own K best classes")] = None,
    method: Annotated[str, typer.Option(help="one or more of `camlucida methods`: gradcam,layercam")] = "gradcam",
    layer: Annotated[str | None, typer.Option(help="one of `camlucida layers`; found by itself if not given")] = None,
    score: Annotated[
        str, typer.Option(help="logit, probability, log_probability, margin or logit_minus_mean")
    ] = "logit",
    output: Annotated[str | None, typer.Option(help="which part of the model's answer: a key or place")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="the folder to write to")] = Path("camlucida-out"),
    format: Annotated[Format | None, typer.Option(help="what to write (grid for several methods, else panel)")] = None,
    device: _Device = None,
    partial: _Partial = False,
    json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Explain pictures: where the evidence for the model's answer lies, as a picture or a file of numbers."""

    def work() -> int:
        from camlucida.cli import run
        from camlucida.cli.asked import Asked

        name = model or run.default()
        what = Asked(tuple(target or ()), top, method, layer, score, output)
        job = run.plan(pictures, what, out, format and format.value)
        return run.run(job, run.loading(name, weights, device, partial, prompt), json)

    _run(debug, work)


@app.command(short_help="train a net on your own pictures")
def train(  # noqa: PLR0913
    place: _Place,
    out: Annotated[Path, typer.Option("--out", "-o", help="the folder for the model, its card and history")],
    model: Annotated[str, typer.Option(help="small_gap, nin_cifar, timm/NAME or FILE.py:CALLABLE")] = "small_gap",
    option: Annotated[list[str] | None, typer.Option(help="of the net, as in width=1.25")] = None,
    weights: Annotated[str | None, typer.Option(help="a file of weights to begin with; or: random")] = None,
    split: _Split = "",
    size: Annotated[int | None, typer.Option(min=8, help="side of the net's pictures in pixels (128)")] = None,
    fit: Annotated[Fit | None, typer.Option(help="how pictures are made square (squash)")] = None,
    train_size: Annotated[int | None, typer.Option(help="side of the views in training (7/8 of --size)")] = None,
    epochs: Annotated[int | None, typer.Option(help="how often all pictures are seen (60)")] = None,
    until: Annotated[
        int | None, typer.Option(min=1, help="end after so many of the epochs, as if there were more")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="pictures of a step (64)")] = None,
    lr: Annotated[float | None, typer.Option(help="highest rate of learning (0.002)")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or sgd")] = None,
    weight_decay: _Real = None,
    warmup: Annotated[float | None, typer.Option(help="share of all steps in which the rate rises (0.05)")] = None,
    trunk: Annotated[float | None, typer.Option(help="rate of what comes before the head, times --lr (1)")] = None,
    smoothing: Annotated[float | None, typer.Option(help="share of a target spread over all classes (0.1)")] = None,
    balance: Annotated[float | None, typer.Option(help="0: pictures count the same; 1: classes do (0)")] = None,
    average: Annotated[float | None, typer.Option(help="decay of the average of the weights (0.998)")] = None,
    patience: Annotated[int | None, typer.Option(help="stop after so many epochs without a better one (0: no)")] = None,
    hold_out: Annotated[float, typer.Option(help="share of each class's pictures to judge by")] = 0.1,
    seed: _Whole = None,
    recipe: Annotated[Path | None, typer.Option(help="all of these numbers, and those of the views, as JSON")] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="train the head alone")] = False,
    half: Annotated[bool, typer.Option("--half", help="keep the weights in 16 bits")] = False,
    device: _Device = None,
    threads: Annotated[int | None, typer.Option(min=1, help="of the processor; the bits depend on them")] = None,
    origin: Annotated[str, typer.Option(help="where the pictures come from, for the card")] = "",
    licence: Annotated[str, typer.Option(help="of the model, for the card")] = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="begin anew, whatever --out holds")] = False,
    json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Train a net on your own pictures. Killed, the same command takes the run up again, with the same bits."""
    numbers = {
        "size": train_size, "epochs": epochs, "batch": batch, "lr": lr, "optimizer": optimizer, "warmup": warmup,
        "weight_decay": weight_decay, "trunk": trunk, "smoothing": smoothing, "balance": balance, "average": average,
        "patience": patience, "seed": seed,
    }  # fmt: skip

    def work() -> int:
        from camlucida.cli import begin
        from camlucida.cli import train as training

        wanted = begin.Wanted(
            place, out, model, tuple(option or ()), weights, split, size, fit and fit.value, hold_out, numbers, recipe,
            freeze, half, device, origin, licence, fresh, until,
        )  # fmt: skip
        return training.run(wanted, threads, json)

    _run(debug, work)


@app.command(short_help="tell how good a model is, class by class")
def evaluate(  # noqa: PLR0913
    place: _Place,
    model: _Model = "",
    weights: _Weights = None,
    prompt: _Prompts = None,
    split: _Split = "",
    device: _Device = None,
    partial: _Partial = False,
    json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Tell how good a model is on pictures whose classes are known, and what it takes for what."""

    def work() -> int:
        name = _named(model)
        from camlucida.cli import evaluate as judging
        from camlucida.cli import run

        return judging.run(run.loading(name, weights, device, partial, prompt)(), place, split, json)

    _run(debug, work)


@app.command(short_help="list the layers of a model, and the one that is chosen")
def layers(  # noqa: PLR0913
    place: Annotated[str, typer.Argument(metavar="[MODEL]", help="as --model")] = "",
    model: _Model = "",
    weights: _Weights = None,
    prompt: _Prompts = None,
    size: Annotated[str | None, typer.Option(help="the input's side, or all sizes: 6x64x64; else its own")] = None,
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

        return tables.layers(run.loading(name, weights, None, partial, prompt)(), size, all, json)

    _run(debug, work)


@app.command(short_help="list the models that can be named")
def models(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help="a part of a name, or one with *: 'timm/*vit*'")
    ] = "",
    json: _Json = False,
    debug: _Debug = False,
) -> None:
    """List the models that --model can name, from every source that is installed; those that fit a pattern."""

    def work() -> int:
        from camlucida.cli import tables

        return tables.models(pattern, json)

    _run(debug, work)


@app.command(short_help="list the methods, or tell all of some")
def methods(
    names: Annotated[str, typer.Argument(metavar="[NAME,…]", help="tell all of these")] = "",
    json: _Json = False,
    debug: _Debug = False,
) -> None:
    """List the methods: what each needs and costs; of those named formula, paper, options and limits, too."""

    def work() -> int:
        from camlucida.cli import tables

        return tables.methods(names, json)

    _run(debug, work)
