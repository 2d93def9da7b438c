"""Shared by all tests: one thread, and no test may change global state."""

import logging

import pytest
import torch

# Tensors here are small: threads cost more than they give, and CI has two cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def global_state_is_left_alone():
    """Fail the test that leaves another default dtype or gradient mode behind."""
    before = torch.get_default_dtype(), torch.is_grad_enabled(), logging.root.level
    yield
    after = torch.get_default_dtype(), torch.is_grad_enabled(), logging.root.level
    assert after == before, f"global state changed from {before} to {after}"
