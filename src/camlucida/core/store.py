"""Explanations on disk: pictures for people, and lossless files that load again without running code.

A lossless file holds the raw arrays and one JSON text; `.npz` is read with pickling off, `.safetensors` cannot hold
code at all. To add a format, add a writer to `WRITERS`.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from os import PathLike, fspath
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from camlucida.clips import Clip, Out, write_gif, write_video
from camlucida.core import shown
from camlucida.core.explanation import Explanation, Facts, Pictures
from camlucida.core.originals import again, kept
from camlucida.errors import OutputError, did_you_mean
from camlucida.files import write_whole
from camlucida.frame import Frame
from camlucida.maps import Centres
from camlucida.voxels import Grid, write_nifti

Arrays = dict[str, Tensor]
FORMAT = "camlucida explanation 1"


def save(explanation: Explanation, path: str | PathLike[str], i: int = 0) -> None:
    """Write picture ``i`` as an overlay or film, a volume's heat map as NIfTI, or the whole explanation, by the suffix.

    Raises: OutputError where the suffix is unknown or the file cannot be written.
    """
    file = Path(fspath(path))
    writer = WRITERS.get("".join(file.suffixes[-2:]).lower()) or WRITERS.get(file.suffix.lower())
    if writer is None:
        raise OutputError(f"cannot write {file.name!r}: unknown suffix.{did_you_mean(file.suffix, WRITERS, show=9)}")
    write_whole(file, lambda out: writer(explanation, out, i))


def load_explanation(path: str | PathLike[str]) -> Explanation:
    """The explanation in a ``.npz`` or ``.safetensors`` file, equal to the one that was saved.

    Raises: OutputError where the file is missing, damaged or of another kind.
    """
    file = Path(fspath(path))
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise OutputError(f"cannot load {file.name!r}: an explanation loads from {' or '.join(READERS)}.")
    try:
        arrays, facts = reader(file)
        return _rebuilt(arrays, facts)
    except OutputError:
        raise
    except Exception as problem:
        raise OutputError(f"cannot load {file.name!r}: {_reason(problem)}.") from problem


def _reason(problem: Exception) -> str:
    if isinstance(problem, FileNotFoundError):
        return "there is no such file"
    return f"it is no explanation, or damaged ({type(problem).__name__}: {str(problem)[:120]})"


# -------------------------------------------------------------------------------------------------------- writing


def _picture(kind: str, **how: Any) -> Callable[[Explanation, BinaryIO, int], None]:
    return lambda e, out, i: e.overlay(i).save(out, kind, **how)


def _film(write: Callable[[Sequence[Image], float, Out], None]) -> Callable[[Explanation, BinaryIO, int], None]:
    return lambda e, out, i: write(*shown.film(e, i), out)


def _nifti(packed: bool) -> Callable[[Explanation, BinaryIO, int], None]:
    def written(e: Explanation, out: BinaryIO, i: int) -> None:
        original = e.pictures.originals[i] if e.pictures.originals else None
        if len(e.pictures.space) != 3 or isinstance(original, Clip):
            raise OutputError("a NIfTI file holds the map of a volume, and this explanation is not of one.")
        grid = Grid(np.empty(0, np.float32)) if original is None else original.grid
        write_nifti(e.heatmap(i).float().cpu().numpy(), grid, out, packed)

    return written


def _arrays(e: Explanation) -> tuple[Arrays, str]:
    arrays = {"map": e.map, "scores": e.scores}
    optional = {"classes": e.classes, "logits": e.logits, "sure": e.sure, "tensor": e.pictures.tensor}
    arrays |= {k: v for k, v in optional.items() if v is not None}
    arrays |= {f"image {i}": torch.from_numpy(np.array(p.convert("RGB"))) for i, p in enumerate(e.pictures.images)}
    originals = [kept(original) for original in e.pictures.originals]
    arrays |= {f"original {i}": data for i, (data, _) in enumerate(originals)}
    facts = {
        "format": FORMAT,
        "facts": dataclasses.asdict(e.facts),
        "statuses": e.statuses,
        "labels": e.labels,
        "where": e.where,
        "names": e.pictures.names,
        "notes": e.pictures.notes,
        "space": e.pictures.space,
        "originals": [told for _, told in originals],
        "frames": [dataclasses.astuple(f) for f in e.pictures.frames],
        "centres": dataclasses.astuple(e.centres) if e.centres else None,
        "steps": e.steps,
        "bfloat16": [k for k, v in arrays.items() if v.dtype == torch.bfloat16],
    }
    return {k: v.detach().cpu().contiguous() for k, v in arrays.items()}, json.dumps(facts)


def _write_npz(e: Explanation, out: BinaryIO, _i: int) -> None:
    arrays, facts = _arrays(e)
    plain: dict[str, NDArray[Any]] = {k: _plain(v).numpy() for k, v in arrays.items()}
    np.savez_compressed(out, json=np.frombuffer(facts.encode(), dtype=np.uint8), **plain)  # type: ignore[arg-type]


def _plain(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # NumPy knows no bfloat16; float32 holds it


def _write_safetensors(e: Explanation, out: BinaryIO, _i: int) -> None:
    from safetensors.torch import save as to_bytes

    arrays, facts = _arrays(e)
    out.write(to_bytes(arrays, {"json": facts}))


WRITERS: Mapping[str, Callable[[Explanation, BinaryIO, int], None]] = {
    ".png": _picture("PNG", compress_level=1),
    ".jpg": _picture("JPEG", quality=92),
    ".jpeg": _picture("JPEG", quality=92),
    ".webp": _picture("WEBP", quality=92, method=0),
    ".gif": _film(write_gif),
    ".mp4": _film(write_video),
    ".nii": _nifti(False),
    ".nii.gz": _nifti(True),
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
}

# -------------------------------------------------------------------------------------------------------- reading


def _read_npz(file: Path) -> tuple[Arrays, str]:
    with np.load(BytesIO(file.read_bytes()), allow_pickle=False) as held:
        arrays = {k: torch.from_numpy(held[k]) for k in held.files if k != "json"}
        return arrays, bytes(held["json"]).decode()


def _read_safetensors(file: Path) -> tuple[Arrays, str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as held:
        return {k: held.get_tensor(k) for k in held.keys()}, held.metadata()["json"]


READERS: Mapping[str, Callable[[Path], tuple[Arrays, str]]] = {".npz": _read_npz, ".safetensors": _read_safetensors}


def _rebuilt(arrays: Arrays, text: str) -> Explanation:
    told = json.loads(text)
    if told.get("format") != FORMAT:
        raise OutputError(f"this file holds {told.get('format')!r}; this version reads {FORMAT!r}.")
    arrays = arrays | {k: arrays[k].bfloat16() for k in told.get("bfloat16", ())}  # which .npz holds as float32
    return Explanation(
        map=arrays["map"],
        scores=arrays["scores"],
        statuses=tuple(told["statuses"]),
        facts=Facts(**{**told["facts"], "notes": tuple(told["facts"]["notes"])}),
        pictures=_pictures(arrays, told),
        classes=arrays.get("classes"),
        logits=arrays.get("logits"),
        labels=tuple(told["labels"]),
        sure=arrays.get("sure"),
        where=tuple(told.get("where", ())),
        centres=Centres(*map(tuple, told["centres"])) if told.get("centres") else None,
    )


def _pictures(arrays: Arrays, told: Mapping[str, Any]) -> Pictures:
    from PIL import Image

    count = sum(k.startswith("image ") for k in arrays)
    return Pictures(
        space=tuple(told["space"]),
        names=tuple(told["names"]),
        frames=tuple(Frame(w, h, tuple(box)) for w, h, box in told["frames"]),
        images=tuple(Image.fromarray(arrays[f"image {i}"].numpy()) for i in range(count)),
        tensor=arrays.get("tensor"),
        notes=tuple(told["notes"]),
        originals=tuple(again(arrays[f"original {i}"], one) for i, one in enumerate(told.get("originals", ()))),
    )
