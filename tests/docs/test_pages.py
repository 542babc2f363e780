"""The documentation says what the code does."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from galsep.cli.main import app
from galsep.io.dataset import truth_dtype

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])


def test_generated_parts_are_up_to_date():
    script = DOCS / "generate_reference.py"
    spec = importlib.util.spec_from_file_location("generate_reference", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path, text in module.generated().items():
        assert path.read_text() == text, f"{path.name} is out of date: run {script}"


def test_every_command_is_in_the_reference():
    text = (DOCS / "reference.md").read_text()
    for name, command in get_command(app).commands.items():
        assert f"\n## galsep {name}\n" in text
        for param in command.params:
            if param.param_type_name == "option":
                assert param.opts[0] in text


def test_every_column_of_the_truth_is_described():
    text = (DOCS / "formats.md").read_text()
    for name in truth_dtype(1).names:
        assert f"`{name}`" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_pages_name_exist(page):
    known = {"--check", "--nproc-per-node", "--logdir"}
    top = get_command(app)
    for command in (top, *top.commands.values()):
        for param in command.params:
            known.update(param.opts, param.secondary_opts)
    for line in page.read_text().splitlines():
        if "galsep " in line or "`--" in line:
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", line):
                assert option in known, f"{page.name}: {option}"
    for name, command in top.commands.items():
        own = {"--config", "--quiet", "--verbose"}
        for param in (*command.params, *top.params):
            own.update(param.opts, param.secondary_opts)
        for given in called(page.read_text(), name):
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", given):
                assert option in own, f"{page.name}: galsep {name} {option}"


def called(text, name):
    """What follows ``galsep NAME`` in code, lines that end with a backslash joined."""
    code = " ".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    joined = code.replace("\\\n", " ")
    return re.findall(rf"\bgalsep {name}\b([^\n|;&`$#]*)", joined)


def test_the_map_of_the_tree_is_true():
    """Every module is on the map of docs/architecture.md, and nothing else."""
    text = (DOCS / "architecture.md").read_text()
    tree = text.split("```text")[2].split("```")[0]
    on_map = set(re.findall(r"\b(\w+\.py)\b", tree)) - {"generate_reference.py"}
    modules = {
        path.name
        for path in (ROOT / "galsep").rglob("*.py")
        if path.parent.name in ("galsep", "cli", "workflows")
    }
    assert modules - {"__init__.py", "__main__.py"} == on_map
    packages = {path.parent.name for path in (ROOT / "galsep").rglob("__init__.py")} - {"galsep"}
    for package in packages:
        assert f"  {package}/" in tree


def test_the_manual_page_has_every_option():
    text = (DOCS / "galsep.1").read_text().replace("\\-", "-")
    for name, command in get_command(app).commands.items():
        assert f"\n.SH GALSEP {name.upper()}\n" in text
        for param in command.params:
            if param.param_type_name == "option":
                assert re.search(rf"^\.B .*{param.opts[0]}\b", text, re.MULTILINE), param.opts[0]


@pytest.mark.skipif(shutil.which("groff") is None, reason="there is no groff")
def test_the_manual_page_is_well_formed():
    done = subprocess.run(
        ["groff", "-Kutf8", "-man", "-Tutf8", "-P-cbou", "-ww", "-rLL=78n", str(DOCS / "galsep.1")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert "separate overlapping galaxies" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_kamath_s_report_is_cited_first():
    text = (ROOT / "CITATION.cff").read_text()
    assert "Kamath" in text.split("preferred-citation:")[1].split("references:")[0]
    page = (DOCS / "citing.md").read_text()
    assert 0 < page.index("Kamath") < page.index("K. He")
    for doi in re.findall(r"doi: (\S+)|value: arXiv:(\S+)", text):
        assert next(filter(None, doi)) in page
