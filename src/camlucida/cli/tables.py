"""The three lists: layers of a model, methods of the registry, models of all sources."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.text import Text

from camlucida.cli import asked, blame, screen
from camlucida.core import layers as layers_
from camlucida.core.capture import Inputs
from camlucida.core.layers import Place, Survey
from camlucida.core.prepare import first_convolution
from camlucida.errors import CamlucidaError, InputError, LayerError, ModelError
from camlucida.models import Model, Names, listing
from camlucida.registry import Method, list_methods


def layers(model: Model, size: str | None, every: bool, as_json: bool) -> int:
    """Print the layers of a model, and the choice; the exit status.

    Raises: LayerError where there is none; InputError where it cannot be told what the model takes.
    """
    seen, shape = _seen(model, size or "")
    rows = [_layer(place, seen) for place in (seen.all if every else seen.places)]
    if as_json:
        for row in rows:
            screen.as_json(row)
        return 0
    made = screen.table("", "layer", "kind", "shape", "layout", "grid", "used", right=("used",), cut=("kind",))
    for row in rows:
        made.add_row(*map(Text, _words(row)), style="bold green" if row["choice"] else None)
    screen.out().print(made)
    if not seen.whole:
        screen.note("no single layer carries all the evidence: → is one branch of several")
    screen.note("→ is chosen where no layer is named; used: the share of a layer's places that the score depends on")
    screen.note(f"seen with an input of {'×'.join(map(str, shape))}; {len(seen.all)} layers have space (--all)")
    return 0


def _seen(model: Model, said: str) -> tuple[Survey, tuple[int, ...]]:
    """The layers, and the shape of the input that showed them: the first that the model takes."""
    tried: list[CamlucidaError] = []
    for shape in _shapes(model, said):
        try:
            return _survey(model, shape), shape
        except (ModelError, LayerError) as problem:
            tried.append(problem)
    axes, channels = first_convolution(model.net)
    if axes in (3, 5) and not said:
        such = f"{channels}x256" if axes == 3 else f"{channels}x32x64x64"
        raise InputError(f"this model takes {axes - 1} axes, channels first: say their sizes, as in --size {such}.")
    raise tried[-1] if len(tried) > 1 and isinstance(tried[0], ModelError) else tried[0]


def _shapes(model: Model, said: str) -> Iterator[tuple[int, ...]]:
    """What the model may be seen with, channels first: what was said; its own; as its first convolution has it."""
    sizes = tuple(map(int, said.split("x"))) if re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})*", said) else ()
    if said and not sizes:
        shown = screen.safe(said[:40])
        raise InputError(f"--size is a side, or all sizes with channels first, as in 6x64x64; got '{shown}'.")
    if len(sizes) > 1:
        yield sizes
        return
    own = model.preprocess
    yield (own.channels, *(sizes * 2 or own.size))
    axes, channels = first_convolution(model.net)
    if channels and axes == 4 and channels != own.channels:
        yield (channels, *(sizes * 2 or own.size))
    elif channels and axes in (3, 5) and sizes:
        yield (channels, *sizes * (axes - 2))


def _survey(model: Model, shape: tuple[int, ...]) -> Survey:
    """Seen with noise: an even picture would leave half of the net silent."""
    try:
        x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    except RuntimeError as fault:
        raise InputError(f"an input of {'×'.join(map(str, shape))} does not fit into memory.") from fault
    like = next((p for p in model.net.parameters() if p.is_floating_point()), x)
    with blame.of_model(f"on an input of {'×'.join(map(str, shape))}"):
        return layers_.survey(model.net, Inputs((x.to(like.device, like.dtype),)))


def _layer(place: Place, seen: Survey) -> dict[str, Any]:
    return {
        "layer": place.name,
        "kind": place.kind,
        "shape": list(place.shape),
        "layout": str(place.layout),
        "grid": list(place.grid),
        "used": place.share,
        "choice": place == seen.choice,
    }


def _words(row: dict[str, Any]) -> tuple[str, ...]:
    shape, grid = ("×".join(map(str, sizes)) for sizes in (row["shape"][1:], row["grid"]))
    mark = "→" if row["choice"] else ""
    return mark, screen.safe(row["layer"]), row["kind"], shape, row["layout"], grid, screen.percent(row["used"])


def methods(names: str, as_json: bool) -> int:
    """Print the methods, or all that is true of those named; the exit status. Raises: MethodError."""
    known = asked.methods(names) if names else list(list_methods().values())
    if as_json:
        for method in known:
            screen.as_json(_method(method))
    elif names:
        for method in known:
            _tell(method)
    else:
        made = screen.table("name", "method", "needs", "cost", cut=("cost",))
        for m in known:
            needs = m.needs + (", any class" if m.class_agnostic else "")
            made.add_row(Text(m.name, "bold"), m.title, needs, m.cost)
        screen.out().print(made)
        screen.note("camlucida methods NAME tells more: formula, paper, options, where it differs, what it is blind to")
    return 0


def models(pattern: str, as_json: bool) -> int:
    """Print the models that fit a pattern, all without one; the exit status. Raises: ModelError where there is none.

    On a terminal without a pattern, each source and how many it has: all would be thousands of lines.
    """
    found = list(listing(pattern))
    if len(found) == 1 and found[0].trouble and not as_json:
        raise ModelError(found[0].trouble)
    for each in (e for e in found if e.trouble and not as_json):
        screen.note(f"{each.form}: {each.trouble}")
    if as_json:
        _models_as_json(found)
    elif screen.out().is_terminal and not pattern:
        _sources(found)
    else:
        for name in (n for each in found for n in each.names):
            screen.line(Text(screen.safe(name)), screen.out())
    if pattern and not any(e.names for e in found):
        raise ModelError(f"no model fits '{screen.safe(pattern[:80])}': `camlucida models` tells the sources.")
    return 0


def _models_as_json(found: Sequence[Names]) -> None:
    for each in found:
        for name in each.names:
            screen.as_json({"source": each.source, "name": name})
        if each.trouble:
            screen.as_json({"source": each.source, "error": each.trouble})


def _sources(found: Sequence[Names]) -> None:
    made = screen.table("source", "models", "such as", right=("models",), cut=("such as",))
    for each in found:
        some = ", ".join(each.names[:: max(1, len(each.names) // 3)][:3])
        made.add_row(Text(each.form, "bold"), str(len(each.names) or ""), Text(screen.safe(some)))
    screen.out().print(made)
    screen.note("camlucida models PATTERN lists names: camlucida models 'timm/*convnext*'")


def _tell(m: Method) -> None:
    """Everything about one method, a line each."""
    where = screen.out()
    screen.line(Text.assemble((m.title, "bold"), f"  {m.formula}"), where)
    options = ", ".join(f"{k}={v}" for k, v in m.choices.items())
    rows = {
        "name": m.name, "paper": m.paper, "needs": m.needs, "any class": "yes" if m.class_agnostic else "",
        "cost": f"{m.cost} (in forward passes)", "options": options,
        "deviates": "" if m.deviations == "none" else m.deviations, "blind to": m.insensitive,
    }  # fmt: skip
    for name, text in rows.items():
        if text:
            screen.line(Text.assemble((f"  {name:10}", "dim"), text), where)


def _method(m: Method) -> dict[str, Any]:
    names = ("name", "title", "paper", "formula", "needs", "at", "class_agnostic", "cost", "deviations", "insensitive")
    return {name: getattr(m, name) for name in names} | {"options": m.choices}
