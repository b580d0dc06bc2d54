"""Lay out the pictures of the built-in model: unpack the archives, name the classes, write two tables.

    python scripts/builtin_table.py ARCHIVES OUT

ARCHIVES is a folder with `caltech101_160.tar` and `pets_160.tar` (see docs/builtin.md for where they come from); OUT
gets the pictures, `first.csv` with 36 classes and `table.csv` with the 30 that are kept; columns file, class, split.
Pictures of the other classes are rows without a class: `test` has those of UNSEEN, which training never sees, `train`
those of the others. Classes that look too much like one that is kept are left out altogether.
"""

import csv
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

CLASSES = {
    "airplane": ["airplanes"], "bonsai": ["bonsai"], "butterfly": ["butterfly"], "car": ["car_side"],
    "cellphone": ["cellphone"], "chair": ["chair", "windsor_chair"], "chandelier": ["chandelier"],
    "cougar": ["cougar_body", "cougar_face"], "dolphin": ["dolphin"], "dragonfly": ["dragonfly"],
    "electric guitar": ["electric_guitar"], "elephant": ["elephant"], "ferry": ["ferry"],
    "flamingo": ["flamingo", "flamingo_head"], "grand piano": ["grand_piano"], "helicopter": ["helicopter"],
    "ibis": ["ibis"], "kangaroo": ["kangaroo"], "laptop": ["laptop"], "leopard": ["Leopards"], "llama": ["llama"],
    "motorbike": ["Motorbikes"], "pizza": ["pizza"], "rooster": ["rooster"], "sailing ship": ["ketch", "schooner"],
    "sea turtle": ["hawksbill"], "soccer ball": ["soccer_ball"], "starfish": ["starfish"], "stop sign": ["stop_sign"],
    "sunflower": ["sunflower"], "umbrella": ["umbrella"], "watch": ["watch"],
    "water lily": ["lotus", "water_lilly"], "wheelchair": ["wheelchair"], "cat": ["cat"], "dog": ["dog", "dalmatian"],
}  # fmt: skip
DROPPED = {"cellphone", "cougar", "dolphin", "ibis", "soccer ball", "wheelchair"}
"""Not learnt from so few pictures, by those held out of `first.csv`, or too close to another class."""
ALIKE = {"first": {"wild_cat"}, "table": {"wild_cat", "cougar_body", "cougar_face", "ibis"}}
UNSEEN = {
    "accordion", "barrel", "binocular", "buddha", "ceiling_fan", "crocodile", "dollar_bill", "ewer", "headphone",
    "joshua_tree", "mandolin", "metronome", "octopus", "panda", "pyramid", "saxophone", "sea_horse", "strawberry",
    "wrench",
}  # fmt: skip


def rows(archive: Path, out: Path) -> Iterator[tuple[str, str, str]]:
    """File, class folder and split of every picture of an archive, unpacked."""
    with tarfile.open(archive) as opened:
        opened.extractall(out, filter="data")
    folder = out / archive.stem
    with open(folder / "labels.csv", newline="") as table:
        for row in csv.DictReader(table):
            yield f"{folder.name}/{row['file']}", row["class"], row["split"]


def write(found: list[tuple[str, str, str]], out: Path, name: str) -> None:
    """One of the two tables."""
    kept = {k: v for k, v in CLASSES.items() if name == "first" or k not in DROPPED}
    named = {kind: label for label, kinds in kept.items() for kind in kinds}
    with open(out / f"{name}.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "class", "split"])
        for path, kind, split in sorted(found):
            if kind in named:
                table.writerow([path, named[kind], split])
            elif kind not in ALIKE[name] and (kind in UNSEEN) == (split == "test"):
                table.writerow([path, "", split])
    print(f"{out / f'{name}.csv'}: {len(kept)} classes")


def main(archives: Path, out: Path) -> None:
    found = [r for name in ("caltech101_160", "pets_160") for r in rows(archives / f"{name}.tar", out)]
    for name in ALIKE:
        write(found, out, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
