"""Shared by all tests: one thread, shapes are checked, and no test may change global state."""

import collections
import gc
import logging

import pytest
import torch

from tests.covering import chosen, combination, covering
from tests.shapes import check_on_import

check_on_import()

# Tensors here are small: threads cost more than they give, and CI has two cores.
torch.set_num_threads(1)


def pytest_collection_finish():
    """What was imported stays: looking through it for garbage takes a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out those that are slow
def pytest_collection_modifyitems(items):
    """Of tests marked `covering` or `fast_for` the combinations of parameters left out are slow."""
    families = collections.defaultdict(list)
    for item in items:
        apart = any(item.get_closest_marker(name) for name in ("slow", "gpu"))
        if hasattr(item, "callspec") and not apart:
            families[item.nodeid.partition("[")[0]].append(item)
    for name, family in families.items():
        if named := family[0].get_closest_marker("fast_for"):
            kept = chosen([item.callspec.id for item in family], named.args, name)
        elif family[0].get_closest_marker("covering"):
            kept = covering([combination(item) for item in family])
        else:
            continue
        for number, item in enumerate(family):
            if number not in kept:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def global_state_is_left_alone():
    """Fail the test that leaves another default dtype or gradient mode behind."""
    before = torch.get_default_dtype(), torch.is_grad_enabled(), logging.root.level
    yield
    after = torch.get_default_dtype(), torch.is_grad_enabled(), logging.root.level
    assert after == before, f"global state changed from {before} to {after}"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """Each test of devices runs on the CPU too, so that it cannot rot where there is no GPU."""
    if request.param == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    # Convolutions would else be rounded to ten bits.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def agrees(device):
    """Check that a computation stays on the device and gives there what it gives on the CPU."""

    def check(compute, *dtypes):
        for dtype in dtypes or (torch.float64, torch.float32):
            there = list(compute(device, dtype))
            here = there if device.type == "cpu" else compute(torch.device("cpu"), dtype)
            tolerance = 1e-10 if dtype == torch.float64 else 1e-4
            for found, expected in zip(there, here, strict=True):
                assert found.device == device
                size = expected.detach()[expected.isfinite()].abs()
                atol = tolerance * float(size.max()) if size.numel() else 0.0
                torch.testing.assert_close(
                    found.detach().cpu(), expected.detach(), rtol=tolerance, atol=atol
                )

    return check
