"""The house keeps its own laws: directions, budgets, public names, what is loaded when, what the docs promise."""

import ast
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import camlucida
from camlucida import errors
from camlucida.registry import list_methods

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "camlucida"
FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """The rooms and packages that a file imports at any level, type checking left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(("camlucida", *path.relative_to(SOURCE).parts[: -node.level], *filter(None, [base])))
            yield from (f"{base}.{a.name}" for a in node.names)


BELOW = {  # what a room may know of the house; the longest matching prefix of its name counts
    "": "version core errors frame models registry",
    "errors": "", "version": "", "pixels": "errors", "files": "errors",
    "types": "frame", "registry": "errors types methods", "frame": "errors pixels",
    "voxels": "errors files images", "volumes": "errors files images voxels", "clips": "errors files images",
    "images": "errors files pixels", "maps": "types frame", "methods": "errors maps methods registry types",
    "core": "errors types registry maps frame images files version core view clips volumes voxels",
    "core.explain": "core errors frame maps registry tasks types version",
    "core.scope": "errors", "core.structure": "", "core.layouts": "errors types",
    "core.capture": "core.gradients core.inputs core.outputs core.scope core.structure errors types",
    "core.gradients": "",
    "core.scores": "errors types", "core.rules": "errors", "core.biases": "core.gradients errors types",
    "core.targets": "core.outputs core.scores errors types", "core.outputs": "core.structure errors types",
    "view": "errors view", "gap": "core errors files frame gap images types version",
    "models": "core.scope errors frame files gap images models types",
    "compat": "core errors maps view types compat",
    "cli": "cli core errors files frame gap images models registry version view load explain sweep classes rank top",
    "combine": "core combine errors frame images maps registry types",
    "concepts": "core errors frame maps registry types view",
    "upsample": "core errors", "tasks": "core errors frame maps registry tasks types",
}  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=room)
def test_imports_go_one_way(path: Path) -> None:
    name = room(path)
    rule = max((r for r in BELOW if name == r or name.startswith(r + ".") or not r), key=len)
    known = [i.removeprefix("camlucida.") for i in imports(path) if i.startswith("camlucida.")]
    strangers = [i for i in known if not any(i == b or i.startswith(b + ".") for b in BELOW[rule].split())]
    assert not strangers, f"{name} may know {BELOW[rule]}"


def test_the_view_knows_no_torch_and_nobody_knows_the_shell() -> None:
    for path in FILES:
        packages = {i.split(".")[0] for i in imports(path)}
        if room(path).startswith("view"):
            assert not packages & {"torch", "matplotlib", "torchvision"}, path
        if room(path).split(".")[0] != "cli":
            assert not any(f"{i}.".startswith("camlucida.cli.") for i in imports(path)), path


def test_only_sources_know_guests() -> None:
    guests = {
        "torchvision",
        "timm",
        "transformers",
        "matplotlib",
        "cv2",
        "scipy",
        "sklearn",
        "onnxruntime",
        "open_clip",
    }
    knowing = {room(p) for p in FILES if {i.split(".")[0] for i in imports(p)} & guests}
    assert all(name.startswith("models.") and name.endswith("_source") for name in knowing), knowing


def code_lines(node: ast.AST) -> int:
    """Lines of a function without its docstring and comments."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body  # type: ignore[attr-defined]
    lines = {line for stmt in body for n in ast.walk(stmt) if hasattr(n, "lineno") for line in (n.lineno, n.end_lineno)}
    return len(range(min(lines), max(lines) + 1)) if lines else 0


@pytest.mark.parametrize("path", FILES, ids=room)
def test_files_and_functions_keep_their_budgets(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 300
    long = {
        n.name: code_lines(n)
        for n in ast.walk(ast.parse(text))
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and code_lines(n) > 25
    }
    assert not long


@pytest.mark.parametrize("path", FILES, ids=room)
def test_nothing_dangerous_and_nothing_unfinished(path: Path) -> None:
    text = path.read_text()
    for word in ("TODO", "FIXME", "XXX", "__del__", "raise NotImplementedError", "allow_pickle=True", "shell=True"):
        assert word not in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {"eval", "exec", "os.system", "pickle.load", "pickle.loads", "yaml.load"}
            if name.endswith("torch.load"):
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)


def test_the_public_names_are_the_pinned_ones() -> None:
    pinned = json.loads((ROOT / "tests" / "api_surface.json").read_text())
    assert sorted(camlucida.__all__) == pinned["camlucida"]
    assert sorted(list_methods()) == pinned["methods"]
    assert all(getattr(camlucida, name) is not None for name in camlucida.__all__)
    tree = [n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, errors.CamlucidaError)]
    assert sorted(tree) == pinned["errors"]


def loaded(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded("import camlucida") & {"torch", "numpy", "PIL", "timm", "torchvision", "typer"}
    guests = {"torchvision", "timm", "transformers", "matplotlib", "cv2", "scipy", "sklearn", "pandas", "typer", "rich"}
    assert not loaded("import camlucida; camlucida.explain, camlucida.load, camlucida.list_methods()") & guests


def test_the_methods_page_is_made_from_the_registry() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "make_methods_page.py"))["page"]()
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == made, "run: make docs"


def test_every_paper_and_error_has_its_entry() -> None:
    known = set(re.findall(r"@\w+\{(\w+),", (ROOT / "docs" / "papers.bib").read_text()))
    assert {m.paper for m in list_methods().values()} <= known
    named = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, errors.CamlucidaError)}
    pages = {p.stem for p in (ROOT / "docs" / "errors").glob("*.md")}
    assert pages == named - {"CamlucidaError"}


def test_links_in_the_docs_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_nothing_names_a_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        if name.endswith((".py", ".md", ".toml", ".json", ".txt", "Makefile")):
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.])/(work|root|home|Users)/", text), name
