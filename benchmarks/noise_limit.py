"""How many sources the noise lets anyone tell from their neighbours, and how many are found.

    python benchmarks/noise_limit.py --work DIR [--weights FILE]

DIR is the model card's; what it has of these weights is used again. On its pairs, its blends of one
to six and, with GALSEP_TEST_DATA, its pairs of unseen real galaxies. The signal-to-noise ratio of a
source beside its neighbours is what is left of its own when everything that changes of the image
with each neighbour's flux, position, size and shape is taken out: that of its flux in a fit which
knows all profiles but not those six numbers of each neighbour. Below 7 a source is not told from a
neighbour of another flux or shape. Recall is of detectable sources within 5 px, for galsep at the
threshold of the validation split and for SEP at its best setting.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import model_card
import numpy as np
from model_card import Bench, lines

from galsep.config import DeblendConfig
from galsep.conventions import DETECTABLE_SNR
from galsep.io.dataset import Dataset, load_dataset
from galsep.workflows.baselines import SEP_SETTINGS, sep_detections
from galsep.workflows.finding import finish
from galsep.workflows.judging import match_detectable
from galsep.workflows.preparing import run_network

EDGES = (0, 3, 5, DETECTABLE_SNR, 9, 12, 16, 25, 50, np.inf)
SETS = {"pairs": "pairs", "six": "six", "hst": "hst-unseen"}
"""Parts of the model card, and where their data sets lie."""


def beside_neighbours(light: Any) -> Any:
    """Signal-to-noise ratio of each source of a blend when its neighbours are fitted away.

    Parameters
    ----------
    light : (n, h, w) array
        Isolated noiseless images in units of the noise of a pixel.

    Returns
    -------
    (n,) float array
    """
    y, x = np.mgrid[: light.shape[1], : light.shape[2]]
    changes = [_changes(one, x, y) for one in light]
    left = np.zeros(len(light))
    for index, one in enumerate(light):
        rest = one.ravel().astype(np.float64)
        others = [part for k, part in enumerate(changes) if k != index]
        if others:
            basis, _ = np.linalg.qr(np.concatenate(others, axis=1))
            rest = rest - basis @ (basis.T @ rest)
        left[index] = np.linalg.norm(rest)
    return left


def _changes(light: Any, x: Any, y: Any) -> Any:
    """How a source's image changes with its flux, position, size and shape, as unit vectors."""
    total = light.sum(dtype=np.float64)
    if total <= 0:
        return np.zeros((light.size, 0))
    along_y, along_x = np.gradient(light.astype(np.float64))
    dx, dy = x - (light * x).sum() / total, y - (light * y).sum() / total
    changes = np.stack(
        [
            light,
            along_x,
            along_y,
            dx * along_x + dy * along_y,
            dx * along_x - dy * along_y,
            dy * along_x + dx * along_y,
        ]
    ).reshape(6, -1)
    return (changes / np.linalg.norm(changes, axis=1, keepdims=True)).T


def sources(bench: Bench, data: Dataset, threshold: float, rival: str) -> Iterator[Any]:
    """S/N beside the neighbours of each detectable source, and whether galsep and SEP find it."""
    config, blends = DeblendConfig(), [int(blend) for blend in data.split("test")]
    images = (data.detection_image(blend) for blend in blends)
    for blend, (prepared, found) in zip(
        blends, run_network(images, bench.model, config), strict=True
    ):
        wanted = np.asarray(data.sources(blend)["detectable"], dtype=bool)
        snr = beside_neighbours(data.stack(blend) / data.meta.detection_rms)
        image = prepared.image
        both = (
            finish(prepared, found, bench.model, config, threshold).detections,
            sep_detections(image.light, float(np.median(image.rms)), SEP_SETTINGS[rival]),
        )
        matches = [match_detectable(data, blend, detections) for detections in both]
        here = np.stack(
            [snr, *(~np.isin(np.arange(len(snr)), match.missed) for match in matches)], axis=1
        )
        yield here[wanted]


def rows(table: Any) -> list[dict[str, Any]]:
    """Recall by S/N, and of all above and below what counts as detectable."""
    edges = [*itertools.pairwise(EDGES), (0, DETECTABLE_SNR), (DETECTABLE_SNR, np.inf)]
    out = []
    for low, high in [*edges, (0, np.inf)]:
        some = table[(table[:, 0] >= low) & (table[:, 0] < high)]
        galsep, sep = some[:, 1:].mean(axis=0).tolist() if len(some) else (None, None)
        share = len(some) / len(table)
        out.append(
            {"S/N from": low, "to": high, "n": len(some), "share": share, "galsep": galsep,
             "SEP": sep}
        )  # fmt: skip
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the model card")
    parser.add_argument("--weights", default="", help="network weights (default: the packaged)")
    options = parser.parse_args(arguments)
    bench = Bench(options.work, options.weights, "auto", 0)
    file = options.work / "model_card.json"
    card = json.loads(file.read_text()) if file.is_file() else {}
    known = card["parts"] if card.get("weights_sha256") == bench.model.sha256 else {}
    for part, folder in SETS.items():
        judged = known.get(part) or model_card.PARTS[part](bench)
        if judged is None:
            print(f"\n{part}: left out (set GALSEP_TEST_DATA)")
            continue
        data = load_dataset(options.work / "data" / folder)
        table = np.concatenate(list(sources(bench, data, judged["threshold"], judged["best_sep"])))
        print(f"\n{part}, {len(table)} detectable sources; SEP is {judged['best_sep']}")
        for line in lines(rows(table)):
            print("  " + line)


if __name__ == "__main__":
    main()
