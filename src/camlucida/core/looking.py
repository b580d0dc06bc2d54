"""How one picture's tokens attend to each other, and the gradients of its scores there: what attention methods read."""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from camlucida.core import layouts
from camlucida.core.attention import Block, Lens
from camlucida.core.capture import Call, How, Inputs, Tape, full, run, vjp
from camlucida.core.evidence import GRADIENT_BYTES, Asked, put
from camlucida.core.scope import named, unwrap
from camlucida.errors import LayerError, MethodError
from camlucida.types import Attention, Layout, Target

Reader = Callable[[Attention], Tensor]
_ELSE = "method='gradcam' works with any model."
_NONE = sys.maxsize  # no attention has so high a number
_PREFIX = 16  # class, distillation and register tokens; more are something else


@dataclass(frozen=True)
class Looking:
    """One picture put to one model: ``grid`` is that of the tokens which are places, as the ``layout`` of a layer
    shows it. ``autocast`` is the caller's.
    """

    net: nn.Module
    inputs: Inputs
    targets: Sequence[Target]
    grid: tuple[int, ...]
    layout: Layout
    autocast: torch.dtype | None = None

    def attend(self, read: Reader, last: int = 0, score: str = "output") -> Float[Tensor, "t ..."]:
        """As `camlucida.types.Scorer`. Raises: MethodError where there is no attention that can be used."""
        try:
            return self._own(read, last) if score == "block" else self._whole(read, last, score)
        except CheckpointError:
            raise MethodError(
                "this model computes its blocks a second time in the backward pass, without their attention: switch "
                "gradient checkpointing off first, as in model.set_grad_checkpointing(False)."
            ) from None

    def _whole(self, read: Reader, last: int, score: str) -> Float[Tensor, "t ..."]:
        """Gradients at each block's attention, of the model's own score."""
        first = self._first(len(self._plan()[0].inside), last) if last else 0
        for whole in (False, True):
            lens = Lens(self._fits, first)
            with self._run(lens, (), How(whole=whole), spy=whole) as tape:
                self._check(lens)
                asked = put(self.targets, tape.output, 1)
                if asked.at.requires_grad:
                    return self._read(lens.blocks, asked, read, score)
        raise MethodError(f"the score does not depend on this model's attention: {_ELSE}")

    def _fits(self, tokens: int) -> bool:
        extra = tokens - math.prod(self.grid)
        if isinstance(self.layout, layouts.Layout) and self.layout.kind == "tokens":
            return extra in (0, self.layout.prefix)
        return 0 <= extra <= _PREFIX

    @contextmanager
    def _run(self, lens: Lens, layers: Sequence[str], how: How, spy: bool = False) -> Iterator[Tape]:
        others = [n for n in named(unwrap(self.net)) if n and n not in layers] if spy else ()
        kind = self.inputs.x.device.type
        with lens, torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
            with run(self.net, self.inputs, layers, spy=others, how=how) as tape:
                lens.live = False  # what is read from the tape is none of the model's doing
                with torch.autocast(kind, enabled=False):
                    yield tape

    def _check(self, lens: Lens) -> None:
        """Raise where the attention seen is not of all tokens of this grid to all."""
        odd = [kind for before, kind in lens.odd if before < len(lens.inside) or not lens.inside]
        if odd:
            raise MethodError(
                f"this model attends {odd[0]}: only attention of all tokens of one grid to all can be read as a map "
                f"(the layer's grid is {'×'.join(map(str, self.grid))}; layer=… names another). {_ELSE}"
            )
        if not lens.inside:
            raise MethodError(
                "no attention was seen in this model: neither scaled_dot_product_attention nor a softmax over a "
                f"product of its tokens ran. {_ELSE}"
            )

    def _first(self, count: int, last: int) -> int:
        if not 0 <= last <= count:
            raise MethodError(f"last={last}: this model has {count} blocks of attention (0 asks for all of them).")
        return count - last if last else 0

    def _plan(self) -> tuple[Lens, tuple[Call, ...]]:
        """One plain pass: the attention there is, and the modules that it happened in."""
        lens = Lens(self._fits, _NONE, graph=False)
        with self._run(lens, (), How(graph=False), spy=True) as tape:
            self._check(lens)
            return lens, tape.calls

    # ----------------------------------------------------------------------------------------- the model's own score

    def _read(self, blocks: Sequence[Block], asked: Asked, read: Reader, score: str) -> Float[Tensor, "t ..."]:
        """``read`` of all targets, as many at a time as their gradients have room."""
        reads, made, found = self._reads(blocks[-1], asked), blocks[-1].made, []
        at = [b.probs for b in blocks] + ([] if made is None else [made])
        for along in asked.along.split(_room(blocks) if score == "output" else len(asked.along)):
            grads = vjp(asked.at, along, at, keep=True) if score == "output" else []
            flow = grads.pop() if grads and made is not None else None
            found.append(self._seen(blocks, grads, reads, flow, read))
        return torch.cat([f.expand(len(asked.along), *f.shape[1:]) if score == "none" else f for f in found])

    def _reads(self, block: Block, asked: Asked) -> Float[Tensor, " n"]:
        """What share each token has in what the model reads out: those whose last attention its score depends on."""
        n = block.probs.shape[-1]
        (grad,) = vjp(asked.at, asked.along[:8], [block.probs], keep=True)
        slope = full(block.probs.detach())[None] * 0 if grad is None else grad
        live = (slope.reshape(-1, n, n) != 0).any(-1).any(0)
        if not live.any():  # a dead score: by custom
            live[: 1 if n > math.prod(self.grid) else n] = True
        return live.to(slope) / live.sum()

    def _seen(
        self, blocks: Sequence[Block], grads: Sequence[Tensor | None], reads: Tensor, flow: Tensor | None, read: Reader
    ) -> Tensor:
        n, parts = len(reads), (blocks[-1].query, blocks[-1].key, blocks[-1].value)
        probs = tuple(full(b.probs.detach()).reshape(-1, n, n) for b in blocks)
        slopes = (p[None] * 0 if g is None else g.reshape(-1, *p.shape) for p, g in zip(probs, grads, strict=False))
        inside: tuple[Tensor, ...] = ()
        if flow is not None and all(p is not None and p.shape[-2] == n for p in parts):
            inside = tuple(full(p.detach()).reshape(-1, n, p.shape[-1]) for p in parts if p is not None)
            inside += (flow.reshape(len(flow), -1, n, flow.shape[-1]),)
        with torch.no_grad():
            return read(Attention(probs, tuple(slopes), reads, self.grid, inside))

    # ---------------------------------------------------------------------------------------- each block's own score

    def _own(self, read: Reader, last: int) -> Float[Tensor, "t ..."]:
        """Gradients at each block's attention, of the score that the model's end gives to the mean of its tokens."""
        plan, calls = self._plan()
        first = self._first(len(plan.inside), last)
        names = self._blocks(plan, calls)[first:]
        try:
            return self._own_of(names, first, read, How())
        except LayerError:  # a block that hides from a pass without gradients
            return self._own_of(names, first, read, How(whole=True))

    def _own_of(self, names: Sequence[str], first: int, read: Reader, how: How) -> Float[Tensor, "t ..."]:
        lens, found = Lens(self._fits, first), []
        with self._run(lens, names, how, spy=how.whole) as tape, ExitStack() as stack:
            plain = put(self.targets, tape.output, 1)
            rows = [_mean_everywhere(tape.acts[n]) for n in names]
            end, asked = self._ended(stack, names[-1], [tape.acts[names[-1]], *rows], plain.scores, how)
            reads = self._reads(lens.blocks[-1], plain)
            for along in asked.along.split(_room(lens.blocks)):
                (slopes,) = vjp(asked.at, along, [end], keep=True)
                if slopes is None:
                    raise LayerError(f"the score does not depend on the tokens of block {names[-1]!r}. {_ELSE}")
                grads = _back(rows, slopes.movedim(1 + _batch_axis(end, len(rows) + 1), 0)[1:], lens.blocks)
                found.append(self._seen(lens.blocks, grads, reads, None, read))
        return torch.cat(found)

    def _blocks(self, plan: Lens, calls: Sequence[Call]) -> list[str]:
        """For each attention the outermost module that holds it alone and gives tokens."""
        names = {m: n for n, m in named(unwrap(self.net)).items()}
        giving = {c.name for c in calls if c.feature is not None and self._tokens(c.feature)}
        times = Counter(m for stack in plan.inside for m in stack)
        own = [[names[m] for m in stack if times[m] == 1 and names.get(m) in giving] for stack in plan.inside]
        if not all(own):
            raise MethodError(
                "a block's own score needs every block to be a module that gives its tokens, and here an attention "
                "has none: method='attentionrelevance' works without."
            )
        return [around[-1] for around in own]

    def _tokens(self, feature: Tensor) -> bool:
        return feature.dim() == 3 and 1 in feature.shape[:2] and self._fits(max(feature.shape[:2]))

    def _ended(
        self, stack: ExitStack, name: str, rows: Sequence[Tensor], base: Tensor, how: How
    ) -> tuple[Tensor, Asked]:
        """What follows the last block, run for other tokens; the first row is the undisturbed one and must show it."""
        if len({r.shape for r in rows}) > 1:
            raise MethodError("the blocks differ in width, and the model's end fits the last one only.")
        how = replace(how, put={name: torch.cat([r.detach() for r in rows], _batch_axis(rows[0]))})
        wide = self.inputs.showing(self.inputs.x.expand(len(rows), *self.inputs.x.shape[1:]))
        slack = 1e-3 * float(base.nan_to_num().abs().max()) + 1e-6
        for inputs in (self.inputs, wide):  # the batch grows at the block, or where that is not borne, from the start
            other = Looking(self.net, inputs, self.targets, self.grid, self.layout, self.autocast)
            try:
                tape = stack.enter_context(other._run(Lens(self._fits, _NONE), [name], how, how.whole))
                asked = put(self.targets, tape.output, len(rows))
            except (torch.OutOfMemoryError, MethodError):
                raise
            except Exception:
                if inputs is wide:
                    raise
                continue
            if torch.allclose(asked.scores[:, 0], base[:, 0], rtol=0.0, atol=slack, equal_nan=True):
                return tape.acts[name], asked
        raise MethodError(f"the score does not follow from the tokens of block {name!r} alone. {_ELSE}")


def _room(blocks: Sequence[Block]) -> int:
    """So many targets' gradients fit at a time."""
    return max(1, GRADIENT_BYTES // sum(b.probs.numel() * b.probs.element_size() for b in blocks))


def _batch_axis(tokens: Tensor, rows: int = 1) -> int:
    return 0 if tokens.shape[0] == rows else 1


def _mean_everywhere(tokens: Tensor) -> Tensor:
    """The mean of a block's tokens in the place of each: whichever the model reads out, it reads the mean."""
    return tokens.mean(1 - _batch_axis(tokens), keepdim=True).expand(tokens.shape)


def _back(rows: Sequence[Tensor], ways: Tensor, blocks: Sequence[Block]) -> list[Tensor]:
    """From the directions ``l m n c`` at each block's own tokens to its own attention."""
    found = []
    for row, way, block in zip(rows, ways, blocks, strict=True):
        (grad,) = vjp(row, way.reshape(-1, *row.shape), [block.probs], keep=True)
        if grad is None:
            raise MethodError(f"a block's tokens do not depend on its own attention. {_ELSE}")
        found.append(grad)
    return found
