"""Tests with the lowest versions of the dependencies: ``make oldest``.

They are installed into a folder that comes before the environment's own; torch and torchvision,
which take 5 GB, with ``--torch`` alone.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

PROGRAM = """
import importlib.metadata, pathlib, sys
from galsep.cli.main import main
for name in sys.argv[2].split(","):
    print(name, importlib.metadata.version(name))
folder = pathlib.Path(sys.argv[1])
products = ["--preview", "--isolated", "--residual", "--report"]
code = main(["deblend", "examples/field.fits.fz", "-o", str(folder / "deblended"), *products])
code = code or main(["simulate", str(folder / "pairs"), "--n", "20"])
sys.exit(code or main(["info", "examples/field.fits.fz"]))
"""

TESTS = ("tests/io/test_products.py", "tests/io/test_atomic.py", "tests/image", "tests/model")
"""What depends on others' versions the most."""


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    too = "--torch" in sys.argv[1:]
    chosen = [one for one in project["dependencies"] if too or not one.startswith("torch")]
    names = ",".join(re.split(r"[<>=]", one)[0] for one in chosen)
    with tempfile.TemporaryDirectory() as scratch:
        site = Path(scratch) / "site"
        install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--target", str(site)]
        install += ["--python", sys.executable, "--resolution", "lowest-direct", *chosen]
        subprocess.run(install, check=True)
        path = os.pathsep.join([str(site), str(ROOT)])
        commands = (["-c", PROGRAM, scratch, names], ["-m", "pytest", "-q", *TESTS])
        codes = (
            subprocess.run(
                [sys.executable, *command],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": path},
                check=False,
            ).returncode
            for command in commands
        )
        return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
