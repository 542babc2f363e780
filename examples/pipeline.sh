#!/bin/sh
# galsep in a shell pipeline: the ten brightest sources of the example that share their light.
set -e
cd "$(dirname "$0")"
galsep deblend field.fits.fz --catalog - --catalog-format csv --quiet |
    awk -F, '
        NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
        $column["overlap_fraction"] > 0 {
            print $column["deblend_flux"], $column["label"], $column["ra"], $column["dec"]
        }' |
    sort -rg |
    head -n 10
