"""ONNX graphs, ``onnx:FILE``, run by onnxruntime: black boxes, for the methods that ask for answers alone."""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from camlucida.errors import InputError, ModelError
from camlucida.files import printable
from camlucida.frame import IMAGENET, Preprocess
from camlucida.models import Model, sniff
from camlucida.models.guests import imported
from camlucida.models.torchscript_source import ASSUMED, existing

FORM = "onnx:FILE"

_LONGEST = 1_000_000  # letters of a list of labels, and the last of their indices
_NUMBERS = {f"tensor({kind})" for kind in ("float", "float16", "double", "int64", "int32", "bool")}
_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}


class Graph(nn.Module):
    """An ONNX graph as a module, on the processor: ``b c h w`` → what the graph gives, one tensor or a tuple of them.

    Where the graph's batch is fixed, larger batches go through it in parts; the last is filled up and cut. A graph that
    wants its channels last gets them there.
    """

    black_box = "an ONNX graph"

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session
        (entry,) = session.get_inputs()
        self.entry, self.dtype = str(entry.name), _TYPES[entry.type]
        self.gives = [o.name for o in session.get_outputs() if o.type in _NUMBERS]
        self.shape = tuple(n if isinstance(n, int) else None for n in entry.shape)
        self.last = len(self.shape) > 3 and self.shape[-1] in (1, 3) and self.shape[1] not in (1, 3)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Any:
        """The answers to a batch. Raises: InputError where the graph takes another shape."""
        given = x.to("cpu", self.dtype).movedim(1, -1 if self.last else 1)
        rows, *rest = self.shape
        if len(rest) != given.dim() - 1 or any(n not in (None, m) for n, m in zip(rest, given.shape[1:], strict=True)):
            wanted = "×".join("any" if n is None else str(n) for n in self.shape)
            raise InputError(f"this ONNX graph takes {wanted}; got {'×'.join(map(str, given.shape))}.")
        parts = [self._run(part) for part in given.split(rows or len(x))]
        made = [torch.cat(outputs)[: len(x)].to(x.device) for outputs in zip(*parts, strict=True)]
        return made[0] if len(made) == 1 else tuple(made)

    def _run(self, x: Tensor) -> list[Tensor]:
        lacking = (self.shape[0] or len(x)) - len(x)
        whole = torch.cat([x, x[-1:].expand(lacking, *x.shape[1:])]) if lacking else x
        found = self.session.run(self.gives, {self.entry: whole.detach().contiguous().numpy()})
        return [torch.from_numpy(v) for v in found]


def build(path: str, weights: str | None, partial: bool) -> Model:  # noqa: ARG001
    """The graph in a file; what its metadata calls ``names``, as Ultralytics writes them, are its labels.

    Raises: ModelError where it is no graph, or one that takes other things than one batch of pictures.

    >>> build("nowhere.onnx", None, False)
    Traceback (most recent call last):
        ...
    camlucida.errors.ModelError: there is no file 'nowhere.onnx'.
    """
    if weights is not None:
        raise ModelError("onnx:FILE has its weights in the file itself: leave weights= out.")
    file = existing(path)
    session = _session(file)
    _check(file, session.get_inputs())
    net = Graph(session)
    prepare = _preprocess(net)
    labels = parsed(session.get_modelmeta().custom_metadata_map.get("names", ""))
    note = ASSUMED.format(*prepare.size)
    return Model(net, prepare, name=f"onnx:{printable(file.name)}", labels=labels, notes=(note,))


def _onnxruntime() -> ModuleType:
    with imported("onnxruntime", "onnx:…", "onnx", "install it anew"):
        import onnxruntime
    found: ModuleType = onnxruntime
    return found


def _session(file: Path) -> Any:
    runtime = _onnxruntime()
    asked = runtime.SessionOptions()
    asked.log_severity_level = 3  # errors, and not what its optimiser has to say
    try:
        return runtime.InferenceSession(str(file), asked, providers=["CPUExecutionProvider"])
    except Exception as fault:  # damage shows in many ways
        said = printable(" ".join(str(fault).split())[:200])
        raise ModelError(f"cannot load {sniff.name(file)} as an ONNX graph: {said}") from fault


def _check(file: Path, entries: Sequence[Any]) -> None:
    if len(entries) != 1 or entries[0].type not in _TYPES or len(entries[0].shape) < 3:
        took = ", ".join(f"{e.name}: {e.type} {list(e.shape)}" for e in entries)
        raise ModelError(
            f"{sniff.name(file)} takes {printable(took[:200])}: a graph of one batch of pictures, as floats, is "
            "wanted; wrap another in a function of your own, FILE.py:CALLABLE."
        )


def _preprocess(net: Graph) -> Preprocess:
    """As for ImageNet, at the size and with the channels of the graph where they are fixed."""
    channels, *space = (net.shape[-1], *net.shape[1:-1]) if net.last else net.shape[1:]
    if len(space) != 2 or channels not in (None, 1, 3):
        return IMAGENET
    high, wide = (own or usual for own, usual in zip(space, IMAGENET.size, strict=True))
    if channels == 1:
        return Preprocess((high, wide), (sum(IMAGENET.mean) / 3,), (sum(IMAGENET.std) / 3,))
    return replace(IMAGENET, size=(high, wide))


def parsed(text: str) -> tuple[str, ...]:
    """Labels from the text of a list, or of a mapping from index to label, in Python's or JSON's spelling.

    >>> parsed("{0: 'cat', 2: 'dog'}"), parsed('["cat", "dog"]'), parsed("__import__('os')")
    (('cat', 'class 1', 'dog'), ('cat', 'dog'), ())
    """
    if len(text) > _LONGEST:
        return ()
    try:
        found = json.loads(text) if text.lstrip()[:2] in ('["', '{"') else ast.literal_eval(text.strip())
        if isinstance(found, Mapping):
            known = {int(i): name for i, name in found.items()}
            sound = known and min(known) >= 0 and max(known) < _LONGEST
            found = [known.get(i, f"class {i}") for i in range(max(known) + 1)] if sound else ()
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return ()
    return tuple(map(str, found)) if isinstance(found, list | tuple) else ()
