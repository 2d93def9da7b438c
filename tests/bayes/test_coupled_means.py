"""Newton's step for coupled functions, and the slopes of classes that it is made of."""

import pytest
import torch
from torch.distributions import InverseGamma

from bayes.likelihoods import Categorical
from bayes.variational.coupled_means import CoupledRows, coupled_means
from bayes.variational.laws import Law, own_law
from bayes.variational.scaled_classes import ScaledClassesLaw


def functions(n=5, classes=3):
    generator = torch.Generator().manual_seed(0)
    mean, spread = torch.randn(2, n, classes, generator=generator, dtype=torch.float64)
    Y = (torch.arange(n) % classes).double()[:, None]
    return Y, mean, spread.exp()


def laws():
    Y, _, _ = functions()
    scale = InverseGamma(*torch.tensor([3.0, 2.0], dtype=torch.float64))
    return [own_law(Categorical(3), Y), ScaledClassesLaw(Categorical(3), scale, Y)]


@pytest.mark.parametrize("law", laws(), ids=["classes", "scaled classes"])
def test_slopes_of_classes_are_derivatives(law):
    Y, mean, variance = functions()
    found, expected = law.slopes(Y, mean, variance), Law.slopes(law, Y, mean, variance)
    for name in ("value", "mean", "variance"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    for i, row in enumerate(mean):

        def of_row(m, i=i):
            return law.expected_log_prob(Y[i : i + 1], m[None], variance[i : i + 1]).sum()

        hessian = torch.autograd.functional.hessian(of_row, row)
        torch.testing.assert_close(found.coupling[i], -hessian)


@pytest.mark.parametrize("inverse_scale", [1.0, 0.3])
def test_a_step_is_that_of_a_dense_solve(inverse_scale):
    Y, mean, variance = functions()
    slopes = laws()[0].slopes(Y, mean, variance)
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    m = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    precision = torch.eye(4, dtype=torch.float64) + torch.stack(
        [A.mT @ (slopes.coupling[:, c, c, None] * A) for c in range(3)]
    )
    blocks = [
        CoupledRows(A[part], slopes.mean[part], slopes.coupling[part])
        for part in (slice(0, 2), slice(2, 5))
    ]
    found = coupled_means(m, precision, inverse_scale, blocks, tolerance=1e-12)
    bent = torch.einsum("ncd,ni,nj->cidj", slopes.coupling, A, A).reshape(12, 12)
    bent = bent + inverse_scale * torch.eye(12, dtype=torch.float64)
    slope = (slopes.mean.mT @ A - inverse_scale * m).flatten()
    expected = m + torch.linalg.solve(bent, slope).reshape(3, 4)
    torch.testing.assert_close(found, expected)
