"""Precisions in which contracts hold."""

from __future__ import annotations

import pytest
import torch

__all__ = ["both_dtypes"]

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
