"""What a classifier does on pictures whose classes are known: accuracy, class by class, and how honest its odds are."""

import math
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from camlucida.core.targets import logits as class_scores
from camlucida.errors import InputError, ModelError, PictureError
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
    def counts(self) -> Int[Tensor, " k"]:
        """How many pictures there are of each class."""
        return torch.bincount(self.known.targets, minlength=self.logits.shape[1])

    @property
    def mistaken(self) -> Int[Tensor, "m 3"]:
        """(class, class it was taken for, how many pictures), most first: all of `confusion` but its diagonal and 0."""
        seen, k = self.known, self.logits.shape[1]
        taken = seen.logits.argmax(1)
        pairs, count = (seen.targets * k + taken)[taken != seen.targets].unique(return_counts=True)
        order = count.sort(descending=True, stable=True).indices
        return torch.stack([pairs // k, pairs % k, count], 1)[order]

    @property
    def top1(self) -> float:
        """The share of pictures whose best class is the right one; NaN without any."""
        return float(self._right.sum() / self.counts.sum())

    @property
    def per_class(self) -> Float[Tensor, " k"]:
        """The share of each class's pictures that were taken for it; NaN where there are none."""
        return self._right / self.counts

    @property
    def _right(self) -> Int[Tensor, " k"]:
        """How many pictures of each class were taken for it; `confusion` has k², too many for 20,000 classes."""
        seen = self.known
        hit = seen.logits.argmax(1) == seen.targets
        return torch.bincount(seen.targets[hit], minlength=self.logits.shape[1])

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
        found = float(log_t.detach())
        return math.exp(found) if abs(found) < _FAR else _by_halves(seen)  # out there the search sees no slope


def _by_halves(seen: Evaluation) -> float:
    """The temperature where the loss, convex in 1/T, stops to fall; one of the bounds where it never does."""
    logits = seen.logits.double()
    own = logits.gather(1, seen.targets[:, None])[:, 0]
    low, high = -_FAR, _FAR
    for _ in range(60):
        log_t = (low + high) / 2
        odds = (logits / math.exp(log_t)).softmax(1)
        slope = float(((odds * logits).sum(1) - own).mean())  # of the loss, by 1/T
        low, high = (log_t, high) if slope > 0 else (low, log_t)
    return math.exp((low + high) / 2)


def prepared(table: Table, preprocess: Preprocess) -> tuple[Inputs, tuple[str, ...]]:
    """The pictures of a table made ready for a net, and what is wrong with those that cannot be read.

    Raises: InputError where none can be read.
    """
    inputs, faults = _readable(table, preprocess)
    if inputs is None:
        raise InputError(f"no picture can be read: {faults[0] if faults else 'there is none'}")
    return inputs, faults


def _readable(table: Table, preprocess: Preprocess) -> tuple[Inputs | None, tuple[str, ...]]:
    ready, faults = [], []
    for file, target in zip(table.files, table.targets, strict=True):
        try:
            ready.append((preprocess(open_picture(file).image)[0], target))
        except PictureError as fault:
            faults.append(str(fault))
    if not ready:
        return None, tuple(faults)
    return (torch.stack([x for x, _ in ready]), torch.tensor([y for _, y in ready])), tuple(faults)


def evaluate(net: nn.Module, table: Table, preprocess: Preprocess) -> Evaluation:
    """What a net in evaluation mode answers on every picture of a table that can be read; few in memory at once.

    Raises: InputError where none can be read.
    """
    found, faults = list[Evaluation](), list[str]()
    for start in range(0, len(table), 4 * _BATCH):
        part = table.take(range(start, min(start + 4 * _BATCH, len(table))))
        inputs, wrong = _readable(part, preprocess)
        faults.extend(wrong)
        if inputs is not None:
            found.append(judge(net, inputs))
    if not found:
        raise InputError(f"no picture can be read: {faults[0] if faults else 'there is none to judge a net by'}")
    logits, targets = torch.cat([e.logits for e in found]), torch.cat([e.targets for e in found])
    return Evaluation(logits, targets, tuple(faults))


@torch.inference_mode()
def judge(net: nn.Module, inputs: Inputs) -> Evaluation:
    """The answers of a net in evaluation mode. Raises: ModelError where they are no numbers."""
    x, targets = inputs
    like = next(iter(net.parameters()), x)
    logits = [class_scores(net(part.to(like.device, like.dtype))).float().cpu() for part in x.split(_BATCH)]
    answers = torch.cat(logits)
    if strange := int(answers.softmax(1).isnan().any(1).sum()):  # −∞ alone is an answer: never this class
        raise ModelError(f"the net answers {strange} of {len(answers)} pictures with NaN or infinity.")
    return Evaluation(answers, targets)
