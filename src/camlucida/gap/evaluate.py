"""What a classifier does on pictures whose classes are known: accuracy, class by class, and how honest its odds are."""

import math
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from camlucida.core.targets import logits as class_scores
from camlucida.errors import InputError, PictureError
from camlucida.frame import Preprocess
from camlucida.gap.data import OTHER, Table
from camlucida.images import open_picture

Inputs: TypeAlias = tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]
"""Pictures made ready, and the target of each."""

_BATCH = 64
_BINS = 15
_FAR = math.log(20)


@final
@dataclass(frozen=True, eq=False)
class Evaluation:
    """The logits of ``n`` pictures and their targets; everything else follows from these.

    >>> seen = Evaluation(torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1]))
    >>> seen.top1, seen.per_class.tolist(), seen.confusion.tolist()
    (0.666..., [1.0, 0.5], [[1, 0], [1, 1]])
    """

    logits: Float[Tensor, "n k"]
    targets: Int[Tensor, " n"]
    faults: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def known(self) -> "Evaluation":
        """The pictures that show one of the classes."""
        return self._where(self.targets != OTHER)

    @property
    def other(self) -> "Evaluation":
        """The pictures that show none of the classes."""
        return self._where(self.targets == OTHER)

    def _where(self, chosen: Tensor) -> "Evaluation":
        return Evaluation(self.logits[chosen], self.targets[chosen])

    @property
    def confusion(self) -> Int[Tensor, "k k"]:
        """How many pictures of class (row) were taken for class (column)."""
        seen, k = self.known, self.logits.shape[1]
        pairs = seen.targets * k + seen.logits.argmax(1)
        return torch.bincount(pairs, minlength=k * k).reshape(k, k)

    @property
    def top1(self) -> float:
        """The share of pictures whose best class is the right one; NaN without any."""
        table = self.confusion
        return float(table.diagonal().sum() / table.sum())

    @property
    def per_class(self) -> Float[Tensor, " k"]:
        """The share of each class's pictures that were taken for it; NaN where there are none."""
        table = self.confusion
        return table.diagonal() / table.sum(1)

    @property
    def mean_per_class(self) -> float:
        """The mean of `per_class`: every class counts the same, however many pictures it has."""
        return float(self.per_class.nanmean())

    @property
    def loss(self) -> float:
        """The mean of −log of the probability of the right class, in nats."""
        seen = self.known
        return float(F.cross_entropy(seen.logits.double(), seen.targets)) if len(seen) else float("nan")

    @property
    def confidence(self) -> Float[Tensor, " n"]:
        """The probability of the best class."""
        return self.logits.softmax(1).amax(1)

    @property
    def calibration_error(self) -> float:
        """The expected calibration error: how far confidence and accuracy lie apart, over 15 bins. [guo2017]"""
        seen = self.known
        sure, right = seen.confidence.double(), (seen.logits.argmax(1) == seen.targets).double()
        bins = (sure * _BINS).long().clamp(max=_BINS - 1)
        gap = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, bins, sure - right)
        return float(gap.abs().sum() / len(seen)) if len(seen) else float("nan")

    def reached(self, share: float = 0.95) -> float:
        """The `confidence` that this share of the pictures of known classes reach, rounded down to four places."""
        sure = self.known.confidence.double()
        if not len(sure):
            return float("nan")
        return math.floor(1e4 * float(sure.quantile(1 - share, interpolation="lower"))) / 1e4

    def temperature(self) -> float:
        """The number to divide the logits by for the least `loss`: above 1 for a net too sure of itself. [guo2017]

        Looked for from 1/20 to 20, beyond which few pictures, all of them right or wrong, would drive it; 1 without
        any picture of a known class.
        """
        if not len(seen := self.known):
            return 1.0
        with torch.inference_mode(False), torch.enable_grad():
            # what was made in inference mode takes no part in gradients, a copy of it does
            logits, targets = seen.logits.double().clone(), seen.targets.clone()
            log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
            search = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

            def closure() -> Tensor:
                search.zero_grad()
                loss = F.cross_entropy(logits / log_t.clamp(-_FAR, _FAR).exp(), targets)
                loss.backward()
                return loss

            search.step(closure)
        return float(log_t.detach().clamp(-_FAR, _FAR).exp())


def prepared(table: Table, preprocess: Preprocess) -> tuple[Inputs, tuple[str, ...]]:
    """The pictures of a table made ready for a net, and what is wrong with those that cannot be read.

    Raises: InputError where none can be read.
    """
    ready, faults = [], []
    for file, target in zip(table.files, table.targets, strict=True):
        try:
            ready.append((preprocess(open_picture(file).image)[0], target))
        except PictureError as fault:
            faults.append(str(fault))
    if not ready:
        raise InputError(f"no picture can be read: {faults[0] if faults else 'there is none'}")
    return (torch.stack([x for x, _ in ready]), torch.tensor([y for _, y in ready])), tuple(faults)


def evaluate(net: nn.Module, table: Table, preprocess: Preprocess) -> Evaluation:
    """What a net in evaluation mode answers on every picture of a table that can be read; few in memory at once.

    Raises: InputError where none can be read.
    """
    found, faults = list[Evaluation](), list[str]()
    for start in range(0, len(table), 4 * _BATCH):
        part = table.take(range(start, min(start + 4 * _BATCH, len(table))))
        try:
            inputs, wrong = prepared(part, preprocess)
        except InputError as none:
            faults.extend([str(none)] * len(part))
            continue
        faults.extend(wrong)
        found.append(judge(net, inputs))
    if not found:
        raise InputError(faults[0] if faults else "there is no picture to judge a net by.")
    logits, targets = torch.cat([e.logits for e in found]), torch.cat([e.targets for e in found])
    return Evaluation(logits, targets, tuple(faults))


@torch.inference_mode()
def judge(net: nn.Module, inputs: Inputs) -> Evaluation:
    """The answers of a net in evaluation mode."""
    x, targets = inputs
    like = next(iter(net.parameters()), x)
    logits = [class_scores(net(part.to(like.device, like.dtype))).float().cpu() for part in x.split(_BATCH)]
    return Evaluation(torch.cat(logits), targets)
