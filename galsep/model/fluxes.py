"""Fluxes looked at again, once the light of all sources is known.

The separation network says how much more a source has than its model shows while it sees that
source alone, before its share stands beside its neighbours'. What comes of the shares says more:
how the model falls off, how much of it neighbours hold, what all models leave of the data near it.
A small regression on that, and medians by S/N, make of a flux what validation has shown to be true,
and of its error what fluxes are off by then.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from galsep.scene import SourceLight

__all__ = [
    "FLUX_FEATURES",
    "FluxFit",
    "FluxRegression",
    "fit_regression",
    "flux_changes",
    "flux_features",
]

Values = npt.NDArray[np.float64]

WIDTHS = np.sqrt(162 / 2.0 ** np.arange(8))
"""Rms of the Gaussians that light is weighted with about a source, pixels: 12.7 to 1.1."""

FULL = 5
"""Of them the one in which usable pixels are counted."""

OF_THE_PSF = 2
"""Features of the PSF, the last ones: ln FWHM and 1, or 0 and 0 where it is not known."""

FLUX_FEATURES = 11 + 5 * len(WIDTHS) + OF_THE_PSF
"""How many numbers :func:`flux_features` gives of a source."""

HIDDEN = 32
"""Neurons in each of the two layers of the regression."""

LIMIT = 0.5
"""Largest change of ln flux."""

SPREAD_LIMITS = -2.0, 1.0
"""Change of the logarithm of a flux's relative error: what is farther from what is known than this
is too far for the regression to tell."""

OF_MODELS = 0.5
"""Share of what fluxes are off by that models are made brighter by: so that their sums lack less
than 2 % of the light, at little cost to the images, which are best without."""

TAILS = (1.0, 99.0)
"""Percentiles between which features are told apart, and half as much again beyond them."""

LEAST_SCALE = 0.01
"""A feature that hardly ever differs is no switch: what is not told apart is so far from its middle
at least."""

REACH = 1.5
"""How far beyond the middle features count, in half the distance of their percentiles."""

EPOCHS, BATCH, RATE, DECAY = 120, 512, 3e-3, 1e-3

LEAST_ERROR = 0.01
"""Relative error below which sources weigh the same."""

WORST = 8.0
"""Errors, in their expected size, count as so large at most."""

_LARGEST = 1e9
"""No number of a regression is so large."""

FORGOTTEN = 0.3
"""Share of the sources in a step of the fit of which the PSF is not told."""

HELD_OUT = 5
"""One source in so many shows whether a regression is worth anything."""


@dataclass(frozen=True, slots=True, eq=False)
class FluxRegression:
    """A small network from what is known of a source's light to how far its flux is off.

    Parameters
    ----------
    centre, scale : (k,) float arrays
        Middle of each feature, and how far it goes from there.
    weights : sequence of (n, m) float arrays
        Of its layers, with SiLU between them. The last gives ln(true flux / flux) and, but for
        regressions of before, the logarithm of the flux's relative error then over that before.
    biases : sequence of (n,) float arrays
    """

    centre: Values
    scale: Values
    weights: Sequence[Values]
    biases: Sequence[Values]

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "FluxRegression":
        """Take it from what :meth:`to_dict` has made of one.

        Raises
        ------
        ValueError
            When it is none.
        """
        try:
            centre, scale = (
                np.array(stored[name], dtype=np.float64) for name in ("centre", "scale")
            )
            weights, biases = (
                [np.array(values, dtype=np.float64) for values in stored[name]]
                for name in ("weights", "biases")
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a regression: {error}") from error
        sizes = [FLUX_FEATURES, *(len(bias) if bias.ndim else 0 for bias in biases)]
        shapes = [(sizes[0],), (sizes[0],), *zip(sizes[1:], sizes, strict=False)]
        every = [centre, scale, *weights, *biases]
        if (
            [array.shape for array in (centre, scale, *weights)] != shapes
            or sizes[-1] not in (1, 2)
            or not all(bool((np.abs(array) < _LARGEST).all()) for array in every)
            or not (scale > 0).all()
        ):
            raise ValueError("not a regression of this galsep's features")
        return cls(centre, scale, weights, biases)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FluxRegression) and self.to_dict() == other.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """Make lists of its numbers, of seven digits, which is what they were fitted in."""
        return {
            "centre": _rounded(self.centre),
            "scale": _rounded(self.scale),
            "weights": [_rounded(weight) for weight in self.weights],
            "biases": [_rounded(bias) for bias in self.biases],
        }

    def __call__(self, features: Values) -> tuple[float, float]:
        """Look at one source: by what to change the logarithms of its flux and its relative error.

        Sums of one source at a time: those of a matrix product depend on how many there are.
        """
        x = _standard(features, self.centre, self.scale)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = (weight * x).sum(axis=1) + bias
            x = x / (1 + np.exp(-x))
        change, *spread = ((self.weights[-1] * x).sum(axis=1) + self.biases[-1]).tolist()
        widening = min(max(spread[0], SPREAD_LIMITS[0]), SPREAD_LIMITS[1]) if spread else 0.0
        return min(max(change, -LIMIT), LIMIT), widening


@dataclass(frozen=True, slots=True)
class FluxFit:
    """What validation has shown of the separation network's fluxes.

    Parameters
    ----------
    snr : tuple of float
        S/N of a model, √Σ (model / sky rms)², increasing.
    log_ratio : tuple of float
        Median of ln(true flux / flux) there.
    spread : float
        By how much errors are too small.
    regression : FluxRegression, optional
    log_rest : tuple of float
        As ``log_ratio``, of fluxes after the regression, if there is one.
    """

    snr: tuple[float, ...]
    log_ratio: tuple[float, ...]
    spread: float
    regression: FluxRegression | None = None
    log_rest: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "FluxFit":
        """Take it from the metadata of weights."""
        regression = stored.get("regression")
        return cls(
            tuple(stored["snr"]),
            tuple(stored["log_ratio"]),
            float(stored["spread"]),
            regression and FluxRegression.from_dict(regression),
            tuple(stored.get("log_rest", ())),
        )

    def correction(self, snr: float) -> float:
        """What to multiply the model of a source by."""
        return float(self._at(snr, self.log_ratio) ** OF_MODELS)

    def rest(self, snr: float) -> float:
        """What to multiply the flux of a source by, after the regression if there is one."""
        return self._at(snr, self.log_ratio if self.regression is None else self.log_rest)

    def _at(self, snr: float, logarithms: tuple[float, ...]) -> float:
        at = np.log(max(snr, self.snr[0]))
        return float(np.exp(np.interp(at, np.log(self.snr), logarithms)))

    def corrected(
        self,
        parts: Sequence[SourceLight],
        light: npt.NDArray[np.float32],
        usable: npt.NDArray[np.bool_],
        chosen: npt.NDArray[np.bool_],
        fwhm: float | None = None,
    ) -> list[SourceLight]:
        """Correct models, fluxes and errors.

        Parameters
        ----------
        parts : sequence of SourceLight
            All sources, in sky rms.
        light : (h, w) float32 array
            In sky rms, 0 where unusable.
        usable : (h, w) bool array
        chosen : (n,) bool array
            Which sources to correct.
        fwhm : float, optional
            Of the PSF, pixels, where it is known.
        """
        changes = np.zeros((len(parts), 2))
        if self.regression is not None:
            features = flux_features(parts, light, usable, fwhm, chosen)
            changes = flux_changes(self.regression, features)
        return [
            self._corrected(part, *growths) if wanted else part
            for part, growths, wanted in zip(
                parts, np.exp(changes).tolist(), chosen.tolist(), strict=True
            )
        ]

    def _corrected(self, part: SourceLight, growth: float, error_growth: float) -> SourceLight:
        snr = float(np.sqrt((part.model**2).sum()))
        return replace(
            part,
            model=part.model * np.float32(self.correction(snr)),
            flux=part.flux * self.rest(snr) * growth,
            flux_err=part.flux_err * growth * error_growth * self.spread,
        )


def flux_features(
    parts: Sequence[SourceLight],
    light: npt.NDArray[np.float32],
    usable: npt.NDArray[np.bool_],
    fwhm: float | None = None,
    chosen: npt.NDArray[np.bool_] | None = None,
) -> Values:
    """What is known of each source's light once all of it is separated.

    Logarithms of flux, growth beyond the model, relative error, S/N, peak and size; ellipticity
    (moments of the model's square, which its faint wings bear on little);
    how widely it has a share; what all models leave, weighted by its own; and, in Gaussians of
    eight widths about its centroid, its model and its light beside its flux, the models of others,
    and what is left beside its flux and beside its noise; and how wide the PSF is. All of it is
    smooth, so that light that moves by little changes it by little.

    Parameters
    ----------
    parts, light, usable, fwhm
        See :meth:`FluxFit.corrected`.
    chosen : (n,) bool array, optional
        Which sources to look at; all by default.

    Returns
    -------
    (n, FLUX_FEATURES) float array
        NaN for sources without a model, and those that are not chosen.
    """
    total = np.zeros(light.shape, dtype=np.float32)
    for part in parts:
        total[part.slices] += part.model
    features = np.full((len(parts), FLUX_FEATURES), np.nan)
    for index, part in enumerate(parts):
        wanted = chosen is None or bool(chosen[index])
        if wanted and part.flux > 0 and part.flux_err > 0 and part.model.any():
            at = part.slices
            features[index, :-OF_THE_PSF] = _features_of(part, light[at], total[at], usable[at])
            features[index, -OF_THE_PSF:] = (np.log(fwhm), 1) if fwhm else (0, 0)
    return features


def flux_changes(regression: Callable[[Values], tuple[float, float]], features: Values) -> Values:
    """What a regression says of each source; 0 where features are not known.

    Parameters
    ----------
    regression : FluxRegression
    features : (n, FLUX_FEATURES) float array
        Of :func:`flux_features`.

    Returns
    -------
    (n, 2) float array
        ln(true flux / flux), and by what to change the logarithm of the flux's relative error.
    """
    changes = np.zeros((len(features), 2))
    for index in np.flatnonzero(np.isfinite(features).all(axis=1)).tolist():
        changes[index] = regression(features[index])
    return changes


def _features_of(
    part: SourceLight,
    light: npt.NDArray[np.float32],
    total: npt.NDArray[np.float32],
    usable: npt.NDArray[np.bool_],
) -> Values:
    model, flux = part.model, part.flux
    held = float(model.sum(dtype=np.float64))
    square = model**2
    power = float(square.sum(dtype=np.float64))
    (dy, dx), moments = _moments(square)
    left = (light - total) * usable
    down, along = (
        np.exp(-0.5 * (offset / WIDTHS[:, None]) ** 2).astype(np.float32) for offset in (dy, dx)
    )
    layers = np.stack([model, part.share * light, total - model, left])
    own, given, others, rest = _weighted(layers, down, along).astype(np.float64)
    if usable.all():
        pixels = float(down[FULL].sum() * along[FULL].sum())
        variance = (down**2).sum(axis=1) * (along**2).sum(axis=1)
    else:
        seen = usable.astype(np.float32)[None]
        pixels = float(_weighted(seen, down, along)[0, FULL])
        variance = _weighted(seen, down**2, along**2)[0]
    match = float((model * left).sum(dtype=np.float64))
    width = moments[0] + moments[1] + 0.1
    return np.concatenate(
        [
            np.log(
                [
                    flux,
                    flux / held,
                    part.flux_err / flux,
                    np.sqrt(power),
                    float(model.max()) / flux,
                    width,
                ]
            ),
            [
                np.hypot(moments[0] - moments[1], 2 * moments[2]) / width,
                np.log(1e-6 + float((part.share**2).sum(dtype=np.float64))),
                match / np.sqrt(power),
                match / power,
                pixels / (2 * np.pi * WIDTHS[FULL] ** 2),
            ],
            own / held,
            given / flux,
            np.log1p(np.maximum(others, 0) / flux),
            rest / flux,
            rest / np.sqrt(np.maximum(variance, 1)),
        ]
    )


def _weighted(
    layers: npt.NDArray[np.float32], down: npt.NDArray[np.float32], along: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Sums of each layer in each Gaussian, of which rows and columns are given.

    So small a matrix product is done by one thread, whatever there are.
    """
    return np.asarray(np.einsum("qyk,ky->qk", layers @ along.T, down))


def _moments(
    weights: npt.NDArray[np.float32],
) -> tuple[tuple[Values, Values], tuple[float, float, float]]:
    """Rows and columns from the centroid on, and the moments xx, yy, xy about it."""
    held = float(weights.sum(dtype=np.float64))
    down, along = (weights.sum(axis=axis, dtype=np.float64) / held for axis in (1, 0))
    rows, columns = np.arange(len(down), dtype=np.float64), np.arange(len(along), dtype=np.float64)
    dy, dx = rows - float((down * rows).sum()), columns - float((along * columns).sum())
    across = float((np.einsum("yx,x->y", weights, dx) * dy).sum()) / held
    return (dy, dx), (float((along * dx**2).sum()), float((down * dy**2).sum()), across)


def fit_regression(
    features: Values, log_ratio: Values, relative_error: Values, own_noise: Values
) -> FluxRegression | None:
    """Fit a regression of fluxes by least absolute errors, in the sizes expected of them.

    Beside it that of the errors' sizes, by the likelihood of what fluxes are off by then (Laplace's
    distribution).

    Parameters
    ----------
    features : (n, FLUX_FEATURES) float array
        Finite.
    log_ratio : (n,) float array
        ln(true flux / flux).
    relative_error : (n,) float array
        Expected, but for the noise of the source's own light.
    own_noise : (n,) float array
        That noise over the flux.

    Returns
    -------
    FluxRegression or None
        ``None`` where it does not bring one source in five, which it has not seen, nearer to the
        truth.
    """
    if len(features) < BATCH:
        return None
    low, high = np.percentile(features, TAILS, axis=0)
    centre, scale = (low + high) / 2, np.maximum((high - low) / 2, LEAST_SCALE)
    inputs, target, error, noise = (
        torch.from_numpy(values).float()
        for values in (
            _standard(features, centre, scale),
            np.clip(log_ratio, -2 * LIMIT, 2 * LIMIT),
            relative_error,
            own_noise,
        )
    )
    untold = torch.from_numpy(
        _standard(np.zeros(OF_THE_PSF), *(part[-OF_THE_PSF:] for part in (centre, scale)))
    ).float()
    held_out = torch.arange(len(inputs)) % HELD_OUT == 0
    rest = ~held_out
    network = _trained(inputs[rest], target[rest], error[rest], noise[rest], untold)
    with torch.no_grad():
        after = target[held_out] - network(inputs[held_out])[:, 0]
        better = _misfit(after, error[held_out]) < _misfit(target[held_out], error[held_out])
    if not better:
        return None
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    return FluxRegression(
        centre,
        scale,
        [layer.weight.detach().double().numpy() for layer in layers],
        [layer.bias.detach().double().numpy() for layer in layers],
    )


def _trained(
    inputs: torch.Tensor,
    target: torch.Tensor,
    error: torch.Tensor,
    noise: torch.Tensor,
    untold: torch.Tensor,
) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        last = nn.Linear(HIDDEN, 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        network = nn.Sequential(
            nn.Linear(inputs.shape[1], HIDDEN), nn.SiLU(),
            nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), last,
        )  # fmt: skip
        steps = EPOCHS * len(inputs) // BATCH + 1
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
        for _ in range(steps):
            some = torch.randint(len(inputs), (BATCH,))
            batch = inputs[some]
            batch[: int(FORGOTTEN * BATCH), -OF_THE_PSF:] = untold
            change, spread = network(batch).T
            off = target[some] - change
            loss = _misfit(off, error[some])
            loss = loss + _surprise(off.detach(), error[some] * spread.exp(), noise[some])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network


def _misfit(off: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    return (off.abs() / error.clamp(min=LEAST_ERROR)).clamp(max=WORST).mean()


def _surprise(off: torch.Tensor, error: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    size = torch.sqrt(error**2 + noise**2)
    return ((off.abs() / size).clamp(max=WORST) + size.log()).mean()


def _standard(features: Values, centre: Values, scale: Values) -> Values:
    """Features about their middle; what lies far out is not told apart."""
    bounded = np.clip((features - centre) / scale, -REACH, REACH)
    return np.asarray(REACH * bounded)


def _rounded(values: Values) -> list[Any]:
    digits = [float(f"{value:.7g}") for value in values.ravel().tolist()]
    return list(np.reshape(digits, values.shape).tolist())
