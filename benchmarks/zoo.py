"""Does the automatic choice of layer and layout hold over whole zoos? `make zoo` asks every architecture.

    python benchmarks/zoo.py                     # the smallest of each timm family, torchvision, transformers
    python benchmarks/zoo.py --all               # all of timm; the biggest last
    python benchmarks/zoo.py --page              # only write the page anew

One process a model, forked from one that has the libraries loaded, so that a crash, too much memory or too much time
loses one line and nothing else. What is done is skipped when the sweep is started again.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import zoo_nets
from zoo_nets import Entry
from zoo_page import page

ROOT = Path(__file__).resolve().parent.parent
LINES = ROOT / "benchmarks" / "results" / "zoo.jsonl"
SIZES = ROOT / "benchmarks" / "results" / "zoo_sizes.json"
PAGE = ROOT / "docs" / "zoo.md"
Line = dict[str, Any]

# ------------------------------------------------------------------------------------------------------------ one net


def look(entry: Entry) -> Line:
    """What the library makes of one net: the choice, what it cost, and whether its map is sound and in place."""
    from camlucida.core import layers
    from camlucida.core.capture import Inputs

    try:
        net, x = entry.build()
    except zoo_nets.NoPicture as reason:
        return {"status": "no picture", "why": str(reason)}
    except Exception as problem:
        if entry.short:  # it counts its blocks
            return look(replace(entry, short=False))
        return {"status": "not built", "why": _told(problem)}
    line: Line = {"parameters": sum(p.numel() for p in net.parameters()), "input": list(x.shape[1:])}
    line |= {"short": True} if entry.short else {}
    with torch.no_grad():
        passes = [0]
        counter = net.register_forward_pre_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
        choosing = _seconds(lambda: layers.survey(net, Inputs((x,)), complete=False))
        counter.remove()
        forward = _seconds(lambda: net(x))
    line |= {"forward": round(forward, 3), "forwards": round(choosing / forward, 2), "passes": passes[0]}
    return line | mapped(net, x)


def mapped(net: torch.nn.Module, x: torch.Tensor) -> Line:
    """The map that `explain` makes with nothing said, judged."""
    import camlucida as cl
    from camlucida.core import layers
    from camlucida.core.capture import Inputs

    e = cl.explain(net, x)
    line: Line = {"layer": e.layer, "layout": e.facts.layout, "map": list(e.map.shape[1:]), "status": e.statuses[0]}
    if line["status"] not in ("ok", "all-negative"):
        return line
    seen = layers.survey(net, Inputs((x,)))
    if seen.choice.name != e.layer:
        return line | {"status": "error", "why": f"a complete look chooses {seen.choice.name}"}
    return line | {"whole": seen.whole} | in_place(net, x, seen.places)


def in_place(net: torch.nn.Module, x: torch.Tensor, places: Sequence[Any]) -> Line:
    """Whether what changes in the last of the places covers the place of what changed in the picture.

    Where it does not, up to which place before it that is so: then what follows spreads every change over all places.
    """
    from camlucida.core.capture import Inputs
    from camlucida.core.probe import probe

    for place in reversed(places):
        reach = probe(net, Inputs((x,)), place.name, place.layout, torch.zeros(1, 1, *place.grid))
        if reach and place is places[-1]:
            first, step = ("×".join(f"{v:g}" for v in values) for values in (reach.start, reach.stride))
            why = f"what changes is not where cells from pixel {first} on, {step} apart, would have it"
            return {"status": "good"} if reach.right else {"status": "misplaced", "why": why}
        if reach and reach.right:
            grid = "×".join(map(str, place.grid))
            return {"status": "mixed", "why": f"in its place up to {place.name}, {grid}; what follows mixes all places"}
    return {"status": "not probed"}


def _seconds(what: Callable[[], object]) -> float:
    start = time.process_time()
    what()
    return time.process_time() - start


def _told(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:300]


# --------------------------------------------------------------------------------------------------- one process each


def guarded(entry: Entry, limit_seconds: float, limit_bytes: float) -> Line:
    """The line of one net, from a process of its own that may die of anything."""
    read, write = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(read)
        _in_child(entry, write)
    os.close(write)
    end = _watched(child, start + limit_seconds, limit_bytes)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    line: Line = json.loads(said) if said else {"status": end or "crashed"}
    if end:
        line["why"] = f"more than {limit_bytes / 2**30:g} GB" if "memory" in end else f"more than {limit_seconds:g} s"
    return line | {"seconds": round(time.monotonic() - start, 1)}


def _in_child(entry: Entry, write: int) -> None:
    line: Line
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            line = look(entry)
    except BaseException as problem:
        kind = "refused" if type(problem).__module__ == "camlucida.errors" else "error"
        line = {"status": kind, "why": _told(problem)}
    os.write(write, json.dumps(line).encode())
    os._exit(0)


def _watched(child: int, until: float, limit_bytes: float) -> str:
    """Wait for a process; end it where it takes too long or too much."""
    end = ""
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        time.sleep(0.05)
        if not end and (end := _over(child, until, limit_bytes)):
            os.kill(child, signal.SIGKILL)
    return end


def _over(child: int, until: float, limit_bytes: float) -> str:
    if time.monotonic() > until:
        return "out of time"
    return "out of memory" if _memory(child) > limit_bytes else ""


def _memory(process: int) -> int:
    """Bytes of a process in memory; nothing of one that has just ended."""
    with contextlib.suppress(OSError, StopIteration):
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))
    return 0


# ------------------------------------------------------------------------------------------------------------ the sweep


def wanted(asked: argparse.Namespace) -> list[Entry]:
    """What is to be looked at: of timm the smallest of each family first, and the others where all are asked for."""
    size = sizes()
    timm = sorted(zoo_nets.entries("timm"), key=lambda e: size[e.model])
    timm = [e for e in timm if size[e.model] <= asked.limit_parameters]
    smallest = {e.family: e for e in reversed(timm)}
    first = sorted(smallest.values(), key=lambda e: size[e.model])
    rest = [e for e in timm if e not in set(first)] if asked.all else []
    order = [*first, *zoo_nets.entries("torchvision"), *zoo_nets.entries("transformers"), *rest]
    order = [replace(e, short=e.source == "timm" and size[e.model] > asked.whole_parameters) for e in order]
    part, parts = map(int, asked.part.split("/"))
    return [e for e in order if asked.only in f"{e.source}/{e.model}"][part::parts]


def sizes() -> dict[str, int]:
    """Parameters of every net of timm, counted once for each version of it, and kept as they are counted."""
    version = importlib.metadata.version("timm")
    held = json.loads(SIZES.read_text(encoding="utf-8")) if SIZES.is_file() else {}
    known: dict[str, int] = held["parameters"] if held.get("version") == version else {}
    left = [e for e in zoo_nets.entries("timm") if e.model not in known]
    for number, entry in enumerate(left, 1):
        known[entry.model] = zoo_nets.parameters(entry)
        if number % 50 == 0 or number == len(left):
            print(f"counted {len(known)}", flush=True)
            SIZES.write_text(json.dumps({"version": version, "parameters": known}, indent=0) + "\n", encoding="utf-8")
    return known


def done(lines: Path) -> Iterator[Line]:
    """The lines written so far; one that was cut off in the middle is left out."""
    for text in lines.read_text(encoding="utf-8").splitlines() if lines.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(text)


def sweep(todo: list[Entry], lines: Path, limits: argparse.Namespace) -> None:
    """Look at each net that has no line yet, and say so."""
    known = {(line["source"], line["model"]) for line in done(lines)}
    if lines.is_file() and not lines.read_text(encoding="utf-8").endswith("\n"):
        lines.write_text("".join(json.dumps(line) + "\n" for line in done(lines)), encoding="utf-8")
    todo = [e for e in todo if (e.source, e.model) not in known]
    for number, entry in enumerate(todo, 1):
        line = {"source": entry.source, "family": entry.family, "model": entry.model}
        line |= guarded(entry, limits.limit_seconds, limits.limit_gigabytes * 2**30)
        with lines.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line | {"versions": _versions()}) + "\n")
        told = " ".join(str(line.get(k, "")) for k in ("layer", "layout", "map", "forwards", "why"))
        net = f"{entry.source}/{entry.model}"
        print(f"{number}/{len(todo)} {net}: {line['status']} {line['seconds']} s {told}", flush=True)


def _versions() -> dict[str, str]:
    from camlucida.version import __version__

    guests = {n: importlib.metadata.version(n) for n in ("torch", "timm", "torchvision", "transformers")}
    return {"camlucida": __version__} | guests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every net of timm, not only the smallest of each family")
    parser.add_argument("--page", action="store_true", help="write the page from the lines there are, look at nothing")
    parser.add_argument("--only", default="", help="only models whose source/name holds this")
    parser.add_argument("--limit-seconds", type=float, default=300, help="for each model")
    parser.add_argument("--limit-gigabytes", type=float, default=6, help="of memory, for each model")
    parser.add_argument("--limit-parameters", type=float, default=float("inf"), help="leave out larger nets of timm")
    parser.add_argument("--whole-parameters", type=float, default=5e7, help="larger of timm lose blocks made alike")
    parser.add_argument("--part", default="0/1", help="0/2 and 1/2: every second one, for two processes at once")
    parser.add_argument("--lines", type=Path, default=LINES)
    asked = parser.parse_args()
    if not asked.page:
        torch.set_num_threads(1)
        _guests()
        sweep(wanted(asked), asked.lines, asked)
    PAGE.write_text(page(list(done(asked.lines))), encoding="utf-8")


def _guests() -> None:
    """Load the libraries before the first fork; nothing is ever asked of a hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if shim := os.environ.get("CAMLUCIDA_TORCHVISION_SHIM"):
        spec = importlib.util.spec_from_file_location("torchvision_shim", shim)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.hook()
    ours = ("camlucida.core.explain", "camlucida.core.probe")
    for name in (*ours, "timm", "torchvision", "transformers", "transformers.models.auto.modeling_auto"):
        importlib.import_module(name)


if __name__ == "__main__":
    main()
