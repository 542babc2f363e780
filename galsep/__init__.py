"""galsep: separate overlapping galaxies with Mask R-CNN.

What it offers is loaded when it is first used, so that importing this package stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "DeblendConfig",
    "DeblendResult",
    "SimulateConfig",
    "__version__",
    "deblend",
    "load_model",
    "simulate",
]

_HOMES = {
    "DeblendConfig": "galsep.config",
    "DeblendResult": "galsep.workflows.result",
    "SimulateConfig": "galsep.config",
    "deblend": "galsep.workflows.deblend",
    "load_model": "galsep.model.weights",
    "simulate": "galsep.workflows.simulate",
}

if TYPE_CHECKING:
    from galsep.config import DeblendConfig, SimulateConfig
    from galsep.model.weights import load_model
    from galsep.workflows.deblend import deblend
    from galsep.workflows.result import DeblendResult
    from galsep.workflows.simulate import simulate
else:
    # Unseen by type checkers, which would take any name for one of galsep's.
    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'galsep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
