import os
import signal
import threading

import pytest

from galsep import interrupts
from galsep.errors import WeightsError
from galsep.interrupts import STOPS, hear, held, interrupt_behind


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


@pytest.fixture
def other_thread():
    """A thread that takes what the main thread has blocked, as those of libraries do."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.fixture
def stopped():
    """Numbers of the signals answered, by a handler that raises as galsep's do."""
    numbers = []

    def answer(number, frame):
        numbers.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, answer) for number in STOPS}
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("other_thread")
@pytest.mark.parametrize("number", STOPS)
def test_a_signal_waits_though_another_thread_takes_it(stopped, number):
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    meanwhile = []

    def kill():
        meanwhile.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        os.kill(os.getpid(), number)
        # A thousand instructions between which a handler could run.
        meanwhile.extend(list(stopped) for _ in range(1000))

    with pytest.raises(KeyboardInterrupt), held(signal.SIGCHLD):
        kill()
    assert meanwhile == [blocked | STOPS | {signal.SIGCHLD}, *[[]] * 1000]
    assert stopped == [number]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked
    # It is answered at once again.
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_a_signal_that_waits_is_answered_after_an_error(stopped):
    def fail():
        with held():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ValueError

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert stopped == [signal.SIGTERM]


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held():
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, before)


def test_a_thread_holds_signals_by_blocking_them_alone():
    seen = []

    def hold():
        with held():
            seen.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert seen[0] >= STOPS
