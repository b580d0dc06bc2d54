"""The files that a run writes: their names, all known before it begins, and what goes into each."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from camlucida import view
from camlucida.core.explanation import Explanation
from camlucida.errors import OutputError
from camlucida.files import printable, unique_names, write_whole

_ENDINGS = {"panel": ".png", "grid": ".png", "overlay": ".png", "npz": ".npz", "safetensors": ".safetensors"}
_ENDINGS |= {"nifti": ".nii.gz", "gif": ".gif", "mp4": ".mp4"}


@dataclass(frozen=True)
class Outputs:
    """Where every picture's files go: one page of all panels or overlays, or a file for each of several maps."""

    form: str
    files: tuple[tuple[Path, ...], ...]

    def save(self, i: int, explanations: Sequence[Explanation]) -> list[str]:
        """Write picture ``i``; each file is there whole or not at all. Raises: OutputError."""
        files = self.files[i]
        if self.form in PAGES:
            sheet = PAGES[self.form](explanations)
            write_whole(files[0], lambda out: _png(sheet, out))
        else:
            for file, explanation in zip(files, explanations, strict=True):
                explanation.save(file)
        return [str(file) for file in files]


def plan(sources: Sequence[str], tags: Sequence[str], form: str, folder: Path) -> Outputs:
    """The names of all files, no two alike.

    Raises: OutputError where one of them is one of the pictures.

    >>> plan(["cat.jpg"], ["top1-gradcam", "top2-gradcam"], "npz", Path("out")).files[0][1].name
    'cat-top2-gradcam.npz'
    """
    apart = form not in PAGES and len(tags) > 1
    endings = [f"-{tag}{_ENDINGS[form]}" for tag in tags] if apart else [_ENDINGS[form]]
    files = tuple(zip(*(unique_names(sources, ending, folder) for ending in endings), strict=True))
    inputs = {key: source for source in sources for key in _identity(source)}
    for file in (f for group in files for f in group):
        if (same := next((inputs[key] for key in _identity(file) if key in inputs), None)) is not None:
            raise OutputError(f"{printable(str(file))} would overwrite {printable(same)}: choose another --out.")
    return Outputs(form, files)


def _identity(path: str | Path) -> Iterator[object]:
    try:
        found = os.stat(path)
        yield found.st_dev, found.st_ino
    except (OSError, ValueError):
        return


def check_folder(folder: Path) -> None:
    """Raises: OutputError where nothing can be written to this folder, before any work is done.

    >>> check_folder(Path("anywhere", "new"))
    """
    said = f"cannot write to '{printable(str(folder))}'"
    try:
        above = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
        mode = os.stat(above).st_mode
    except (OSError, ValueError) as fault:
        raise OutputError(f"{said}: {fault}.") from fault
    if not stat.S_ISDIR(mode):
        raise OutputError(f"{said}: '{printable(str(above))}' is not a folder.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"{said}: no permission to write to '{printable(str(above))}'.")


def stacked(pages: Sequence[Image.Image]) -> Image.Image:
    """Pages beneath each other, on white.

    >>> stacked([Image.new("RGB", (4, 3)), Image.new("RGB", (5, 2))]).size
    (5, 5)
    """
    if len(pages) == 1:
        return pages[0]
    sheet = Image.new("RGB", (max(p.width for p in pages), sum(p.height for p in pages)), "white")
    top = 0
    for page in pages:
        sheet.paste(page, (0, top))
        top += page.height
    return sheet


def grid(explanations: Sequence[Explanation]) -> Image.Image:
    """The overlays of one picture's maps: a row for each target, beside the picture a column for each method.

    What is no picture does not fit into such a place: its panels stand beneath each other.
    """
    if len(explanations[0].pictures.space) != 2:
        return stacked([e.panel() for e in explanations])
    across = list(dict.fromkeys(e.facts.title for e in explanations))
    down = [explanations[i : i + len(across)] for i in range(0, len(explanations), len(across))]
    cells = [[None if i else row[0].pictures.image(0), *map(_cell, row)] for i, row in enumerate(down)]
    return view.montage(cells, row_labels=[_odds(row[0]) for row in down], column_labels=["picture", *across])


def _cell(e: Explanation) -> Image.Image | None:
    """An overlay; an empty place where the map is blank."""
    return e.overlay() if e.status == "ok" else None


def _odds(e: Explanation) -> str:
    p = e.probability()
    return e.label() if p is None else f"{e.label()} {p:.0%}"


PAGES: dict[str, Callable[[Sequence[Explanation]], Image.Image]] = {
    "panel": lambda found: stacked([e.panel() for e in found]),
    "grid": grid,
}
"""The forms that show all maps of a picture on one page."""


def _png(sheet: Image.Image, out: BinaryIO) -> None:
    sheet.save(out, "PNG", compress_level=1)
