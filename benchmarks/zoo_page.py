"""docs/zoo.md from the lines that zoo.py wrote."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

Line = dict[str, Any]

HEAD = """# Zoo

What the automatic choice of layer and layout makes of whole zoos, with nothing said but `explain(model, x)`. Made by
`make zoo`; do not edit. The lines it is made from are in
[benchmarks/results/zoo.jsonl](../benchmarks/results/zoo.jsonl); a net that is not among them has not been asked yet, or
not to the end.

The nets have random weights: what is asked is whether a layer is found, and whether its grid is read right, and neither
needs training. The weights are not what the authors' initialisation would draw, but noise scaled by fan-in, kernels
even and strongest in their middle, norms at the identity (but batch norms keep the signal in bounds). What an
author sets to zero or nearly so to begin training (a last layer, a residual branch) is filled, too: such a net has the
same score for every picture until it is trained, and no map of it can be right. Configurations of transformers are the
library's own with at most three blocks where there are many. A net of timm with more than 50 million parameters that
is marked **short** has kept two of every row of blocks made alike; all else is as it was. Each net is asked with one
picture of noise, of the size it is made for, on one thread.

A map is **good** only if it is finite, not flat, and in its place: patches of noise are put into an empty picture, one
at a time, and what changes in the layer lies where the patch is (or where patches of the picture itself are replaced).
*Cost* is what the choice took, in forward passes of the same net (CPU time; once for each model and shape of input,
nothing afterwards); *seconds* are all of it: building the net, choosing, the map and the probe. Both were taken with
two nets at a time on the threads of one core: benchmarks/own.py measures the cost of the choice in peace.
"""

STATUS = {
    "good": "finite, not flat, and in its place; *one branch of several* where no one layer carries all the evidence",
    "mixed": "sound, and in its place up to a layer before the chosen one: behind that the random net spreads every "
    "change over all places, so that nothing can be said of the place of what is chosen",
    "misplaced": "what changes in the layer was not found where the patch was: its grid is read wrong, or its blocks "
    "look further to one side than the graph tells",
    "not probed": "the map is sound, but no place of the layer changed clearly more than all others do: nothing "
    "can be said of its place",
    "zero gradient": "the score does not depend on the layer",
    "constant": "one value at every place",
    "no evidence": "zero at every place, within rounding",
    "non-finite": "not all numbers finite",
    "refused": "an error that says why",
    "error": "an error of another kind: of the net itself, or ours",
    "no picture": "the library lists it, but what it is called with is no picture",
    "not built": "the library did not make the net, or the net did not take a picture",
    "out of time": "more seconds than the limit",
    "out of memory": "more bytes than the limit",
    "crashed": "the process ended",
}


def page(lines: Sequence[Line]) -> str:
    """The whole page; of two lines of one net the later counts."""
    last = {(line["source"], line["model"]): line for line in lines}
    rows = sorted(last.values(), key=lambda line: (line["source"], line["family"], line["model"]))
    odd = [line for line in rows if line["status"] != "good"]
    parts = [HEAD, _versions(rows), _summary(rows)]
    if odd:
        parts.append("## Exceptions\n\n" + _table("net | status | layer | why", map(_exception, odd)))
    good = [line for line in rows if line["status"] == "good"]
    parts.append("## Good\n\n" + _table("net | parameters | layer | layout | map | cost | seconds", map(_good, good)))
    return "\n".join(parts)


def _versions(rows: Sequence[Line]) -> str:
    told = Counter(", ".join(f"{n} {v}" for n, v in line["versions"].items()) for line in rows)
    return "Seen with " + "; ".join(told) + ".\n"


def _summary(rows: Sequence[Line]) -> str:
    sources = dict.fromkeys(line["source"] for line in rows)
    counts = {s: Counter(line["status"] for line in rows if line["source"] == s) for s in sources}
    families = {s: len({line["family"] for line in rows if line["source"] == s}) for s in sources}
    seen = [s for s in STATUS if any(c[s] for c in counts.values())]
    body = [[s, families[s], sum(counts[s].values()), *(counts[s][name] or "" for name in seen)] for s in sources]
    costs = sorted(line["forwards"] for line in rows if "forwards" in line)
    said = f"The choice cost {costs[len(costs) // 2]} forwards in the median.\n" if costs else ""
    told = "\n".join(f"- **{name}**: {STATUS[name]}" for name in seen)
    return f"{_table(' | '.join(['source', 'families', 'nets', *seen]), body)}\n{told}\n\n{said}"


def _exception(line: Line) -> Sequence[Any]:
    return _name(line), line["status"], _code(line.get("layer", "")), line.get("why", "")


def _good(line: Line) -> Sequence[Any]:
    grid = "×".join(map(str, line["map"]))
    millions = f"{line['parameters'] / 1e6:.1f} M"
    layer = _code(line["layer"]) + ("" if line.get("whole", True) else ", one branch of several")
    millions += ", short" if line.get("short") else ""
    return _name(line), millions, layer, line["layout"], grid, line["forwards"], line["seconds"]


def _name(line: Line) -> str:
    return f"{line['source']}/{line['model']}"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(head: str, body: Any) -> str:
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in body]
    bar = "|".join("---" for _ in head.split("|"))
    return "\n".join([f"| {head} |", f"|{bar}|", *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"
