import pytest

from galsep import interrupts
from galsep.errors import WeightsError
from galsep.interrupts import hear, interrupt_behind


@pytest.fixture(autouse=True)
def nothing_heard(monkeypatch):
    monkeypatch.setattr(interrupts, "_heard", [])


def after(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interrupt_is_found_behind_what_became_of_it(stop):
    assert interrupt_behind(after(RuntimeError("Error calling __set_name__"), stop)) is stop
    assert interrupt_behind(after(WeightsError("x"), after(SystemError("y"), stop))) is stop
    assert interrupt_behind(after(WeightsError("x"), ValueError("y"))) is None
    # What happens while an interrupt is answered is an error of its own.
    error = WeightsError("x")
    error.__context__ = stop
    assert interrupt_behind(error) is None


def test_an_interrupt_that_was_heard_is_behind_any_later_error():
    error = TypeError("data type 'i4' not understood")
    assert interrupt_behind(error) is None
    stop = hear(SystemExit(143))
    hear(KeyboardInterrupt())
    assert interrupt_behind(error) is stop
    # Answered, it is behind nothing more.
    error.__context__ = ValueError()
    error.__context__.__context__ = stop
    assert interrupt_behind(error) is None
