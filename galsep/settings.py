"""Where settings come from and go to: options of the command line and TOML files.

A value comes from, in falling order of precedence, an option on the command line, the file of
``--config``, the default of :mod:`galsep.config`. Unknown keys are refused, with the nearest known
one named.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from galsep.config import (
    RECIPES,
    DeblendConfig,
    EvaluateConfig,
    ImportConfig,
    SimulateConfig,
    TrainConfig,
)
from galsep.errors import UsageError

__all__ = ["dump_toml", "parse_toml", "read_bounded", "read_toml", "resolve"]

LARGEST_TOML = 2**17
"""Bytes of a TOML file; one that is larger is not read on."""

LARGEST_INTEGER = 2**63 - 1
"""Of those that TOML has."""

Config = TypeVar("Config", SimulateConfig, TrainConfig, DeblendConfig, EvaluateConfig, ImportConfig)


def resolve(cls: type[Config], file: Path | None, options: Mapping[str, Any]) -> Config:
    """Merge defaults, a TOML file and command-line options into one configuration.

    Parameters
    ----------
    cls : type
        One of the configuration dataclasses.
    file : Path or None
        TOML file with keys of that dataclass.
    options : mapping
        Options given on the command line; ``None`` means not given.

    Raises
    ------
    UsageError
        For an unreadable file, an unknown key or a bad value.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values.update(read_toml(file))
        _check_names(cls, values, f"{file}: ")
    values.update({key: value for key, value in options.items() if value is not None})
    if cls is TrainConfig:
        recipe = values.get("recipe", "compact")
        values = {**(RECIPES.get(recipe, {}) if isinstance(recipe, str) else {}), **values}
        if "epochs" in values:
            epochs = _coerce("epochs", values["epochs"], int)
            if "stages" not in values:
                # A shorter or longer cosine run is still one stage.
                values["stages"] = (("all", max(1, epochs), 1e-3),)
            elif options.get("epochs") is not None and options.get("stages") is None:
                values["stages"] = _lengthened(values["stages"], epochs)
    _check_names(cls, values)
    hints = typing.get_type_hints(cls)
    checked = {}
    for key, value in values.items():
        checked[key] = _coerce(key, value, hints[key])
    return cls(**checked)


def _lengthened(stages: Any, epochs: int) -> Any:
    """Have the only stage of a file end with the epochs that are asked for."""
    match stages:
        case [[part, int(), rate]]:
            return ((part, max(1, epochs), rate),)
    return stages


def _check_names(cls: type[Any], values: Mapping[str, Any], where: str = "") -> None:
    """Refuse settings that a configuration does not have; ``where`` names their file."""
    known = cls.__dataclass_fields__
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise UsageError(f"{where}unknown setting {name!r}{hint}")


def read_toml(file: Path) -> dict[str, Any]:
    """Read a TOML file of settings, whose names may be spelt with hyphens.

    Returns
    -------
    dict
        By name with underscores.

    Raises
    ------
    UsageError
        When the file is missing, is not TOML or has a setting twice.
    """
    values: dict[str, Any] = {}
    try:
        for key, value in parse_toml(file).items():
            name = key.replace("-", "_")
            if name in values:
                raise UsageError(f"{file}: holds {name!r} twice, in two spellings")
            values[name] = value
        return values
    except FileNotFoundError as error:
        raise UsageError(f"{file}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: not a readable TOML file ({error})") from error


def parse_toml(file: Path) -> dict[str, Any]:
    """Read any TOML file of at most :data:`LARGEST_TOML` bytes.

    Raises
    ------
    OSError, ValueError
        When it is missing, larger or no TOML.
    """
    try:
        return tomllib.loads(read_bounded(file, LARGEST_TOML).decode("utf-8"))
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


def read_bounded(file: Path, limit: int) -> bytes:
    """Read a file of at most so many bytes, whatever its size claims to be.

    Raises
    ------
    OSError, ValueError
        When it cannot be read or is larger.
    """
    with file.open("rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"more than {limit} bytes")
    return content


def dump_toml(
    config: SimulateConfig | TrainConfig | DeblendConfig | EvaluateConfig | ImportConfig,
) -> str:
    """Write a configuration as TOML; unset values are left out."""
    values = {k: v for k, v in dataclasses.asdict(config).items() if v is not None}
    return tomli_w.dumps(values)


def _coerce(name: str, value: Any, hint: Any) -> Any:
    """Check a plain value against a field's type, turning TOML lists into tuples."""
    if type(value) is int and abs(value) > LARGEST_INTEGER:
        raise UsageError(f"{name}: the number is too large")
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in allowed:
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if kind in (int, str, bool) and type(value) is kind:
            return value
        if kind is type(None) and value is None:
            return None
        if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
            return _coerce_tuple(name, value, typing.get_args(kind))
    raise UsageError(f"{name}: {value!r} has the wrong type, expected {hint}")


def _coerce_tuple(name: str, value: list[Any] | tuple[Any, ...], args: tuple[Any, ...]) -> Any:
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_coerce(name, item, args[0]) for item in value)
    if len(value) != len(args):
        raise UsageError(f"{name}: expected {len(args)} values, got {value!r}")
    return tuple(_coerce(name, item, kind) for item, kind in zip(value, args, strict=True))
