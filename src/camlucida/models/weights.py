"""Weights from a file, without running code from it; and into a net, without a silent misfit."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camlucida.core.scope import unwrap
from camlucida.errors import ModelError
from camlucida.files import printable
from camlucida.models import sniff

State = dict[str, Tensor]
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.", "net.")
"""What wrappers put in front of every name."""

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net", "weights")
_SHOWN = 5  # names of each kind in a refusal


@dataclass(frozen=True)
class Weights:
    """The tensors of a file by name, and what was done to get at them."""

    state: State
    notes: tuple[str, ...] = ()


def read_weights(path: str | os.PathLike[str]) -> State:
    """The tensors in a file, by name: safetensors, or a PyTorch file that holds nothing but weights.

    What the file is, its content says, not its name. No code from the file is ever run, and there is no way round.

    Raises: ModelError that says what the file is and what to do.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"state_dict": {"fc.bias": torch.ones(2)}}, Path(folder, "w.pth"))
    ...     read_weights(Path(folder, "w.pth"))
    {'fc.bias': tensor([1., 1.])}
    """
    return open_weights(path).state


def open_weights(path: str | os.PathLike[str]) -> Weights:
    """As `read_weights`, with notes: the file's hash, and the envelope that the weights came out of."""
    file = Path(path)
    content = _from_safetensors(file) if sniff.kind(file) == "safetensors" else _from_torch(file)
    state, notes = _unwrapped(file, content)
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()[:12]
    return Weights(state, (f"weights {printable(file.name)}, sha256 {digest}", *notes))


def bare(key: str) -> str:
    """A name without what wrappers put in front of it.

    >>> bare("module.model.fc.weight")
    'fc.weight'
    """
    while prefix := next((p for p in PREFIXES if key.startswith(p)), ""):
        key = key.removeprefix(prefix)
    return key


def fit(net: nn.Module, state: Mapping[str, Tensor], partial: bool = False) -> tuple[str, ...]:
    """Load tensors into a net, all of them into all of it, and say what was done.

    Prefixes of wrappers (`PREFIXES`) are taken off where that makes names match. ``partial`` goes on with what fits.

    Raises: ModelError where the file does not fit the net in full, or its numbers are NaN, infinite or all zero.

    >>> fit(nn.Linear(2, 1), {"module.weight": torch.ones(1, 2), "module.bias": torch.ones(1)})
    ("prefix 'module.' taken off 2 names",)
    """
    net = unwrap(net)
    own = {k: v for k, v in net.state_dict().items() if isinstance(v, Tensor)}
    state, notes = _without_prefix(dict(state), own)
    match = _match(own, state)
    if not match.fits or not (match.whole or partial):
        raise ModelError(match.refusal(len(own)))
    fitting = {k: state[k] for k in match.fits}
    _check_numbers(fitting)
    try:
        net.load_state_dict(fitting, strict=False)
    except RuntimeError as fault:
        raise ModelError(f"the weights do not fit the model: {' '.join(str(fault).split())[:300]}") from fault
    return (*notes, *match.notes(len(own)), *_cast(fitting, own))


# -------------------------------------------------------------------------------------------------------- reading


def _from_safetensors(file: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as fault:
        raise sniff.refused(file, sniff.cut_off("a safetensors file", file.stat().st_size)) from fault


def _from_torch(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as fault:  # UnpicklingError, RuntimeError, EOFError, KeyError, …: damage shows in many ways
        raise sniff.refused(file, _trouble(file, str(fault))) from fault


def _trouble(file: Path, said: str) -> str:
    named = re.search(r"(?:GLOBAL|class|function|global)[\s:]+([\w]+(?:\.[\w]+)+)", said)
    if "weights_only" in said or "Weights only" in said or named:
        return sniff.holds_code(file, f" ({printable(named[1])})" if named else "")
    return sniff.cut_off("a PyTorch file", file.stat().st_size)


def _unwrapped(file: Path, content: Any) -> tuple[State, list[str]]:
    """The tensors inside the envelope that training scripts put around them."""
    notes: list[str] = []
    for _ in range(4):  # an envelope may lie in another one; but not without end
        found = [k for k in _WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(k), Mapping)]
        if not found:
            break
        also = f" ({', '.join(map(repr, found[1:]))} left aside)" if found[1:] else ""
        notes.append(f"taken from {found[0]!r}{also}")
        content = content[found[0]]
    held = content if isinstance(content, Mapping) else {}
    state = {str(k): v for k, v in held.items() if isinstance(v, Tensor)}
    if not state:
        kinds = ", ".join(repr(printable(str(k))) for k in list(held)[:5]) or type(content).__name__
        raise sniff.refused(file, f"a file without named tensors (it holds {kinds}): save model.state_dict()")
    if len(state) < len(held):
        notes.append(f"{len(held) - len(state)} entries that are no tensors left aside")
    return state, notes


# -------------------------------------------------------------------------------------------------------- fitting


@dataclass(frozen=True)
class _Match:
    """How the names and shapes of a file and of a net agree."""

    fits: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: tuple[str, ...]
    counters: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return not (self.missing or self.unexpected or self.shapes)

    def refusal(self, count: int) -> str:
        lists = (("missing", self.missing), ("not in the model", self.unexpected), ("of another shape", self.shapes))
        told = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in lists if names)
        way = "partial=True (--partial) goes on with what fits" if self.fits else "is this the right model?"
        return f"the weights fit {len(self.fits)} of the model's {count} tensors. {told}. {way}".rstrip(".") + "."

    def notes(self, count: int) -> list[str]:
        notes = [f"{len(self.counters)} batch counters are not in the file"] if self.counters else []
        if self.whole:
            return notes
        left = len(self.missing) + len(self.shapes)
        aside = f", {len(self.unexpected)} of the file unused" if self.unexpected else ""
        return [*notes, f"partial: {len(self.fits)} of {count} tensors loaded, {left} left as they were{aside}"]


def _match(own: State, state: State) -> _Match:
    same = [k for k in own if k in state and own[k].shape == state[k].shape]
    absent = [k for k in own if k not in state]
    # BatchNorm's counter of batches came late to PyTorch, and says nothing about the answers of a trained net.
    counters = tuple(k for k in absent if k.endswith("num_batches_tracked"))
    other = [k for k in own if k in state and own[k].shape != state[k].shape]
    shapes = tuple(f"{k} (file {_size(state[k])}, model {_size(own[k])})" for k in other)
    missing = tuple(k for k in absent if k not in counters)
    return _Match(tuple(same), missing, tuple(k for k in state if k not in own), shapes, counters)


def _size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "one number"


def _some(names: Sequence[str]) -> str:
    return ", ".join(printable(n) for n in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _without_prefix(state: State, own: State) -> tuple[State, list[str]]:
    """The file's names with those prefixes taken off, up to three deep, that make the most of them match."""
    best, notes, most = state, list[str](), len(own.keys() & state.keys())
    held = [p for p in PREFIXES if any(p in k for k in state)]
    for depth in (1, 2, 3):
        for chain in map("".join, product(held, repeat=depth)):
            renamed = {k.removeprefix(chain): v for k, v in state.items()}
            matching = len(own.keys() & renamed.keys())
            if matching > most and len(renamed) == len(state):
                count = sum(k.startswith(chain) for k in state)
                best, notes, most = renamed, [f"prefix {chain!r} taken off {count} names"], matching
    return best, notes


def _check_numbers(state: State) -> None:
    broken = [k for k, v in state.items() if not bool(_plain(v).isfinite().all())]
    if broken:
        raise ModelError(f"{len(broken)} of {len(state)} tensors are not finite: {_some(broken)}. The file is spoilt.")
    if not any(bool(_plain(v).any()) for k, v in state.items() if not k.endswith("num_batches_tracked")):
        raise ModelError(f"all {len(state)} tensors of the weights are zero: nothing was ever saved in this file.")


def _plain(tensor: Tensor) -> Tensor:
    """A tensor in a type that can be asked: 8-bit floats cannot."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 2 else tensor


def _cast(state: State, own: State) -> list[str]:
    changed = {(str(v.dtype)[6:], str(own[k].dtype)[6:]) for k, v in state.items() if v.dtype != own[k].dtype}
    return [f"{old} read as {new}" for old, new in sorted(changed)]
