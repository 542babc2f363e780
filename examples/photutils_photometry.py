"""Hand galsep's sources to photutils, for its apertures, sizes and concentrations.

python examples/photutils_photometry.py [IMAGE]
"""

import sys
from pathlib import Path

from photutils.segmentation import SourceCatalog

import galsep

EXAMPLE = Path(__file__).with_name("field.fits.fz")


def main() -> None:
    """Print Kron fluxes, widths and Gini coefficients of the brightest sources."""
    image = Path(sys.argv[1]) if len(sys.argv) > 1 else EXAMPLE
    result = galsep.deblend(image)
    sources = SourceCatalog(result.light, result.to_segmentation_image(), error=result.rms)
    table = sources.to_table(columns=("label", "kron_flux", "fwhm", "gini"))
    # Labels are those of the catalogue.
    table["blendedness"] = result.catalog["blendedness"][table["label"] - 1]
    table["score"] = result.catalog["score"][table["label"] - 1]
    table.sort("kron_flux", reverse=True)
    for name in table.colnames[1:]:
        table[name].info.format = ".3g"
    table[:10].pprint(max_lines=-1)


if __name__ == "__main__":
    main()
