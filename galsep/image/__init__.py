"""Working on pixels: background, SEP, cutouts, label maps."""
