"""Imports run down the layers of docs/architecture.md only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import galsep

ROOT = Path(galsep.__file__).parent

LAYERS = {
    "errors": 0,
    "conventions": 0,
    "config": 0,
    "settings": 0,
    "flags": 0,
    "interrupts": 0,
    "scene": 1,
    "planes": 2,
    "sim": 3,
    "measure": 3,
    "io": 3,
    "image": 3,
    "plot": 3,
    "model": 4,
    "workflows": 5,
    "btk": 6,
    "cli": 6,
    "__main__": 7,
}

# Who may load what is heavy, or belongs to the terminal. BTK brings GalSim.
OWNERS = {
    "typer": {"cli"},
    "rich": {"cli"},
    "click": {"cli"},
    "torch": {"model", "workflows"},
    "torchvision": {"model", "workflows"},
    "galsim": {"sim", "btk"},
    "matplotlib": {"plot"},
    "jinja2": {"plot"},
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    """Package of the first level, or the module itself there."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a module imports, wherever in it that happens."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    here = part(path)
    if here == "__init__":
        return  # Its functions are loaded on first use, from wherever they live.
    for line, name in imports(path):
        top, _, rest = name.partition(".")
        where = f"{path.relative_to(ROOT)}:{line} imports {name}"
        if top in OWNERS:
            assert here in OWNERS[top], where
        if top != "galsep" or not rest:
            continue
        there = rest.split(".")[0]
        if there == here or there == "__version__":
            continue
        assert LAYERS[there] <= LAYERS[here], where
        assert LAYERS[there] < LAYERS[here] or LAYERS[here] == 0, f"{where}, side by side"


def test_every_module_has_a_layer():
    assert {part(path) for path in modules()} - {"__init__"} <= set(LAYERS)
