"""Average precision of boxes and masks, counted by pycocotools.

COCO's definition: all detections of all images in falling order of score, each matched to the
free true source it overlaps most; the area under the precision-recall curve, read at 101 recalls,
at an intersection over union of 0.5 and averaged over 0.50, 0.55 ... 0.95. Galaxies and stars are
one class here.
"""

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from galsep.scene import Detections, Footprint

__all__ = ["RECALLS", "AveragePrecision", "average_precision"]

RECALLS: npt.NDArray[np.float64] = np.linspace(0, 1, 101)
"""Recalls at which COCO reads the precision."""

AREA_RANGE = (0.0, 1e10)
UNWANTED_AREA = -1.0
"""Outside of :data:`AREA_RANGE`, which is how COCO is told that a true source does not count.

Its ``iscrowd`` would also change the overlap's definition.
"""

NOWHERE_TRUE = [-9.0, -9.0, 1.0, 1.0]
NOWHERE_FOUND = [-5.0, -5.0, 1.0, 1.0]
"""Boxes of empty masks; two boxes without area would have an overlap of 0/0."""


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """The outcome for boxes or masks.

    Parameters
    ----------
    ap50, ap : float or None
        At an intersection over union of 0.5, and averaged over 0.5:0.95. ``None`` when there is
        no true source to find.
    precision50 : (101,) float array
        Precision at :data:`RECALLS` and overlap 0.5: the largest at this or a higher recall, 0
        where that recall is never reached; empty when there is no true source.
    """

    ap50: float | None
    ap: float | None
    precision50: npt.NDArray[np.float64]


def average_precision(
    truths: Sequence[Sequence[Footprint]],
    founds: Sequence[Detections],
    shape: tuple[int, int],
    *,
    kind: Literal["box", "mask"],
    wanted: Sequence[npt.NDArray[np.bool_]] | None = None,
) -> AveragePrecision:
    """Average precision over a set of images.

    Parameters
    ----------
    truths : sequence of sequences of Footprint
        True masks of each image.
    founds : sequence of Detections
        What was found in each image, with scores.
    shape : (int, int)
        Height and width of the images.
    kind : {"box", "mask"}
        Overlap of the masks, or of their bounding boxes.
    wanted : sequence of (n,) bool arrays, optional
        True sources that count; all by default. A detection that overlaps only an unwanted one is
        neither right nor wrong.

    Raises
    ------
    ValueError
        When the sequences differ in length.
    """
    if wanted is None:
        wanted = [np.ones(len(truth), dtype=bool) for truth in truths]
    true_rows, found_rows = [], []
    for image, (truth, found, chosen) in enumerate(zip(truths, founds, wanted, strict=True), 1):
        for row, counts in zip(
            _annotations(truth, image, shape, NOWHERE_TRUE), chosen, strict=True
        ):
            true_rows.append(row if counts else {**row, "area": UNWANTED_AREA})
        for row, score in zip(
            _annotations(found.footprints, image, shape, NOWHERE_FOUND), found.scores, strict=True
        ):
            found_rows.append({**row, "score": float(score)})
    most = max((len(found) for found in founds), default=0)
    precision = _coco_precision(true_rows, found_rows, len(truths), shape, kind, max(most, 1))
    if precision.max(initial=-1) < 0:
        return AveragePrecision(None, None, np.zeros(0))
    return AveragePrecision(float(precision[0].mean()), float(precision.mean()), precision[0])


def _annotations(
    footprints: Iterable[Footprint], image: int, shape: tuple[int, int], nowhere: list[float]
) -> list[dict[str, Any]]:
    """COCO's rows for the masks of one image; the identity numbers follow later."""
    from pycocotools import mask as coco_mask

    inside = [footprint.clipped(shape) for footprint in footprints]
    if not inside:
        return []
    layers = np.stack([footprint.to_full(shape) for footprint in inside], axis=-1)
    codes = coco_mask.encode(np.asfortranarray(layers, dtype=np.uint8))
    rows = []
    for footprint, code in zip(inside, codes, strict=True):
        height, width = footprint.mask.shape
        box = [float(footprint.x0), float(footprint.y0), float(width), float(height)]
        rows.append(
            {
                "image_id": image,
                "category_id": 1,
                "iscrowd": 0,
                "area": float(footprint.area),
                "bbox": box if footprint.area else nowhere,
                "segmentation": code,
            }
        )
    return rows


def _coco_precision(
    true_rows: list[dict[str, Any]],
    found_rows: list[dict[str, Any]],
    n_images: int,
    shape: tuple[int, int],
    kind: Literal["box", "mask"],
    max_detections: int,
) -> npt.NDArray[np.float64]:
    """Precision by overlap threshold and recall, ``(10, 101)``; -1 without true sources."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = [
        {"id": number, "height": shape[0], "width": shape[1]} for number in range(1, n_images + 1)
    ]
    # pycocotools prints what it does.
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for rows in (true_rows, found_rows):
            coco = COCO()
            coco.dataset = {
                "images": images,
                "categories": [{"id": 1, "name": "source"}],
                # Numbers begin with 1: COCO takes 0 for "no match".
                "annotations": [{**row, "id": number} for number, row in enumerate(rows, 1)],
            }
            coco.createIndex()
            sides.append(coco)
        judge = COCOeval(*sides, {"box": "bbox", "mask": "segm"}[kind])
        judge.params.areaRng = [list(AREA_RANGE)]
        judge.params.areaRngLbl = ["all"]
        judge.params.maxDets = [max_detections]
        judge.params.recThrs = RECALLS
        judge.evaluate()
        judge.accumulate()
    precision: npt.NDArray[np.float64] = judge.eval["precision"][:, :, 0, 0, 0]
    return precision
