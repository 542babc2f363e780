"""The errors galsep raises.

::

    GalsepError
     ├── UsageError(ValueError)            wrong option, range, name or combination
     │    └── DeviceError                  a device asked for by name that is not there
     ├── OutputExistsError(FileExistsError)  an output exists and may not be replaced
     ├── OutputError(OSError)              an output cannot be written
     ├── InputError(ValueError)            something that was read is not usable
     │    ├── ImageError                   a FITS image
     │    ├── CatalogError                 a galaxy catalogue
     │    ├── AnnotationError              truth to import: label maps, classes, COCO's JSON
     │    ├── DatasetError                 a data set of blends
     │    └── WeightsError                 network weights or a resume state
     ├── TrainingError(RuntimeError)       training cannot go on
     ├── WorkerError(RuntimeError)         a worker process died
     └── ClusterError(RuntimeError)        a Dask cluster cannot be used

Every message is one line that names the file, what is wrong and what to do.
Only :mod:`galsep.cli` turns an error into an exit code.
"""

__all__ = [
    "AnnotationError",
    "CatalogError",
    "ClusterError",
    "DatasetError",
    "DeviceError",
    "GalsepError",
    "ImageError",
    "InputError",
    "OutputError",
    "OutputExistsError",
    "TrainingError",
    "UsageError",
    "WeightsError",
    "WorkerError",
]


class GalsepError(Exception):
    """Base of everything galsep raises on purpose."""


class UsageError(GalsepError, ValueError):
    """An option, a range, a name or a combination of them is wrong."""


class DeviceError(UsageError):
    """A computing device was asked for by name and is not available."""


class OutputExistsError(GalsepError, FileExistsError):
    """An output exists already and neither overwriting nor skipping was allowed."""


class OutputError(GalsepError, OSError):
    """An output cannot be written."""


class InputError(GalsepError, ValueError):
    """Something that was read is missing or not usable."""


class ImageError(InputError):
    """A FITS image is missing, damaged or of a kind galsep does not take."""


class CatalogError(InputError):
    """A galaxy catalogue is missing, damaged or lacks columns or rows."""


class AnnotationError(InputError):
    """Truth to be imported is missing, damaged or contradictory."""


class DatasetError(InputError):
    """A data set is missing, damaged or of another version."""


class WeightsError(InputError):
    """Network weights are missing, damaged or do not fit the architecture."""


class TrainingError(GalsepError, RuntimeError):
    """Training cannot go on, for instance after a loss that is not finite."""


class WorkerError(GalsepError, RuntimeError):
    """A worker process died before its work was done."""


class ClusterError(GalsepError, RuntimeError):
    """A Dask cluster is not there, is gone, or has another version of galsep."""
