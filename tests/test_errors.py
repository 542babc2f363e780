import inspect
import pickle

import pytest

from galsep import errors
from galsep.errors import GalsepError

EVERY = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", EVERY)
def test_errors_survive_the_way_back_from_a_worker(kind):
    error = pickle.loads(pickle.dumps(kind("a.fits: no such file")))  # noqa: S301
    assert type(error) is kind
    assert str(error) == "a.fits: no such file"
    assert error.args == ("a.fits: no such file",)


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_is_galseps(kind):
    assert issubclass(kind, GalsepError)


@pytest.mark.parametrize(
    ("name", "parents"),
    [
        ("UsageError", ("GalsepError", "ValueError")),
        ("DeviceError", ("UsageError",)),
        ("OutputExistsError", ("GalsepError", "FileExistsError")),
        ("OutputError", ("GalsepError", "OSError")),
        ("InputError", ("GalsepError", "ValueError")),
        ("ImageError", ("InputError",)),
        ("CatalogError", ("InputError",)),
        ("AnnotationError", ("InputError",)),
        ("DatasetError", ("InputError",)),
        ("WeightsError", ("InputError",)),
        ("TrainingError", ("GalsepError", "RuntimeError")),
        ("WorkerError", ("GalsepError", "RuntimeError")),
        ("ClusterError", ("GalsepError", "RuntimeError")),
    ],
)
def test_the_tree_is_the_one_in_the_docstring(name, parents):
    kind = getattr(errors, name)
    assert tuple(parent.__name__ for parent in kind.__bases__) == parents
    assert name in errors.__doc__


def test_all_is_complete():
    defined = [name for name, kind in vars(errors).items() if inspect.isclass(kind)]
    assert sorted(defined) == sorted(errors.__all__)


def test_the_message_of_an_output_error_is_what_was_given():
    # OSError parses two or more arguments; one stays as it is.
    assert str(errors.OutputError("out: cannot write (disk full)")) == (
        "out: cannot write (disk full)"
    )
