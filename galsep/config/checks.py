"""What the settings' values are checked by."""

import math

from galsep.errors import UsageError

__all__ = ["at_least", "between", "finite"]


def at_least(name: str, value: float, low: float) -> None:
    """Refuse a value below a limit, NaN and infinity.

    Raises
    ------
    UsageError
    """
    if not value >= low:
        raise UsageError(f"{name} must be at least {low}, got {value}")
    finite(name, value)


def finite(name: str, value: float) -> None:
    """Refuse NaN and infinity.

    Raises
    ------
    UsageError
    """
    if not math.isfinite(value):
        raise UsageError(f"{name} must be finite, got {value}")


def between(name: str, value: float, low: float, high: float) -> None:
    """Refuse a value outside limits, or NaN.

    Raises
    ------
    UsageError
    """
    if not low <= value <= high:
        raise UsageError(f"{name} must lie between {low} and {high}, got {value}")
