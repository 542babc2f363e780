"""Settings of ``galsep evaluate``."""

from dataclasses import dataclass

from galsep.config.checks import at_least

__all__ = ["EvaluateConfig"]


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """How ``galsep evaluate`` judges.

    Parameters
    ----------
    weights : str
        File or packaged name; empty for the default ones.
    limit : int
        Test blends to judge; 0 for the whole test split.
    psf : bool
        The PSF that the data set gives is known, for stars and for fluxes; a stamp is too small to
        measure it on.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    batch_size : int
        Cutouts that the network takes at once.
    baselines : bool
        Judge SEP and photutils, too.
    workers : int
        Processes for these; 0 for one for each CPU core.

    Raises
    ------
    UsageError
        For a value out of its range.
    """

    weights: str = ""
    limit: int = 0
    psf: bool = True
    device: str = "auto"
    batch_size: int = 32
    baselines: bool = True
    workers: int = 0

    def __post_init__(self) -> None:
        at_least("limit", self.limit, 0)
        at_least("batch_size", self.batch_size, 1)
        at_least("workers", self.workers, 0)
