"""galsep from Python: deblend an image, look at its blends, cut one source out.

python examples/deblend.py [IMAGE]
"""

import sys
from pathlib import Path

import numpy as np

import galsep

EXAMPLE = Path(__file__).with_name("field.fits.fz")


def main() -> None:
    """Print the most crowded SEP detection and what came out of it."""
    image = Path(sys.argv[1]) if len(sys.argv) > 1 else EXAMPLE
    result = galsep.deblend(image)
    print(f"{image.name}: {len(result)} sources from {len(result.parents)} SEP detections")

    catalog = result.catalog
    crowded = int(np.argmax(result.parents["n_child"])) + 1
    children = catalog[catalog["parent"] == crowded]
    shown = children["label", "x_centroid", "y_centroid", "deblend_flux", "score"]
    for name, digits in {"x_centroid": 2, "y_centroid": 2, "deblend_flux": 0, "score": 2}.items():
        shown[name].info.format = f".{digits}f"
    shown.pprint(max_lines=-1)

    # The whole mask of the brightest of them, with the pixels it shares with others.
    brightest = children[int(np.argmax(children["deblend_flux"]))]
    mask = result.masks[brightest["label"] - 1]
    shared = np.count_nonzero(result.noverlap[mask.slices][mask.mask] > 1)
    print(f"label {brightest['label']}: {mask.area} px, {shared} of them shared")


if __name__ == "__main__":
    main()
