#!/bin/sh
# Make examples/field.fits.fz: a field of 512×512 px (1.7′) as LSST would see it in the i band
# after ten years. 140 sources per arcmin² are the galaxies to i = 26.5 (46 × 10^(0.31 (i − 25))
# per arcmin², LSST Science Book, equation 3.7) with 5 % stars.
set -e
cd "$(dirname "$0")"
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
python="${PYTHON:-python3}"
"$python" -m galsep simulate "$parts" --field 512x512 --max-mag 26.5 --density 140 --stars 0.05 --seed 4
"$python" - "$parts/field_i.fits" field.fits.fz <<'PYTHON'
import sys

from astropy.io import fits

source, target = sys.argv[1:]
with fits.open(source) as hdus:
    image = fits.CompImageHDU(
        hdus[0].data,
        hdus[0].header,
        name="SCI",
        compression_type="RICE_1",
        # Steps of a sixteenth of the noise, dithered: the noise grows by 0.02 %.
        quantize_level=16,
        quantize_method=1,
        dither_seed=1,
    )
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(target, overwrite=True, checksum=True)
PYTHON
