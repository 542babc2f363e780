"""Run lengths of COCO's JSON are read as pycocotools writes them."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from galsep.io.coco import _from_runs


@pytest.mark.parametrize("share", [0.0, 0.02, 0.4, 0.95, 1.0])
@pytest.mark.parametrize("height", [1, 7, 190])
def test_compressed_runs_of_any_mask(share, height):
    rng = np.random.default_rng([height, int(100 * share)])
    for width in (1, 33, 400):
        mask = np.repeat(rng.random((height, width)) < share, 40, axis=0)[:height]
        text = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        segmentation = {"size": [height, width], "counts": text}
        assert np.array_equal(_from_runs("it", segmentation, (height, width)), mask)
