"""Does the evidence lie on the object? Pointing game and energy inside, on pictures with boxes and masks.

    python benchmarks/localisation.py MATERIAL [--model builtin] [--methods cam,layercam] [--out FILE.md]

MATERIAL is a folder with `annotations.json` (`images`: file, width, height, boxes, polygons, mask). A picture counts
for a class that it shows and that is among the model's five best answers. *Energy* is the share of the positive map
inside the masks of the class (its boxes where there are none), *pointing* how often the map's peak lies inside;
*chance* is the share of the picture that the masks cover, and the method `centre` a bell in the middle, whatever the
picture.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import camlucida as cl

SAME = {  # a label of the built-in model → the classes of the annotations that it means
    "airplane": ["airplane"], "car": ["car"], "cat": ["cat"], "dog": ["dog"], "elephant": ["elephant"],
    "chair": ["chair"], "pizza": ["pizza"], "motorbike": ["motorcycle"], "umbrella": ["umbrella"],
    "stop sign": ["stop sign"], "laptop": ["laptop"], "sailing ship": ["boat"], "ferry": ["boat"],
}  # fmt: skip
Scores = tuple[float, float, float]  # energy, pointing, chance


def mask_of(told: Mapping[str, Any], folder: Path, kinds: list[str]) -> Tensor:
    """Where the picture shows one of these classes."""
    size = told["width"], told["height"]
    if told.get("mask"):
        with Image.open(folder / told["mask"]) as drawn:
            return torch.from_numpy(np.array(drawn.convert("L")) == 255)
    page = Image.new("1", size)
    pen = ImageDraw.Draw(page)
    shapes = [p for p in told.get("polygons") or () if p["class"] in kinds]
    for shape in shapes:
        pen.polygon(list(zip(shape["xy"][::2], shape["xy"][1::2], strict=True)), fill=1)
    for box in () if shapes else (b for b in told["boxes"] if b["class"] in kinds):
        pen.rectangle(box["xyxy"], fill=1)
    return torch.from_numpy(np.array(page))


def pairs(folder: Path, labels: tuple[str, ...]) -> Iterator[tuple[str, str, Tensor]]:
    """Each picture with each of the model's classes that it shows, and where."""
    for told in json.loads((folder / "annotations.json").read_text())["images"]:
        shown = {box["class"] for box in told["boxes"]}
        for label in labels:
            kinds = SAME.get(label, [label])
            if shown & set(kinds):
                yield str(folder / told["file"]), label, mask_of(told, folder, kinds)


def scores(e: cl.Explanation, mask: Tensor) -> Scores:
    """Energy inside, whether the peak is inside, and the share of the picture that the mask covers."""
    heat = e.heatmap()
    total = float(heat.sum())
    peak = bool(mask.flatten()[heat.flatten().argmax()]) if total else False
    return float(heat[mask].sum()) / total if total else 0.0, float(peak), float(mask.float().mean())


def main(material: Path, name: str, methods: list[str]) -> str:
    """The table, as text."""
    model = cl.load(name)
    found: dict[tuple[str, str], list[Scores]] = defaultdict(list)
    for file, label, mask in pairs(material, model.labels):
        maps = cl.sweep(model, file, targets=[label], methods=[*methods, "centre"])
        best = maps[0].logits[0].topk(5).indices.tolist()
        if model.labels.index(label) in best and mask.any():
            for e in maps:
                for group in (label, "all"):
                    found[group, e.facts.title].append(scores(e, mask))
    lines = ["| class | method | pictures | energy inside | pointing | chance |", "|---|---|---|---|---|---|"]
    for (label, title), rows in sorted(found.items(), key=lambda item: item[0][0]):
        energy, peak, area = np.mean(rows, axis=0)
        lines.append(f"| {label} | {title} | {len(rows)} | {energy:.3f} | {peak:.3f} | {area:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("material", type=Path)
    words.add_argument("--model", default="builtin")
    words.add_argument("--methods", default="cam,layercam")
    words.add_argument("--out", type=Path)
    asked = words.parse_args()
    table = main(asked.material, asked.model, asked.methods.split(","))
    print(table)
    if asked.out:
        asked.out.write_text(f"# Where the evidence of {asked.model} lies\n\n{table}\n", encoding="utf-8")
