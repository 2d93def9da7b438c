"""A Ctrl-C while a module is traced leaves torch as it was."""

import signal
import threading

import pytest
import torch
from torch import nn

from priors import InfiniteNetwork
from priors.programs.interruption import signals_wait


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C raises, which a process started in the background may have been told to ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupted(nn.Module):
    """Ctrl-C comes while torch.fx has torch patched."""

    def __init__(self, number=signal.SIGINT):
        super().__init__()
        self.number = number
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 1)
        self.done = False

    def forward(self, x):
        signal.raise_signal(self.number)
        x = self.last(torch.relu(self.first(x)))
        self.done = True
        return x


def test_a_trace_ends_before_the_interruption():
    call, getattribute = nn.Module.__call__, nn.Module.__getattr__
    module = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        InfiniteNetwork(module)
    assert module.done
    assert (nn.Module.__call__, nn.Module.__getattr__) == (call, getattribute)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_signals_that_raise():
    def stop(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    try:
        module = Interrupted(signal.SIGALRM)
        with pytest.raises(TimeoutError):
            InfiniteNetwork(module)
        assert module.done
        assert signal.getsignal(signal.SIGALRM) is stop
    finally:
        signal.signal(signal.SIGALRM, before)


def test_who_presses_twice_does_not_wait():
    reached = []

    def work():
        with signals_wait():
            for k in range(3):
                reached.append(k)
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == [0, 1]


def test_in_other_threads_nothing_is_changed():
    found = []

    def work():
        with signals_wait():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
