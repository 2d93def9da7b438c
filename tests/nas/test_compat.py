"""Names borrowed from Optuna: each exists and does what we rely on."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from nas.compat import contains


def test_contains():
    number = FloatDistribution(0.1, 1.0, log=True)
    assert contains(number, 0.1)
    assert contains(number, 1.0)
    assert not contains(number, 2.0)
    steps = IntDistribution(1, 9, step=2)
    assert contains(steps, 5)
    assert not contains(steps, 4)
    choice = CategoricalDistribution(["a", None])
    assert contains(choice, None)
    with pytest.raises(ValueError, match="not in"):
        contains(choice, "b")
    with pytest.raises(ValueError, match=r".+"):
        contains(number, "b")
