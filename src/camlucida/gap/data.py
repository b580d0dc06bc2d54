"""Pictures to learn from: a folder of class folders, or a table; each read once and kept small."""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from camlucida.errors import InputError, PictureError, did_you_mean
from camlucida.files import printable
from camlucida.images import ENDINGS, open_picture

OTHER = -1
"""The target of a picture that shows none of the classes."""

Pixels = UInt8[Tensor, "c h w"]
_MEMORY = 4 << 30  # bytes of pictures that are kept; those beyond are read again each time
_TOGETHER = 256  # pictures looked at in one go


@final
@dataclass(frozen=True)
class Table:
    """Picture files with the class of each: an index into ``classes``, or `OTHER`.

    >>> table = Table(("a.jpg", "b.jpg", "c.jpg"), (0, 1, 1), ("cat", "dog"))
    >>> len(table), table.counts
    (3, (1, 2))
    """

    files: tuple[str, ...]
    targets: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def counts(self) -> tuple[int, ...]:
        """Pictures of each class."""
        found = Counter(self.targets)
        return tuple(found[i] for i in range(len(self.classes)))

    def take(self, rows: Sequence[int]) -> "Table":
        """Some of the rows, in this order."""
        return Table(tuple(self.files[i] for i in rows), tuple(self.targets[i] for i in rows), self.classes)

    def hold_out(self, share: float, seed: int = 0) -> "tuple[Table, Table]":
        """The table without, and with nothing but, a share of each class's pictures, by lot.

        The lot goes by the names of pictures and their folders, so that what one table holds out another one does not
        train on, be it shorter or elsewhere. At least one of each class is held out, and at least one stays.
        Raises: InputError for what is no share.

        >>> [len(part) for part in Table(tuple("abcdef"), (0, 0, 0, 1, 1, 1), ("x", "y")).hold_out(0.3)]
        [4, 2]
        """
        if not 0 <= share < 1:
            raise InputError(f"the share to hold out is from 0 to below 1; it is {share}.")
        lot = sorted(range(len(self)), key=lambda i: _lot(self.files[i], seed))
        held = set[int]()
        for target in sorted(set(self.targets)):
            own = [i for i in lot if self.targets[i] == target]
            held.update(own[: min(max(1, round(share * len(own))), len(own) - 1)] if share else ())
        rows = range(len(self))
        return self.take([i for i in rows if i not in held]), self.take([i for i in rows if i in held])


def _lot(file: str, seed: int) -> bytes:
    name = "/".join(Path(file).parts[-2:])
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()


def read_table(place: str | os.PathLike[str], split: str = "", classes: Sequence[str] = ()) -> Table:
    """The pictures of a folder of class folders, or of a CSV file with the columns ``file``, ``class`` and ``split``.

    Files of a CSV are relative to it; an empty ``class`` is a picture of none of the classes (`OTHER`); ``split``
    takes the rows of that split only, or the class folders in the folder of that name. Classes are in alphabetical
    order unless ``classes`` gives them; what is hidden, and a class folder without pictures, is passed over.

    Raises: InputError where there is nothing to read, a class that is not among ``classes``, or twice there, or a
    picture of two classes.

    >>> read_table("nowhere")
    Traceback (most recent call last):
        ...
    camlucida.errors.InputError: 'nowhere' is neither a folder of class folders nor a CSV file.
    """
    path = Path(place)
    shown = printable(str(place))
    if path.is_dir():
        rows = _folder(path, split)
    elif path.is_file():
        rows = _csv(path, split)
    else:
        raise InputError(f"'{shown}' is neither a folder of class folders nor a CSV file.")
    found = sorted({name for _, name in rows if name})
    count = Counter(classes)
    for name in found if classes else ():
        if name not in count:
            raise InputError(f"'{shown}' has a class '{printable(name)}' of its own.{did_you_mean(name, classes)}")
        if count[name] > 1:
            raise InputError(f"'{printable(name)}' is the name of {count[name]} classes: which one cannot be told.")
    names = tuple(classes) or tuple(found)
    if not (found or (classes and rows)):  # where classes are given, pictures of none of them are something to ask of
        raise InputError(f"'{shown}' holds no picture of any class{f' in split {split!r}' if split else ''}.")
    index = {name: i for i, name in enumerate(names)} | {"": OTHER}
    return Table(tuple(file for file, _ in rows), tuple(index[name] for _, name in rows), names)


def _folder(path: Path, split: str) -> list[tuple[str, str]]:
    """Every picture below each class folder, by name."""
    inside = path / split
    if not inside.is_dir():
        raise InputError(f"'{printable(str(path))}' has no folder '{printable(split)}' for that split.")
    try:
        kinds = sorted(k for k in inside.iterdir() if k.is_dir() and not k.name.startswith("."))
        files = [(f, kind) for kind in kinds for f in sorted(kind.rglob("*")) if f.suffix.lower() in ENDINGS]
        return [(str(f), kind.name) for f, kind in files if f.is_file() and not _hidden(f.relative_to(kind))]
    except OSError as fault:
        raise InputError(f"cannot look into '{printable(str(path))}': {fault.strerror}.") from fault


def _hidden(inside: Path) -> bool:
    """Whether a file, or a folder on the way to it, such as one of thumbnails, is hidden."""
    return any(part.startswith(".") for part in inside.parts)


def _csv(path: Path, split: str) -> list[tuple[str, str]]:
    """Rows as (file, class); a row that stands there twice counts once, or it could be held out and learnt, too."""
    shown = printable(str(path))
    try:
        with open(path, encoding="utf-8-sig", newline="") as opened:
            rows = list(_cells(csv.reader(opened, strict=True), shown, split))
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise InputError(f"'{shown}' cannot be read as a CSV file: {fault}.") from fault
    found: dict[str, str] = {}
    for file, name in rows:
        if found.setdefault(str(path.parent / file), name) != name:
            both = f"'{printable(found[str(path.parent / file)])}' and as '{printable(name)}'"
            raise InputError(f"'{shown}' has the picture '{printable(file)}' as {both}: which is it?")
    return list(found.items())


def _cells(table: Iterable[list[str]], shown: str, split: str) -> Iterator[tuple[str, str]]:
    """File and class of each row of a split. Raises: InputError for a row of another length than the first."""
    lines = iter(table)
    columns = [name.strip() for name in next(lines, [])]
    asked = ["file", "class", *(["split"] if split else [])]
    if missing := sorted(set(asked) - set(columns)):
        hint = " Its columns must be separated by commas." if any(c in "".join(columns) for c in ";\t") else ""
        raise InputError(f"'{shown}' has no column {', '.join(missing)}: its first line names them.{hint}")
    at = [columns.index(name) for name in asked]
    for row in lines:
        if len(row) > len(columns):
            told = printable(",".join(row)[:80])
            raise InputError(f"'{shown}' has a row of {len(row)} columns, not {len(columns)}: {told}. Quote commas.")
        file, name, *own = ((row + [""] * len(columns))[i].strip() for i in at)
        if file and own in ([], [split]):
            yield file, name


# --------------------------------------------------------------------------------------------------------- pictures


@final
class Shelf:
    """The pictures of a table as 8-bit tensors ``c h w``, the shorter side no longer than ``side``: read when asked
    for, by several threads, and kept while there is room. Files that cannot be read are in ``faults``.
    """

    def __init__(self, files: Sequence[str], side: int, channels: int = 3, memory: int = _MEMORY) -> None:
        self.files, self.side, self.mode = tuple(files), side, "L" if channels == 1 else "RGB"
        self.kept: dict[int, Pixels] = {}
        self.faults: dict[int, str] = {}
        self.room = memory

    def sound(self) -> list[int]:
        """The rows whose pictures can be read; all are opened once."""
        fresh = [i for i in range(len(self.files)) if i not in self.kept]
        for start in range(0, len(fresh), _TOGETHER):  # not all at once: those that are not kept would pile up
            self.take(fresh[start : start + _TOGETHER])
        return [i for i in range(len(self.files)) if i not in self.faults]

    def take(self, rows: Sequence[int]) -> list[Pixels]:
        """These pictures, in order; those that cannot be read are left out."""
        absent = [i for i in dict.fromkeys(rows) if i not in self.kept and i not in self.faults]
        fresh: dict[int, Pixels] = {}
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for i, pixels in zip(absent, pool.map(self._read, absent), strict=True):
                if isinstance(pixels, str):
                    self.faults[i] = pixels
                elif pixels.numel() <= self.room:
                    self.kept[i], self.room = pixels, self.room - pixels.numel()
                else:
                    fresh[i] = pixels
        return [self.kept[i] if i in self.kept else fresh[i] for i in rows if i not in self.faults]

    def _read(self, i: int) -> Pixels | str:
        try:
            image = open_picture(self.files[i]).image
        except PictureError as fault:
            return str(fault)
        scale = self.side / min(image.size)
        if scale < 1:
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            image = image.resize(size, Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image.convert(self.mode)))
        return pixels.reshape(image.height, image.width, -1).permute(2, 0, 1).contiguous()
