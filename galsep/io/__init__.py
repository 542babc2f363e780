"""Reading and writing: FITS, data sets, catalogues."""
