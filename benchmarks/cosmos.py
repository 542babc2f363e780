"""Halve a folder of real COSMOS galaxies: one half to train with, one to judge by.

    python benchmarks/cosmos.py COSMOS HALVES

``HALVES/train`` and ``HALVES/test`` are folders for ``galsep simulate --cosmos``: the first, third
... and the second, fourth ... galaxy of the catalogue, with links to the images of both.
"""

import argparse
from pathlib import Path

from astropy.table import Table

CATALOG = "real_galaxy_catalog.fits"


def halve(cosmos: Path, halves: Path) -> tuple[Path, Path]:
    """Make both folders, and return them."""
    catalog = Table.read(cosmos / CATALOG)
    for start, name in enumerate(("train", "test")):
        folder = halves / name
        folder.mkdir(parents=True, exist_ok=True)
        for path in cosmos.resolve().glob("*.fits"):
            link = folder / path.name
            if path.name != CATALOG and not link.exists():
                link.symlink_to(path)
        catalog[start::2].write(folder / CATALOG, overwrite=True)
    return halves / "train", halves / "test"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cosmos", type=Path, help="with a GalSim real_galaxy_catalog.fits")
    parser.add_argument("halves", type=Path, help="folder to write to")
    options = parser.parse_args()
    for folder in halve(options.cosmos, options.halves):
        print(folder)


if __name__ == "__main__":
    main()
