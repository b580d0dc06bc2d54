"""Lay out the pictures of the built-in model: unpack the archives, name the classes, write two tables.

    python scripts/builtin_table.py ARCHIVES OUT

ARCHIVES is a folder with `caltech101_160.tar` and `pets_160.tar` (see docs/builtin.md for where they come from); OUT
gets the pictures and two tables with the columns file, class, split. `first.csv` has every kind but those of UNSEEN as
a class, so that the net learns to see from all there is; `table.csv` has the classes of KEPT, and pictures of other
kinds as rows without a class: `test` has those of UNSEEN, which no training ever sees, `train` those of the others.
Kinds that look too much like one that is kept are left out of it.
"""

import csv
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

NAMES = {
    "airplanes": "airplane", "car_side": "car", "windsor_chair": "chair", "cougar_body": "cougar",
    "cougar_face": "cougar", "flamingo_head": "flamingo", "Leopards": "leopard", "Motorbikes": "motorbike",
    "ketch": "sailing ship", "schooner": "sailing ship", "hawksbill": "sea turtle", "lotus": "water lily",
    "water_lilly": "water lily", "dalmatian": "dog",
}  # fmt: skip
"""Kinds whose class has another name, or is that of another kind, too."""
KEPT = {
    "accordion", "airplane", "bonsai", "camera", "car", "cat", "dog", "dollar bill", "euphonium", "gramophone",
    "grand piano", "inline skate", "joshua tree", "laptop", "leopard", "menorah", "minaret", "motorbike", "pagoda",
    "pizza", "rhino", "sailing ship", "scissors", "sea turtle", "soccer ball", "stop sign", "sunflower", "umbrella",
    "watch", "water lily",
}  # fmt: skip
"""The thirty everyday kinds, cat and dog among them, to whose held-out pictures the first run gave the highest
probabilities in the mean, after 49 of its 50 epochs: what can be learnt from so few pictures."""
ALIKE = {"wild cat"}
UNSEEN = {
    "anchor", "barrel", "binocular", "buddha", "ceiling fan", "crocodile", "crocodile head", "ewer", "gerenuk",
    "headphone", "mandolin", "metronome", "octopus", "panda", "platypus", "pyramid", "saxophone", "sea horse",
    "strawberry", "wrench",
}  # fmt: skip


def rows(archive: Path, out: Path) -> Iterator[tuple[str, str, str]]:
    """File, class and split of every picture of an archive, unpacked."""
    with tarfile.open(archive) as opened:
        opened.extractall(out, filter="data")
    folder = out / archive.stem
    with open(folder / "labels.csv", newline="") as table:
        for row in csv.DictReader(table):
            kind = row["class"]
            yield f"{folder.name}/{row['file']}", NAMES.get(kind, kind.replace("_", " ")), row["split"]


def first(name: str, _split: str) -> str | None:
    """The class of a picture in `first.csv`; None where it has no row there."""
    return None if name in UNSEEN else name


def table(name: str, split: str) -> str | None:
    """The class of a picture in `table.csv`, empty for none of them; None where it has no row there."""
    if name in KEPT:
        return name
    return "" if name not in ALIKE and (name in UNSEEN) == (split == "test") else None


def main(archives: Path, out: Path) -> None:
    found = sorted(r for name in ("caltech101_160", "pets_160") for r in rows(archives / f"{name}.tar", out))
    for chosen in (first, table):
        told = [(file, label, split) for file, name, split in found if (label := chosen(name, split)) is not None]
        with open(out / f"{chosen.__name__}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("file", "class", "split"), *told])
        print(f"{out / chosen.__name__}.csv: {len({label for _, label, _ in told if label})} classes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
