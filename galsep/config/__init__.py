"""Settings of the commands: frozen dataclasses that check their values."""

from galsep.config.datasets import (
    ImportConfig,
    SimulateConfig,
    field_shape,
    parse_range,
    split_shares,
)
from galsep.config.deblending import (
    CATALOG_FORMATS,
    FILE_SETTINGS,
    MACHINE_SETTINGS,
    MAX_BIT,
    TEXT_FORMATS,
    DeblendConfig,
    without_folder,
)
from galsep.config.evaluating import EvaluateConfig
from galsep.config.training import RECIPES, TrainConfig

__all__ = [
    "CATALOG_FORMATS",
    "FILE_SETTINGS",
    "MACHINE_SETTINGS",
    "MAX_BIT",
    "RECIPES",
    "TEXT_FORMATS",
    "DeblendConfig",
    "EvaluateConfig",
    "ImportConfig",
    "SimulateConfig",
    "TrainConfig",
    "field_shape",
    "parse_range",
    "split_shares",
    "without_folder",
]
