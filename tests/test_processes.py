"""Signals wait for the end of a step, where that is asked for, and the caller's handlers come back."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from eva_utils.processes import raise_if_stopped, stoppable

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_waits_for_the_next_step_and_a_second_does_not(signum):
    handlers, done = [signal.getsignal(each) for each in SIGNALS], []
    with pytest.raises(KeyboardInterrupt) as stopped, stoppable(between_steps=True):
        signal.raise_signal(signum)
        done.append("the step")
        raise_if_stopped()
        done.append("the next")
    assert (stopped.value.args, done) == ((signum,), ["the step"])
    with pytest.raises(KeyboardInterrupt), stoppable(between_steps=True):
        signal.raise_signal(signum)
        signal.raise_signal(signum)
        done.append("never")
    with pytest.raises(KeyboardInterrupt), stoppable(between_steps=True):
        signal.raise_signal(signum)
        raise RuntimeError("DataLoader worker exited unexpectedly")  # it got the signal, too
    with pytest.raises(KeyboardInterrupt), stoppable(between_steps=True):
        signal.raise_signal(signum)  # after the last step
    with pytest.raises(KeyboardInterrupt), stoppable():
        signal.raise_signal(signum)
        done.append("never")
    assert done == ["the step"]
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
    raise_if_stopped()  # what is over is forgotten


def handler(signum):
    with stoppable(between_steps=True):
        return signal.getsignal(signum)


def test_another_thread_leaves_the_handlers_alone_and_nohups_stays():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handler, signal.SIGINT).result() is signal.getsignal(signal.SIGINT)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert handler(signal.SIGHUP) == signal.SIG_IGN == signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)
