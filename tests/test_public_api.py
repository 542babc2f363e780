import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import galsep

ROOT = Path(galsep.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if not path.name.startswith("__"))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def exported(module: ast.Module) -> list[str]:
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def defined(module: ast.Module, *, values: bool) -> set[str]:
    """Public classes and functions that a module defines, and its constants if asked for."""
    names = set()
    for node in module.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif values and isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif values and isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def used_elsewhere(path: Path) -> set[str]:
    """Names that other modules of galsep import from a module."""
    dotted = ".".join(("galsep", *path.relative_to(ROOT).with_suffix("").parts))
    names = set()
    for other in ROOT.rglob("*.py"):
        for node in ast.walk(tree(other)):
            if isinstance(node, ast.ImportFrom) and node.module == dotted:
                names.update(alias.name for alias in node.names)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_all_is_what_a_module_defines(path):
    module = tree(path)
    names = exported(module)
    assert len(names) == len(set(names))
    assert set(names) <= defined(module, values=True), "names of other modules, or of none"
    assert used_elsewhere(path) <= set(names), "used by other modules, but not exported"


def test_names_are_offered_for_completion_before_they_are_loaded():
    script = "import sys, galsep; print(*dir(galsep)); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    names, loaded = out.stdout.splitlines()
    assert set(galsep.__all__) <= set(names.split())
    assert loaded == "False"


def test_the_package_offers_its_functions_with_what_they_take_and_give():
    functions = {"deblend", "load_model", "simulate"}
    classes = {"DeblendConfig", "DeblendResult", "SimulateConfig"}
    assert set(galsep.__all__) == {"__version__"} | functions | classes
    assert all(isinstance(getattr(galsep, name), type) for name in classes)
    assert all(callable(getattr(galsep, name)) for name in functions)
    with pytest.raises(AttributeError, match="no attribute 'blend'"):
        _ = galsep.blend


def loaded(code: str) -> set[str]:
    """Top-level packages that are loaded after some code ran in a fresh interpreter."""
    code += "; import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


HEAVY = {"torch", "torchvision", "galsim", "matplotlib", "astropy", "photutils", "scipy", "sep"}


def test_importing_galsep_is_light():
    assert not loaded("import galsep") & (HEAVY | {"numpy"})


def test_importing_the_lower_layers_is_light():
    code = "import galsep.config, galsep.scene, galsep.io.image, galsep.io.products, galsep.io.runs"
    assert not loaded(code) & HEAVY
