"""Write docs/methods.md from the registry: `python scripts/make_methods_page.py`."""

from pathlib import Path

from camlucida.registry import Method, list_methods

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
HEAD = """# Methods

![Every method on a cat above a cup, asked for each of them, and on a rocket](pictures/methods.jpg)

*One trained net, SqueezeNet 1.1, asked for "Egyptian cat" and for "cup" of one picture, and for "missile" of another.
A column with the same heat in its first two rows is blind to the class. Heat is the positive part of a map over its
largest value, at the pixels over the 99th percentile; methods at a layer read `features.12`; RISE took 300 masks. Not
here: CAM, whose linear head the net has not, and what needs attention. Photos from scikit-image: cat by Stefan van der
Walt, CC0; cup by Rachel Michetti, CC0; rocket by SpaceX, public domain. Made by `benchmarks/montage.py`.*

Made from the registry by `make docs`; do not edit. `A` is the layer's activation, `G` the gradient of the score at it,
`⟨·⟩` the mean over places, `W` the weights of a linear head. Maps are raw and signed: the ReLU that most papers end
with is a separate step. Cost is in forward passes of the same model and batch; *tail* is what follows the layer.
Papers are keys of [papers.bib](papers.bib).

| name | method | map | needs | class-agnostic | cost | paper |
|---|---|---|---|---|---|---|
"""


ORDER = ("head", "gradient", "activation", "model", "attention")
OPTIONS = (
    "After the name, separated by colons, as in `rise:samples=500`; in Python also `get(name).having(samples=500)`.\n\n"
)


def row(m: Method) -> str:
    agnostic = "yes" if m.class_agnostic else "no"
    cells = (f"`{m.name}`", m.title, m.formula, m.needs, agnostic, m.cost, m.paper)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def choices(m: Method) -> str:
    """The options of a method with their defaults, as a command line takes them."""
    return f"- `{m.name}`: " + ", ".join(f"`{k}={v}`" for k, v in m.choices.items())


def page() -> str:
    known = sorted(list_methods().values(), key=lambda m: ORDER.index(m.needs))
    blind = "\n".join(f"- **{m.title}** is blind to {m.insensitive}." for m in known if m.insensitive)
    asked = "\n".join(choices(m) for m in known if m.choices)
    notes = "\n".join(f"- **{m.title}**: {m.deviations}." for m in known if m.deviations != "none")
    parts = {"Options": OPTIONS + asked, "Known to fail sanity checks": blind, "Where we differ from the paper": notes}
    told = "".join(f"\n\n## {title}\n\n{text}" for title, text in parts.items())
    return HEAD + "\n".join(map(row, known)) + told + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
