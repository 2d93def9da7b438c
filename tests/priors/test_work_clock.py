"""Tests of the time that work takes by itself."""

import threading

import pytest
import torch

from priors.work_clock import WorkClock

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def after(monkeypatch, device, threads, *, passed, thread, process):
    """What a clock tells after these seconds of the wall, the calling thread and the process."""
    times = iter([(5.0, 2.0, 3.0), (5.0 + passed, 2.0 + thread, 3.0 + process)])
    monkeypatch.setattr(WorkClock, "_now", lambda _: next(times))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    return WorkClock(device).seconds


@pytest.mark.parametrize(
    ("threads", "passed", "thread", "process", "work"),
    [
        (1, 10.0, 10.0, 10.0, 10.0),  # an idle machine
        (1, 10.0, 2.0, 2.0, 2.0),  # four fifths of the processor are others'
        (4, 10.0, 10.0, 40.0, 10.0),  # operations in four threads
        (4, 10.0, 5.0, 20.0, 5.0),  # the same, half of them others'
        (4, 10.0, 0.1, 40.0, 10.0),  # the calling thread waits for four workers
        (4, 10.0, 10.0, 10.0, 10.0),  # serial work
        (1, 10.0, 10.0, 30.0, 10.0),  # other threads of the process: no more than has passed
    ],
)
def test_of_a_cpu_it_is_processor_time(monkeypatch, threads, passed, thread, process, work):
    found = after(monkeypatch, CPU, threads, passed=passed, thread=thread, process=process)
    assert found == pytest.approx((passed, work))


def test_of_a_gpu_it_is_what_has_passed(monkeypatch):
    found = after(monkeypatch, GPU, 2, passed=10.0, thread=0.5, process=0.5)
    assert found == pytest.approx((10.0, 10.0))


def test_waiting_is_no_work():
    clock = WorkClock(CPU)
    threading.Event().wait(0.2)
    passed, work = clock.seconds
    assert 0 <= work < passed
    assert passed >= 0.2
