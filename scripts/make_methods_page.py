"""Write docs/methods.md from the registry: `python scripts/make_methods_page.py`."""

from pathlib import Path

from camlucida.registry import Method, list_methods

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
HEAD = """# Methods

Made from the registry by `make docs`; do not edit. `A` is the layer's activation, `G` the gradient of the score at it,
`⟨·⟩` the mean over places, `W` the weights of a linear head. Maps are raw and signed: the ReLU that most papers end
with is a separate step. Cost is in forward passes of the same model and batch; *tail* is what follows the layer.
Papers are keys of [papers.bib](papers.bib).

| name | method | map | needs | class-agnostic | cost | paper |
|---|---|---|---|---|---|---|
"""


def row(m: Method) -> str:
    agnostic = "yes" if m.class_agnostic else "no"
    return f"| `{m.name}` | {m.title} | {m.formula} | {m.needs} | {agnostic} | {m.cost} | {m.paper} |"


def page() -> str:
    known = list_methods().values()
    notes = "\n".join(f"- **{m.title}**: {m.deviations}." for m in known if m.deviations != "none")
    return HEAD + "\n".join(map(row, known)) + "\n\n## Where we differ from the paper\n\n" + notes + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
