"""Training a net on pictures: a loop that gives the same bits again, also after it was killed.

Every random number of an epoch comes from its seed and number alone, and the state after an epoch is written whole
(`Training.save`), so that a run that is taken up goes on as if nothing had happened. Same bits on the same machine
with the same number of threads; a GPU's convolutions have no such promise.
"""

import copy
import hashlib
import io
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, TypedDict, Unpack, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from camlucida.core.targets import logits as class_scores
from camlucida.errors import InputError, ModelError, OutputError
from camlucida.files import printable, write_whole
from camlucida.frame import Preprocess
from camlucida.gap import augment
from camlucida.gap.data import OTHER, Shelf, Table
from camlucida.gap.evaluate import Evaluation, Inputs, judge, prepared
from camlucida.gap.recipe import Recipe
from camlucida.gap.state import State, batches, rate

Row: TypeAlias = dict[str, float]
"""What is known after an epoch: epoch, loss, accuracy and loss on the held-out pictures, lr, seconds."""

Views: TypeAlias = Callable[[Tensor], Tensor]
"""From a picture, 8-bit ``c h w``, to one random view of it, ``c size size`` in [0, 1]."""


@runtime_checkable
class Watch(Protocol):
    """Told of every step: how many of how many, and after an epoch what came of it."""

    def __call__(self, step: int, steps: int, row: Row | None = None) -> None: ...


class Also(TypedDict, total=False):
    """What `train` can be given beside: see there."""

    checkpoint: str | os.PathLike[str] | None
    watch: Watch | None
    views: Views | None


@final
@dataclass
class Trained:
    """A trained net, in evaluation mode, with the history of its training and what it does on the held-out pictures.

    ``faults`` are the pictures that could not be read and were left out.
    """

    net: nn.Module
    history: list[Row]
    held: Evaluation | None
    faults: tuple[str, ...] = ()


def train(
    net: nn.Module,
    pictures: Table,
    held: Table | None = None,
    *,
    preprocess: Preprocess,
    recipe: Recipe | None = None,
    **also: Unpack[Also],
) -> Trained:
    """Train a net on the pictures of a table, on the device where it is; the net passed in is not changed.

    The weights kept are the moving average after the last epoch or, where ``patience`` ended the run, after the epoch
    that was best on ``held``. Mixed precision on a GPU. ``also``: where ``checkpoint``, a file, exists the run is taken
    up from it; ``watch`` is told of every step (`Watch`); ``views`` makes the random views in place of `augment.view`,
    from a picture (8-bit, ``c h w``) to floats ``c size size`` in [0, 1], with random numbers of torch's own generator,
    which is seeded for it: torchvision's v2 transforms will do.

    Raises: InputError where there is nothing to learn from; ModelError where the net does not fit the pictures or the
    loss is no number any more; OutputError where the checkpoint cannot be written, or is of another run.
    """
    recipe = recipe or Recipe()
    job = Training(copy.deepcopy(net), pictures, held, preprocess, recipe)
    job.views = also.get("views")
    place = Path(told) if (told := also.get("checkpoint")) is not None else None
    if place and place.exists():
        job.load(place)
    while not job.done:
        job.epoch(also.get("watch"))
        if place:
            job.save(place)
    return job.result()


@final
class Training:
    """A run between two epochs: the state of the net, and the history."""

    views: Views | None = None

    def __init__(
        self, net: nn.Module, pictures: Table, held: Table | None, preprocess: Preprocess, recipe: Recipe
    ) -> None:
        self.recipe, self.preprocess = recipe, preprocess
        self.shelf = Shelf(pictures.files, round(1.25 * recipe.size), preprocess.channels)
        rows = self.shelf.sound()
        if len(rows) < 2 or len({pictures.targets[i] for i in rows} - {OTHER}) < 2:
            why = f" ({next(iter(self.shelf.faults.values()))})" if self.shelf.faults else ""
            raise InputError(
                f"{len(rows)} pictures that can be read are not enough: two of different classes must be{why}."
            )
        if recipe.patience and not held:
            raise InputError("patience waits for a better epoch on pictures held out, and none are held out.")
        self.rows, self.targets = rows, torch.tensor(pictures.targets)
        self.classes = len(pictures.classes)
        told = "\0".join([*pictures.classes, "", *(Path(pictures.files[i]).name for i in rows)])
        self.names = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()
        self.held: Inputs | None = None
        faults: tuple[str, ...] = ()
        if held:
            self.held, faults = prepared(held, preprocess)
        if self.held and bool((self.held[1] == OTHER).all()):
            raise InputError("none of the pictures held out shows one of the classes: nothing could be judged by them.")
        self.faults = (*self.shelf.faults.values(), *faults)
        self.state = State(net, recipe)
        self.history: list[Row] = []
        self.best: dict[str, Tensor] = {}

    # ------------------------------------------------------------------------------------------------- the loop

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        n, b = len(self.rows), self.recipe.batch
        return n // b + (n % b > 1)

    @property
    def stale(self) -> int:
        """Epochs since the best one on the held-out pictures; of equals the latest is the best."""
        scores = [row.get("held_accuracy", 0.0) for row in self.history]
        return len(scores) - 1 - max(range(len(scores)), key=lambda i: (scores[i], i)) if scores else 0

    @property
    def stopped(self) -> bool:
        """Whether patience ended the run."""
        return bool(self.recipe.patience and self.held and self.stale >= self.recipe.patience)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return len(self.history) >= self.recipe.epochs or self.stopped

    def epoch(self, watch: Watch | None = None) -> None:
        """Every picture once (or as often as ``balance`` draws it)."""
        number, began, device = len(self.history), time.monotonic(), self.state.device
        g = Generator().manual_seed(self.recipe.seed * 1_000_003 + number)
        whole, total = self.recipe.epochs * self.steps, 0.0
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(torch.randint(2**62, (), generator=g)))  # for the net's own dropout
            for step, places in enumerate(batches(self.targets[self.rows], self.recipe, g)):
                self.state.set_rate(rate(number * self.steps + step, whole, self.recipe.warmup))
                total += self._step([self.rows[i] for i in places], g)
                if watch:
                    watch(step + 1, self.steps)
        if not all(bool(v.isfinite().all()) for v in self.state.average.module.state_dict().values()):
            raise ModelError(f"the weights are no numbers any more in epoch {number + 1}: try a smaller lr.")
        lr = self.state.optimizer.param_groups[0]["lr"]
        row = {"epoch": number + 1.0, "loss": total / self.steps, "lr": lr, **self._judged()}
        self.history.append(row | {"seconds": time.monotonic() - began})
        if self.recipe.patience and self.held and self.stale == 0:
            self.best = {k: v.clone() for k, v in self.state.average.module.state_dict().items()}
        if watch:
            watch(self.steps, self.steps, self.history[-1])

    def _judged(self) -> Row:
        if not self.held:
            return {}
        found = judge(self.state.average.module, self.held)
        return {"held_accuracy": found.top1, "held_loss": found.loss}

    def _step(self, rows: Sequence[int], g: Generator) -> float:
        x, y = self._batch(rows, g)
        half = self.state.half
        with torch.autocast(self.state.device.type, dtype=half, enabled=half is not None):
            logits = class_scores(self.state.net(x))
            if logits.shape != y.shape:
                raise ModelError(f"the net answers {tuple(logits.shape)} where {tuple(y.shape)} is asked (b k).")
            loss = F.cross_entropy(logits.float(), y)
        if not math.isfinite(value := float(loss.detach())):
            raise ModelError(f"the loss is {value} in epoch {len(self.history) + 1}: try a smaller lr.")
        self.state.step(loss)
        return value

    def _batch(self, rows: Sequence[int], g: Generator) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
        how, device = self.recipe.augment, self.state.device
        seen = self.shelf.take(rows)
        if lost := next((self.shelf.faults[i] for i in rows if i in self.shelf.faults), ""):
            raise InputError(f"a picture that could be read before training cannot be read any more: {lost}")
        x = torch.stack([self._view(p, g) for p in seen])
        x = augment.disturb(x.to(device), how, g)
        means = (self.preprocess.mean, self.preprocess.std)
        mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in means)
        target = self.targets[list(rows)]
        known = F.one_hot(target.clamp(min=0), self.classes).float()
        even, smoothing = 1 / self.classes, self.recipe.smoothing
        y = torch.where((target == OTHER)[:, None], even, (1 - smoothing) * known + smoothing * even)
        x, y = augment.mix((x - mean) / std, y.to(device), how, g)
        return x.contiguous(memory_format=torch.channels_last), y

    def _view(self, picture: Tensor, g: Generator) -> Tensor:
        size = self.recipe.size
        if self.views is None:
            return augment.view(picture, size, self.recipe.augment, g)
        seen = self.views(picture)
        asked = (self.preprocess.channels, size, size)
        if not isinstance(seen, Tensor) or not seen.is_floating_point() or seen.shape != asked:
            told = f"{seen.dtype} {tuple(seen.shape)}" if isinstance(seen, Tensor) else type(seen).__name__
            raise InputError(f"views must give floats in [0, 1] of shape {asked}; it gave {told}.")
        return seen.float()

    # ------------------------------------------------------------------------------------------------- checkpoints

    def save(self, path: Path) -> None:
        """Write the whole state, so that it is there whole or as it was before. Raises: OutputError."""
        of = {"for": self._key(), "prepared": asdict(self.preprocess)}
        told = {**self.state.told(), "history": self.history, "best": self.best, **of}
        whole = io.BytesIO()  # torch.save would hide why a file cannot be written
        torch.save(told, whole)
        write_whole(path, lambda file: _put(whole, file))

    def load(self, path: Path) -> None:
        """Take up a run. Raises: OutputError where the file is of another run, or damaged."""
        shown = f"'{printable(str(path))}'"
        try:
            told = torch.load(path, map_location=self.state.device, weights_only=True)
            same = told["for"] == self._key() and told.get("prepared") in (None, asdict(self.preprocess))
            history, best = told["history"], told["best"]
        except Exception as fault:  # damage shows in many ways
            raise OutputError(f"{shown} is no checkpoint of a training run, or damaged: {fault}") from fault
        if not same:
            raise OutputError(f"{shown} is of a run with another recipe or other pictures: remove it to begin anew.")
        try:
            self.state.take_up(told)
        except Exception as fault:  # names, shapes, groups: what does not fit shows in many ways, too
            reason = " ".join(str(fault).split())[:200]
            raise OutputError(f"{shown} is of a run of another net: remove it to begin anew ({reason})") from fault
        self.history, self.best = history, best

    def _key(self) -> dict[str, Any]:
        return {"recipe": self.recipe.as_dict(), "pictures": self.names, "targets": self.targets.tolist()}

    def result(self) -> Trained:
        """The net with the weights that are kept."""
        net = copy.deepcopy(self.state.average.module)
        if self.stopped and self.best:
            net.load_state_dict(self.best)
        net = net.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        held = judge(net, self.held) if self.held else None
        return Trained(net, self.history, held, self.faults)


def _put(content: io.BytesIO, file: BinaryIO) -> None:
    file.write(content.getbuffer())
