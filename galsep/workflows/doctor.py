"""Whether this installation can do what it is for: Python, dependencies, devices, weights.

Nothing is imported here that may be what is broken.
"""

import importlib
import importlib.metadata
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import galsep
from galsep.errors import GalsepError

__all__ = ["Compute", "Dependency", "Diagnosis", "WeightsCheck", "diagnose"]

DISTRIBUTION = "galsep"


@dataclass(frozen=True, slots=True)
class Dependency:
    """A package that galsep needs.

    Parameters
    ----------
    name : str
        As the package index has it.
    version : str
        The installed one, or empty.
    needed : str
        Versions that will do, such as ``>=2.11``; empty for any.
    problem : str
        Why it does not work; empty when it does.
    """

    name: str
    version: str
    needed: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Compute:
    """What PyTorch can compute on.

    Parameters
    ----------
    devices : mapping of str to str
        Name for ``--device`` to a description.
    auto : str
        The one that ``--device auto`` takes.
    bfloat16 : bool
        Whether bfloat16 is fast on it.
    threads : int
        CPU threads.
    """

    devices: Mapping[str, str]
    auto: str
    bfloat16: bool
    threads: int


@dataclass(frozen=True, slots=True)
class WeightsCheck:
    """Whether network weights can be loaded.

    Parameters
    ----------
    name : str
        Packaged name or file name.
    sha256 : str
        Empty where there is no such file.
    problem : str
        Why they cannot be loaded; empty when they can.
    """

    name: str
    sha256: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """State of an installation.

    Parameters
    ----------
    galsep, python, system : str
        Versions.
    dependencies : sequence of Dependency
    compute : Compute or None
        ``None`` without a working PyTorch.
    weights : WeightsCheck or None
        ``None`` where the check did not come that far.
    problems : sequence of str
        Everything that is broken, one line each.
    """

    galsep: str
    python: str
    system: str
    dependencies: Sequence[Dependency]
    compute: Compute | None = None
    weights: WeightsCheck | None = None
    problems: Sequence[str] = field(default_factory=tuple)


def diagnose(weights: str = "") -> Diagnosis:
    """Check an installation.

    Parameters
    ----------
    weights : str
        A weights file or a packaged name; the default weights if empty.
    """
    problems: list[str] = []
    dependencies = _dependencies(problems)
    compute = check = None
    try:
        compute = _compute()
    except Exception as error:  # noqa: BLE001 (a broken library raises what it likes)
        problems.append(f"PyTorch does not work ({_reason(error)}); reinstall torch")
    else:
        check = _check_weights(weights, problems)
    return Diagnosis(
        galsep=galsep.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        dependencies=dependencies,
        compute=compute,
        weights=check,
        problems=tuple(problems),
    )


def _dependencies(problems: list[str]) -> list[Dependency]:
    """What galsep's own metadata name as needed, and whether it is there and loads."""
    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        problems.append("galsep is not installed; run pip install . in its folder")
        return []
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    wanted = SpecifierSet(metadata["Requires-Python"] or "")
    if platform.python_version() not in wanted:
        problems.append(
            f"Python {platform.python_version()} is not {wanted}; install galsep with one that is"
        )
    modules = _modules()
    found = []
    for text in importlib.metadata.requires(DISTRIBUTION) or ():
        needed = Requirement(text)
        # Extras are optional.
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            one = _dependency(needed, modules)
            found.append(one)
            if one.problem:
                problems.append(
                    f"{one.name}: {one.problem}; pip install '{needed.name}{needed.specifier}'"
                )
    return sorted(found, key=lambda one: one.name.lower())


def _dependency(needed: Any, modules: Mapping[str, Sequence[str]]) -> Dependency:
    name, specifier = needed.name, str(needed.specifier)
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Dependency(name, "", specifier, "is not installed")
    if not needed.specifier.contains(version, prereleases=True):
        return Dependency(name, version, specifier, f"version {version} is not {specifier}")
    for module in modules.get(_canonical(name), ()):
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 (a broken library raises what it likes)
            return Dependency(name, version, specifier, f"does not load ({_reason(error)})")
    return Dependency(name, version, specifier)


def _modules() -> dict[str, list[str]]:
    """The module to import of each installed package, by canonical name."""
    modules: dict[str, list[str]] = {}
    for module, packages in importlib.metadata.packages_distributions().items():
        for package in packages:
            modules.setdefault(_canonical(package), []).append(module)
    # Some packages bring several; the one of their own name, else the first public one.
    return {
        package: sorted(
            names, key=lambda one: (_canonical(one) != package, one.startswith("_"), one)
        )[:1]
        for package, names in modules.items()
    }


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _compute() -> Compute:
    import torch

    from galsep.model.device import choose_device, fast_bfloat16

    devices = {"cpu": platform.processor() or platform.machine()}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple Metal"
    chosen = choose_device()
    return Compute(devices, str(chosen), fast_bfloat16(chosen), torch.get_num_threads())


def _check_weights(weights: str, problems: list[str]) -> WeightsCheck | None:
    try:
        from galsep.model.weights import DEFAULT_WEIGHTS, find_weights, load_model, sha256
    except Exception as error:  # noqa: BLE001 (a broken library raises what it likes)
        problems.append(f"galsep's network cannot be imported ({_reason(error)})")
        return None
    name, digest, problem = weights or DEFAULT_WEIGHTS, "", ""
    try:
        digest = sha256(find_weights(weights))
        load_model(weights, "cpu")
    except OSError as error:
        problem = f"{name}: {error.strerror or error}"
    except GalsepError as error:
        problem = str(error)
    if problem:
        problems.append(f"weights are not usable: {problem}")
    return WeightsCheck(name, digest, problem)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
