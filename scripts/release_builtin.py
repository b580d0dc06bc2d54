"""Put a trained model into the package as the built-in one, judged by pictures that it never saw.

    python scripts/release_builtin.py MODEL.safetensors TABLE.csv

Its card gets what it does on the table's split `test`; docs/builtin.md is written from that.
"""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

from builtin_table import UNSEEN

import camlucida as cl
from camlucida.cli.evaluate import record
from camlucida.cli.train import accuracy
from camlucida.gap.card import Card, read_card, save_model
from camlucida.gap.data import read_table
from camlucida.gap.evaluate import evaluate
from camlucida.models.builtin_source import place

PAGE = Path(__file__).resolve().parent.parent / "docs" / "builtin.md"
TEXT = """# The built-in model

`cl.load("builtin")`, and what `camlucida explain` asks where no model is named: {parameters:,} parameters
({megabytes:.1f} MB in 16 bits), {classes} classes of everyday things, pictures of {side} × {side} pixels, seen whole
(squashed to a square). It ends in global average pooling, so that its last feature maps are confidence maps of the
classes, {grid} × {grid} places. Made by `camlucida train` from nothing, on a processor, so that camlucida has something
to explain where there is no network; it is small, and learnt from few pictures: no yardstick for anything.

On {pictures:,} pictures that it never saw, the test split of its data sets, it is right in **{top1:.1%}**, in the mean
of the classes **{mean:.1%}**; its probabilities are off by {ece:.1%} in the mean (expected calibration error), after
the logits were divided by {temperature:.3f}, which was found on pictures held out of training.

It is to say when it does not know: an answer below {confident:.1%} is marked *low confidence*. That happens to
{low:.1%} of those test pictures, and to {other:.1%} of {others:,} pictures of {kinds} kinds that it knows nothing of
and that were in no part of its training. The rest of these it takes for something else with confidence: mind that.

| class | pictures | right |
|---|---|---|
{rows}

Most often mistaken: {confusions}.

## Where its evidence lies

Measured by `benchmarks/localisation.py` on pictures with masks or boxes:
[results](../benchmarks/results/localisation.md).

## How it was made

The pictures are not part of this repository: Caltech 101 (Li, Andreeto, Ranzato and Perona; CaltechDATA 2022,
CC BY 4.0) and, for cats and dogs, pictures of three breeds of the Oxford-IIIT Pet data set (Parkhi, Vedaldi, Zisserman
and Jawahar 2012, CC BY-SA 4.0 by its site), both with the short side at 160 pixels. The weights are under this
project's licence.

    python scripts/builtin_table.py ARCHIVES pictures
    camlucida train pictures/first.csv --split train -o first --option width=1.5 --threads 2 --until 50 \\
        --recipe scripts/builtin_first.json
    camlucida train pictures/table.csv --split train -o second --option width=1.5 --threads 2 --half \\
        --weights first/model.safetensors --recipe scripts/builtin_second.json
    python scripts/release_builtin.py second/model.safetensors pictures/table.csv

The first run learns to see from small views of all kinds but the 20 that are kept for the question what it does not
know, two fifths of its batches mixed from two pictures; it is ended before its rate of learning has fallen, and the
second goes on from there with larger views and the 30 classes: those everyday kinds (a trilobite, a brain and a
revolver were not taken for such) to whose held-out pictures the first run gave the highest probabilities. Pictures of
other kinds are shown in the second run with all classes equally probable as their target. A tenth of each class's
training pictures was held out of both runs, the same one.

No picture of the test split took part in training or in that ranking. But a test came before it: an earlier model, of
1.5 M parameters and thirty classes of which thirteen were others, was right in 86.2% of its test pictures (79.2% in
the mean of the classes), and that it was weak in some of them is why more kinds were considered. The two numbers are
of different classes: they do not tell how much better the net is.
"""


def page(card: Card, told: dict, parameters: int, size: int) -> str:
    """The page about a model, from its card and its record on the test pictures."""
    rows = "\n".join(f"| {r['class']} | {r['pictures']} | {r['right']:.0%} |" for r in told["classes"])
    wrong = ", ".join(f"{c['class']} for {c['taken_for']} ({c['pictures']})" for c in told["confusions"][:6])
    side = card.preprocess.size[0]
    return TEXT.format(
        parameters=parameters, megabytes=size / 1e6, classes=len(card.classes), side=side, grid=side // 8,
        pictures=told["pictures"], top1=told["top1"], mean=told["mean_per_class"], ece=told["calibration_error"],
        temperature=card.temperature, confident=card.confident, low=told["low_confidence"],
        other=told["none_of_these"]["low_confidence"], others=told["none_of_these"]["pictures"], kinds=len(UNSEEN),
        rows=rows, confusions=wrong,
    )  # fmt: skip


def main(model: str, table: str) -> None:
    loaded, card = cl.load(f"file:{model}"), read_card(model)
    pictures = read_table(table, "test", loaded.labels)
    found = evaluate(loaded, pictures, loaded.preprocess)
    told = record(loaded, pictures, found)
    seen = accuracy(found, card.classes, f"{told['pictures']} pictures of the test split")
    at = place()
    save_model(at.weights, loaded.net, replace(card, accuracy=seen), half=True)
    digest = hashlib.sha256(at.weights.read_bytes()).hexdigest()
    at.digest.write_text(f"{digest}  {at.weights.name}\n", encoding="ascii")
    count = sum(p.numel() for p in loaded.net.parameters())
    PAGE.write_text(page(card, told, count, at.weights.stat().st_size), encoding="utf-8")
    print(f"{told['top1']:.1%} of {told['pictures']} test pictures, mean of classes {told['mean_per_class']:.1%}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
