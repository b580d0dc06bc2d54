"""What a vision-language model says as a target: a token of its caption or answer, or all of it.

The words are put to the model together with the picture (teacher forcing): one pass scores each of them given the
picture and the words before it, so that nothing is generated while a map is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from camlucida.core.capture import full
from camlucida.core.layers import Place, Survey
from camlucida.core.outputs import Which, chosen, fields, told
from camlucida.core.scores import scoring
from camlucida.core.settle import Settled, Subjects
from camlucida.errors import TargetError
from camlucida.types import Output, Scores

SILENT = -100
"""The label of what is not asked about, a prompt or padding, as in transformers."""

Labels = Int[Tensor, "n length"]


@final
@dataclass(frozen=True, eq=False)
class Said:
    """The target that `token_at` and `answer` make: ``labels`` ``n length``, `SILENT` where none counts.

    Where the model's sequence is longer than the labels, its first places are the picture's: both end together.
    """

    labels: Labels
    score: str = "log_probability"
    output: Which = None
    steady = True

    def __call__(self, output: Output) -> Scores:
        y = _logits(output, self.output)
        labels = self._fitting(y).to(y.device)
        row, at = (labels != SILENT).nonzero(as_tuple=True)
        before = at + y.shape[1] - labels.shape[1] - 1
        each = scoring(self.score)(full(y[row, before]), labels[row, at])
        return torch.zeros(len(y), dtype=each.dtype, device=y.device).index_add(0, row, each)

    def _fitting(self, y: Float[Tensor, "b longer k"]) -> Int[Tensor, "b length"]:
        """The labels, for as many pictures as there are. Raises: TargetError where they do not go with the logits."""
        b, length, k = y.shape
        said = self.labels.shape[1]
        self._check_rows(b)
        if length < said:
            raise TargetError(
                f"the model scored {length} tokens, and {said} were handed to the target: give both the same words, "
                "and the model nothing that keeps only its last logits."
            )
        if length == said and bool((self.labels[:, 0] != SILENT).any()):
            raise TargetError("the first token has none before it, so the model gives no score for it: begin after it.")
        if int(self.labels.max()) >= k:
            raise TargetError(f"token {int(self.labels.max())} does not exist: this model has {k} tokens.")
        return self.labels.expand(b, -1)

    def _check_rows(self, pictures: int) -> None:
        if (n := len(self.labels)) not in (1, pictures):
            raise TargetError(f"{n} rows of words for {pictures} pictures: give one for all of them, or one for each.")

    def over(self, subjects: Subjects) -> "Said":
        """The same target, once it is known to go with the pictures. Raises: TargetError where it does not."""
        self._check_rows(len(subjects.pictures.names))
        return self

    def settle(self, output: Output) -> Settled:
        """Each picture with its own words."""
        labels = self._fitting(_logits(output, self.output))
        return Settled(tuple(replace(self, labels=row[None]) for row in labels))

    def place(self, seen: Survey) -> Place:
        """The last place that is the picture's alone."""
        return seen.choice

    def reach(self) -> tuple[float, ...] | None:
        """The model's grids are as large as its input."""
        return None

    def __str__(self) -> str:
        counts, said = (self.labels != SILENT).sum(1), self.labels[self.labels != SILENT]
        if int(counts.max()) > 1:
            what = "all that is said"
        else:
            what = f"token {int(said[0])}" if bool((said == said[0]).all()) else "a token per picture"
        return f"{what}, {self.score.replace('_', ' ')}"


def token_at(ids: Any, at: int | Sequence[int] = -1, *, score: str = "log_probability", output: Which = None) -> Said:
    """One token that a vision-language model says: ``log p(ids_at | picture, ids_<at)``.

    ``ids`` are the words that the model is called with, ``n length``, the answer among them: its ``input_ids``, or the
    ``decoder_input_ids`` of one that has both; one row for each picture, or one for all. ``at`` is the token's place
    among them, one for all rows or one for each, −1 the last. ``score`` as for `classes`, over the vocabulary:
    ``"against:42"`` asks why this token rather than token 42. ``output`` says which part of the answer the logits are.

    The model must not see a token before it says it: where words attend both ways, their log probability is no
    prediction.

    Raises: TargetError where there is no such token; and in use, where the words do not go with the logits.

    >>> logits = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]]])
    >>> token_at(torch.tensor([[1, 1, 0]]), at=2)({"logits": logits})
    tensor([-0.1269])
    """
    ids = _words(ids)
    length = ids.shape[1]
    places = [at] * len(ids) if isinstance(at, int) else list(at)
    if len(places) != len(ids):
        raise TargetError(f"{len(places)} places for {len(ids)} rows of words: give one for all, or one for each.")
    wrong = next((p for p in places if isinstance(p, bool) or not -length <= p < length), None)
    if wrong is not None:
        raise TargetError(f"token {wrong} does not exist: there are {length}, 0 to {length - 1}, or −1 for the last.")
    rows = torch.arange(len(ids), device=ids.device)
    where = torch.tensor(places, device=ids.device) % length
    labels = torch.full_like(ids, SILENT)
    labels[rows, where] = ids[rows, where]
    return _said(labels, score, output)


def answer(labels: Any, *, score: str = "log_probability", output: Which = None) -> Said:
    """All that a vision-language model says: ``Σ_j log p(labels_j | picture, words before j)``.

    ``labels`` are the words that the model is called with, ``n length``, with −100 for what is not part of the answer,
    the prompt and padding, as transformers has it. The rest as for `token_at`.

    Raises: TargetError as `token_at`.

    >>> logits = torch.zeros(1, 3, 4)
    >>> answer(torch.tensor([[-100, 2, 3]]))({"logits": logits})  # twice log ¼
    tensor([-2.7726])
    """
    return _said(_words(labels), score, output)


def _said(labels: Labels, score: str, output: Which) -> Said:
    scoring(score)
    if bool(((labels < 0) & (labels != SILENT)).any()):
        raise TargetError("a token is a whole number from 0, or −100 where it does not count.")
    if not bool((labels != SILENT).any(1).all()):
        raise TargetError("a row of words has no token that counts: all of them are −100.")
    return Said(labels, score, output)


def _words(ids: Any) -> Labels:
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype not in (torch.int64, torch.int32) or not ids.numel():
        got = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise TargetError(f"words are token numbers, (pictures, length), as the model is called with; got {got}.")
    return ids.detach().clone().long()


def _logits(output: Output, which: Which) -> Float[Tensor, "b length k"]:
    """One row of scores for each token. Raises: TargetError where there is none, or their places are not known."""
    part = chosen(output, which)
    held = {} if isinstance(part, Tensor) else fields(part)
    if isinstance(held.get("loss"), Tensor):
        raise TargetError(
            "the model was given labels, and moves them by one place or not as it pleases: call it with the words "
            "themselves, as input_ids or decoder_input_ids, and give the labels to the target alone."
        )
    found = held.get("logits", part)
    if not isinstance(found, Tensor) or found.dim() != 3 or not found.is_floating_point():
        raise TargetError(
            f"the scores of tokens are (pictures, length, vocabulary), and the model returns {told(part)}: say which "
            "part they are with output=."
        )
    return found
