import json

import numpy as np
import pytest

from galsep.measure.average_precision import average_precision
from galsep.measure.metrics import (
    Found,
    Truth,
    bin_values,
    binned,
    judge,
    owned_footprints,
    scores,
    summarise,
)
from galsep.scene import Detections, Footprint

SHAPE = (120, 120)


def disc(x, y, radius=5.0):
    rows, columns = np.indices(SHAPE)
    return Footprint.from_mask(np.hypot(columns - x, rows - y) <= radius)


def truth(*sources, detectable=None, flux=1000.0):
    masks = [disc(*source) for source in sources]
    x, y = np.array([source[:2] for source in sources], dtype=float).reshape(-1, 2).T
    n = len(sources)
    return Truth(
        masks, masks, x, y, np.full(n, flux), 30 - 2.5 * np.log10(np.full(n, flux)),
        np.ones(n, dtype=bool) if detectable is None else np.array(detectable, dtype=bool),
        np.zeros(n, dtype=bool),
    )  # fmt: skip


def found(*sources, scores=None, flux=1000.0):
    masks = [disc(*source) for source in sources]
    x, y = np.array([source[:2] for source in sources], dtype=float).reshape(-1, 2).T
    n = len(sources)
    values = np.full(n, 0.9) if scores is None else np.array(scores, dtype=float)
    return Found(Detections(masks, x, y, values, np.full(n, flux)), masks)


def summary(truths, founds, selection="all"):
    return summarise([judge(t, f)[selection] for t, f in zip(truths, founds, strict=True)])


PAIRS = [((40, 60), (70, 60)), ((50, 50), (58, 58)), ((30, 90), (90, 30))]


def test_counts_by_hand():
    assert scores(6, 2, 4) == {
        "tp": 6, "fp": 2, "fn": 4, "precision": 0.75, "recall": 0.6,
        "f1": pytest.approx(2 * 0.75 * 0.6 / 1.35),
    }  # fmt: skip


def test_undefined_ratios_are_none():
    assert [scores(0, 0, 0)[key] for key in ("precision", "recall", "f1")] == [None] * 3
    assert [scores(0, 0, 3)[key] for key in ("precision", "recall", "f1")] == [None, 0.0, 0.0]
    assert [scores(0, 3, 0)[key] for key in ("precision", "recall", "f1")] == [0.0, None, 0.0]


def test_perfect_predictions():
    result = summary([truth(*p) for p in PAIRS], [found(*p) for p in PAIRS])
    for criterion in ("centroid5", "iou50"):
        assert result[criterion] == scores(6, 0, 0)
    assert result["exact"] == result["exact_iou50"] == 1
    assert result["mask_iou"] == result["label_iou"] == 1
    assert (result["flux_error"], result["flux_bias"], result["n_flux"]) == (0, 0, 6)


def test_half_missed_and_one_blend_of_three_exact():
    founds = [found(PAIRS[0][0]), found(*PAIRS[1]), found()]
    result = summary([truth(*p) for p in PAIRS], founds)
    assert result["centroid5"] == scores(3, 0, 3)
    assert result["centroid5"]["recall"] == 0.5
    assert result["exact"] == pytest.approx(1 / 3)


def test_a_shift_of_four_pixels_matches_by_centroid_but_not_by_mask():
    result = summary([truth((60, 60, 5))], [found((64, 60, 5))])
    assert result["centroid5"]["f1"] == 1
    assert result["iou50"]["f1"] == 0
    assert (result["exact"], result["exact_iou50"]) == (1, 0)
    assert result["mask_iou"] == pytest.approx(disc(60, 60).iou(disc(64, 60)))


def test_flux_error_is_the_median_of_the_relative_deviation():
    blends = [((60, 60),)] * 3
    founds = [found(*b, flux=f) for b, f in zip(blends, (800, 1100, 1300), strict=True)]
    result = summary([truth(*b) for b in blends], founds)
    assert result["flux_error"] == pytest.approx(0.2)
    assert result["flux_bias"] == pytest.approx(0.1)


def test_unknown_fluxes_are_left_out():
    t, f = truth((60, 60)), found((60, 60))
    without = Found(Detections(f.owned, *(np.array([v]) for v in (60.0, 60.0, 0.9))), f.owned)
    assert summary([t], [without])["flux_error"] is None
    assert summary([truth((60, 60), flux=1e-9)], [found((60, 60), flux=np.nan)])["n_flux"] == 0


def test_a_true_source_without_a_mask_has_no_overlap_to_average():
    nothing = Footprint(60, 60, np.zeros((0, 0), dtype=bool))
    t, f = truth((30, 30), (60, 60)), found((30, 30), (60, 60))
    hollow = Truth(
        [t.footprints[0], nothing], [t.owned[0], nothing], t.x, t.y, t.flux, t.magnitude,
        t.detectable, t.star,
    )  # fmt: skip
    result = summary([hollow], [f])
    assert result["centroid5"]["tp"] == 2
    assert result["iou50"]["tp"] == 1
    assert result["mask_iou"] == result["label_iou"] == 1


def test_nothing_at_all():
    for truths, founds in (([], []), ([truth()], [found()])):
        result = summary(truths, founds)
        assert result["centroid5"] == scores(0, 0, 0)
        assert result["mask_iou"] is None
        json.dumps(result, allow_nan=False)
    assert summary([truth()], [found()])["exact"] == 1
    assert summary([], [])["exact"] is None
    assert summary([truth()], [found((9, 9))])["exact"] == 0


def test_sources_too_faint_to_count_are_neither_right_nor_wrong():
    t = truth((30, 30), (60, 60), (90, 90), detectable=[True, False, True])
    f = found((30, 30), (60, 60), (10, 100))
    assert summary([t], [f])["centroid5"] == scores(2, 1, 1)
    result = summary([t], [f], "detectable")
    assert result["centroid5"] == result["iou50"] == scores(1, 1, 1)
    assert (result["n_true"], result["n_ignored"]) == (2, 1)
    # Not finding it is not wrong either.
    result = summary([t], [found((30, 30), (90, 90))], "detectable")
    assert (result["exact"], result["centroid5"]["f1"]) == (1, 1)


def test_the_order_of_sources_and_detections_does_not_matter():
    rng = np.random.default_rng(2)
    sources = [tuple(rng.uniform(20, 100, 2)) for _ in range(8)]
    others = [
        (x + dx, y + dy) for (x, y), (dx, dy) in zip(sources, rng.normal(0, 2, (8, 2)), strict=True)
    ]
    others.append((10, 10))
    one = summary([truth(*sources)], [found(*others)])
    two = summary([truth(*sources[::-1])], [found(*others[3:], *others[:3])])
    assert one["centroid5"]["tp"] > 4
    assert one["exact"] == two["exact"] == 0
    for name in ("centroid5", "iou50"):
        assert one[name] == two[name]
    for name in ("mask_iou", "label_iou", "flux_error"):
        assert one[name] == pytest.approx(two[name])


def test_owned_pixels():
    labels = np.zeros((6, 7), dtype=np.int32)
    labels[1:3, 2:5] = 1
    labels[4, 6] = 3
    parts = owned_footprints(labels, 3)
    assert [part.area for part in parts] == [6, 0, 1]
    assert (parts[0].y0, parts[0].x0) == (1, 2)
    assert (parts[0].to_full(labels.shape) == (labels == 1)).all()
    assert owned_footprints(np.zeros((4, 4), dtype=np.int32), 0) == []
    assert len(owned_footprints(np.zeros((4, 4), dtype=np.int32), 2)) == 2


def test_lengths_are_checked():
    f = found((60, 60))
    with pytest.raises(ValueError, match="1 detections but 0 owned"):
        Found(f.detections, [])
    with pytest.raises(ValueError, match="1 footprints but x has 0"):
        Truth([disc(9, 9)], [disc(9, 9)], *[np.zeros(0)] * 4, *[np.zeros(0, dtype=bool)] * 2)


def test_bins_add_up_to_the_whole():
    truths = [truth(*p) for p in PAIRS]
    founds = [found(PAIRS[0][0], (10, 10)), found(*PAIRS[1]), found((5, 100))]
    judged = [judge(t, f)["all"] for t, f in zip(truths, founds, strict=True)]
    whole = summarise(judged)
    values = [bin_values(t, f, 30.0) for t, f in zip(truths, founds, strict=True)]
    for by, edges in (("n_sources", [1, 2, 3]), ("separation", [5, 12, 40]), ("magnitude", [22])):
        rows = binned(judged, [value[by] for value in values], edges)
        assert len(rows) == len(edges) + 1
        assert (rows[0]["low"], rows[-1]["high"]) == (None, None)
        assert sum(row["n_true"] for row in rows) == 6
        for criterion in ("centroid5", "iou50"):
            for key in ("tp", "fp", "fn"):
                assert sum(row[criterion][key] for row in rows) == whole[criterion][key]
        json.dumps(rows, allow_nan=False)


def test_bins_by_hand():
    truths = [truth(*PAIRS[1]), truth((60, 60))]  # 11.3 px apart; alone.
    founds = [found(PAIRS[1][0], (110, 110)), found((60, 60))]
    judged = [judge(t, f)["all"] for t, f in zip(truths, founds, strict=True)]
    values = [bin_values(t, f, 30.0)["separation"] for t, f in zip(truths, founds, strict=True)]
    near, far = binned(judged, values, [12])
    # The spurious source is binned with the blend it is in.
    assert near["centroid5"] == scores(1, 1, 1)
    assert far["centroid5"] == scores(1, 0, 0)


def test_the_magnitude_bin_of_a_spurious_source_is_its_own():
    t, f = truth(), found((60, 60), flux=100.0)
    assert bin_values(t, f, 30.0)["magnitude"][1].tolist() == [25.0]
    assert bin_values(t, found((60, 60), flux=-1.0), 30.0)["magnitude"][1].tolist() == [np.inf]
    rows = binned([judge(t, f)["all"]], [bin_values(t, f, 30.0)["magnitude"]], [24.0, 26.0])
    assert [row["centroid5"]["fp"] for row in rows] == [0, 1, 0]


def ap(truths, founds, kind="mask", wanted=None):
    return average_precision(
        [t.footprints for t in truths],
        [f.detections for f in founds],
        SHAPE,
        kind=kind,
        wanted=wanted,
    )


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_map_of_perfect_predictions_is_one(kind, capfd):
    result = ap([truth(*p) for p in PAIRS], [found(*p) for p in PAIRS], kind)
    assert result.ap50 == pytest.approx(1)
    assert result.ap == pytest.approx(1)
    assert result.precision50 == pytest.approx(np.ones(101))
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_map_with_half_missed(kind):
    result = ap([truth(*p) for p in PAIRS], [found(p[0]) for p in PAIRS], kind)
    # Precision 1 at the 51 recalls from 0 to 0.5, then 0.
    assert result.ap50 == pytest.approx(51 / 101)


def test_map_of_a_shifted_square_counts_the_thresholds_it_passes():
    square = Footprint(50, 50, np.ones((10, 10), dtype=bool))
    moved = square.shifted(0, 2)  # Overlap 80 of 120: passes 0.50 to 0.65.
    one = np.array([55.0])
    detections = Detections([moved], one, one, np.array([0.5]))
    for kind in ("box", "mask"):
        result = average_precision([[square]], [detections], SHAPE, kind=kind)
        assert result.ap50 == pytest.approx(1)
        assert result.ap == pytest.approx(0.4)


def test_boxes_and_masks_differ():
    square = Footprint(40, 40, np.ones((11, 11), dtype=bool))
    cross = np.zeros((11, 11), dtype=bool)
    cross[5], cross[:, 5] = True, True
    detections = Detections([Footprint(40, 40, cross)], *(np.array([v]) for v in (45.0, 45.0, 0.5)))
    assert average_precision([[square]], [detections], SHAPE, kind="box").ap == pytest.approx(1)
    assert average_precision([[square]], [detections], SHAPE, kind="mask").ap50 == 0


def test_map_ranks_by_score():
    t = [truth((30, 30))]
    right_first = ap(t, [found((30, 30), (90, 90), scores=[0.9, 0.1])])
    wrong_first = ap(t, [found((30, 30), (90, 90), scores=[0.1, 0.9])])
    assert right_first.ap50 == pytest.approx(1)
    assert wrong_first.ap50 == pytest.approx(0.5)


def test_map_without_truth_or_predictions():
    for truths, founds in (([], []), ([truth()], [found()]), ([truth()], [found((9, 9))])):
        result = ap(truths, founds)
        assert (result.ap50, result.ap, result.precision50.size) == (None, None, 0)
    result = ap([truth((30, 30))], [found()])
    assert (result.ap50, result.ap) == (0, 0)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_map_ignores_unwanted_sources(kind):
    t, f = [truth((30, 30), (90, 90))], [found((30, 30), (90, 90), scores=[0.5, 0.9])]
    wanted = [np.array([True, False])]
    assert ap(t, f, kind, wanted).ap == pytest.approx(1)
    assert ap(t, [found((90, 90))], kind, wanted).ap == 0
    assert ap(t, f, kind, [np.array([False, False])]).ap is None


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_map_with_empty_masks(kind):
    nothing = Footprint(20, 20, np.zeros((0, 0), dtype=bool))
    detections = Detections([nothing], *(np.array([v]) for v in (20.0, 20.0, 0.9)))
    assert average_precision([[nothing]], [detections], SHAPE, kind=kind).ap50 == 0


def test_map_takes_more_than_a_hundred_sources():
    grid = [(x, y, 2) for x in range(5, 115, 8) for y in range(5, 115, 8)]
    assert len(grid) > 100
    assert ap([truth(*grid)], [found(*grid)]).ap50 == pytest.approx(1)


def test_masks_over_the_edge_are_clipped():
    square = Footprint(-5, -5, np.ones((10, 10), dtype=bool))
    inside = Footprint(0, 0, np.ones((5, 5), dtype=bool))
    detections = Detections([inside], *(np.array([v]) for v in (2.0, 2.0, 0.9)))
    assert average_precision([[square]], [detections], SHAPE, kind="mask").ap == pytest.approx(1)
