"""galsep: separate overlapping galaxies with Mask R-CNN.

The public functions load what they need when they are first used, so that importing this package
stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["__version__", "deblend", "load_model", "simulate"]

_HOMES = {
    "deblend": "galsep.workflows.deblend",
    "load_model": "galsep.model.weights",
    "simulate": "galsep.workflows.simulate",
}

if TYPE_CHECKING:
    from galsep.model.weights import load_model
    from galsep.workflows.deblend import deblend
    from galsep.workflows.simulate import simulate
else:
    # Unseen by type checkers, which would take any name for one of galsep's.
    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'galsep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
