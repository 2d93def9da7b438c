import math

import pytest
import torch
from botorch.sampling.get_sampler import get_sampler
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator import to_linear_operator
from linear_operator.operators import BlockDiagLinearOperator
from torch.distributions import Normal, constraints
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    SigmoidTransform,
    Transform,
)

from bayes.processes.student_t import StudentTPosterior
from priors.posteriors.draws import EmpiricalPosterior
from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.gaussian_mixture import GaussianMixturePosterior
from priors.posteriors.linear_pool import MixturePosterior
from priors.posteriors.scores import score
from priors.posteriors.transformed import TransformedPosterior
from priors.testing import PosteriorContract


def covariance(batch, n, dtype, seed=0):
    root = torch.randn(*batch, n, n, generator=torch.Generator().manual_seed(seed))
    root = root.to(dtype)
    return root @ root.mT + 0.5 * torch.eye(n, dtype=dtype)


def single(dtype, batch=(3,), n=4):
    mean = torch.linspace(-1, 2, n, dtype=dtype).expand(*batch, n)
    return GaussianPosterior(MultivariateNormal(mean, covariance(batch, n, dtype)))


def several(dtype, interleaved=False):
    """Two outputs, three points; independent outputs in either storage order."""
    parts = [single(dtype, (2,), 3).distribution, single(dtype, (2,), 3).distribution * 2.0]
    joint = MultitaskMultivariateNormal.from_independent_mvns(parts)
    if interleaved:
        order = torch.arange(6).reshape(2, 3).T.flatten()
        dense = joint.covariance_matrix[..., order, :][..., order]
        joint = MultitaskMultivariateNormal(joint.mean, dense)
    return GaussianPosterior(joint)


class TestGaussian(PosteriorContract):
    def make_posterior(self, dtype):
        return single(dtype)


class TestSeveralGaussianOutputs(PosteriorContract):
    def make_posterior(self, dtype):
        return several(dtype)


class TestAffine(PosteriorContract):
    def make_posterior(self, dtype):
        loc, scale = torch.tensor([[5.0, -1.0]]).to(dtype), torch.tensor([[0.1, 3.0]]).to(dtype)
        return TransformedPosterior(several(dtype), AffineTransform(loc, scale))


class TestDecreasing(PosteriorContract):
    def make_posterior(self, dtype):
        return TransformedPosterior(single(dtype), AffineTransform(1.0, -2.0))


class TestSigmoid(PosteriorContract):
    def make_posterior(self, dtype):
        return TransformedPosterior(single(dtype), SigmoidTransform())


def test_log_normal_against_torch():
    base = single(torch.float64)
    posterior = TransformedPosterior(base, ExpTransform())
    truth = torch.distributions.LogNormal(base.mean, base.variance.sqrt())
    Y = truth.icdf(torch.tensor(0.3, dtype=torch.float64))
    assert torch.allclose(posterior.log_prob(Y), truth.log_prob(Y))
    assert torch.allclose(posterior.cdf(Y), truth.cdf(Y))
    with pytest.raises(NotImplementedError, match="qLogExpectedImprovement"):
        posterior.log_excess(0.0, 1)


def independent(mean, std, dtype):
    """Independent Gaussians at as many points."""
    mean, std = torch.tensor(mean, dtype=dtype), torch.tensor(std, dtype=dtype)
    return MultivariateNormal(mean, torch.diag(std.square()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-9)])
def test_moments_of_a_log_normal(dtype, tolerance):
    mean, std = [0.0, -3.0, 1.0], [1.0, 0.5, 1e-3]
    posterior = TransformedPosterior(
        GaussianPosterior(independent(mean, std, dtype)), ExpTransform()
    )
    exact = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    truth = torch.distributions.LogNormal(*exact)
    torch.testing.assert_close(
        posterior.mean[:, 0].double(), truth.mean, rtol=tolerance / 10, atol=0
    )
    torch.testing.assert_close(
        posterior.variance[:, 0].double(), truth.variance, rtol=tolerance, atol=0
    )


class SignedSquare(Transform):
    """y = z |z|: halves the index of the tails."""

    domain = codomain = constraints.real
    bijective = True
    sign = 1

    def _call(self, x):
        return x.abs() * x

    def _inverse(self, y):
        return y.sign() * y.abs().sqrt()

    def log_abs_det_jacobian(self, x, y):
        return (2 * x.abs()).log()


class ExponentialBelowZero(Transform):
    """y = z above 0, exp(z) - 1 below."""

    domain, codomain = constraints.real, constraints.greater_than(-1.0)
    bijective = True
    sign = 1

    def affine_beyond(self, threshold, above):
        return AffineTransform(0.0, 1.0) if above and bool((threshold >= 0).all()) else None

    def _call(self, x):
        return torch.where(x > 0, x, torch.expm1(x.clamp_max(0)))

    def _inverse(self, y):
        return torch.where(y > 0, y, torch.log1p(y.clamp_max(0)))

    def log_abs_det_jacobian(self, x, y):
        return x.clamp_max(0)


def test_transforms_of_ones_own_say_where_they_are_affine():
    base = single(torch.float64)
    posterior = TransformedPosterior(base, ExponentialBelowZero())
    for threshold in (0.0, 0.7, torch.linspace(0, 2, 4, dtype=torch.float64)[:, None]):
        torch.testing.assert_close(
            posterior.log_excess(threshold, 1), base.log_excess(threshold, 1)
        )
    for threshold, above in ((-0.1, True), (0.5, False)):
        with pytest.raises(NotImplementedError, match="closed-form expected improvement"):
            posterior.log_excess(threshold, 1, above)
        assert posterior.log_excess(threshold, 0, above).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("df", [5.0, 8.0])
def test_moments_behind_heavy_tails(df, dtype):
    base = StudentTPosterior(independent([0.0, 3.0], [1.0, 2.0], dtype), df)
    posterior = TransformedPosterior(base, SignedSquare())
    # Variance E[z^4] of the first point, E[z^2] = 0 by symmetry; the second against the density.
    assert posterior.mean[0].item() == pytest.approx(0.0, abs=1e-4)
    fourth = 3 * df**2 / ((df - 2) * (df - 4))
    assert posterior.variance[0].item() == pytest.approx(fourth, rel=1e-3)
    z = torch.linspace(-25, 25, 400_001, dtype=torch.float64).sinh() * 1e-4
    density = StudentTPosterior(independent([3.0], [2.0], torch.float64), df)
    p = density.log_prob(z[:, None, None])[:, 0, 0].exp()
    y = z.abs() * z
    mean = torch.trapezoid(p * y, z)
    variance = torch.trapezoid(p * (y - mean).square(), z)
    assert posterior.mean[1].item() == pytest.approx(mean.item(), rel=1e-4)
    assert posterior.variance[1].item() == pytest.approx(variance.item(), rel=2e-3)


def test_moments_far_from_zero_and_beyond_the_largest_number():
    def behind(*parts):
        base = GaussianPosterior(independent([0.0], [1.0], torch.float32))
        return TransformedPosterior(base, ComposeTransform(parts))

    far = behind(AffineTransform(1e4, 1.0))
    assert far.mean.item() == pytest.approx(1e4, abs=2e-3)
    assert far.variance.item() == pytest.approx(1.0, rel=1e-3)
    endless = behind(AffineTransform(0.0, 40.0), ExpTransform())
    assert endless.mean.item() == torch.inf
    assert endless.variance.item() == torch.inf
    wide = behind(AffineTransform(0.0, 12.0), ExpTransform())
    assert wide.variance.item() == torch.inf
    constant = TransformedPosterior(EmpiricalPosterior(torch.full((3, 2, 1), 0.5)), ExpTransform())
    assert constant.variance.abs().max() < 1e-12


def test_only_moments_evaluate_the_mean():
    class Costly(GaussianPosterior):
        @property
        def mean(self):
            raise AssertionError("the mean is not needed")

        def quantile(self, value):
            return Normal(0.0, 1.0).icdf(value).reshape(*value.shape, 1, 1).expand(-1, 3, 1)

        def log_excess(self, threshold, order, above=True):
            return threshold.expand(3, 1)

    base = Costly(independent([0.0] * 3, [1.0] * 3, torch.float64))
    for transform in (AffineTransform(0.0, 2.0), ExpTransform()):
        posterior = TransformedPosterior(base, transform)
        assert posterior.quantile(torch.tensor([0.3])).shape == (1, 3, 1)
        assert posterior.log_excess(1.0, 0).shape == (3, 1)
        assert posterior.rsample(torch.Size([2])).shape == (2, 3, 1)
        pool = MixturePosterior([posterior, posterior])
        assert pool.dtype == torch.float64
        assert pool.base_sample_shape == (4,)
        assert pool.rsample(torch.Size([2])).shape == (2, 3, 1)
    assert TransformedPosterior(base, ExpTransform()).variance.shape == (3, 1)


def test_numbers_are_taken_in_the_dtype_of_the_posterior():
    base = GaussianPosterior(independent([1e4 + 4e-4], [1e-4], torch.float64))
    scaled = TransformedPosterior(base, AffineTransform(0.0, 0.1))
    for posterior, best in ((base, 1e4 + 4e-4), (scaled, 0.1 * (1e4 + 4e-4))):
        found = posterior.log_excess(best, 0)
        assert found.item() == pytest.approx(math.log(0.5), rel=1e-5)
    assert scaled.variance.item() == pytest.approx(1e-10, rel=1e-10)


@pytest.mark.parametrize("p", [-0.1, 1.1, torch.nan])
def test_probabilities_are_checked(p):
    draws = torch.randn(5, 3, 1)
    gaussian = GaussianPosterior(independent([0.0] * 3, [1.0] * 3, torch.float32))
    for posterior in (
        gaussian,
        TransformedPosterior(gaussian, AffineTransform(0.0, -1.0)),
        MixturePosterior([gaussian, gaussian]),
        EmpiricalPosterior(draws),
        GaussianMixturePosterior(draws, torch.ones(1)),
        StudentTPosterior(gaussian.distribution, 5.0),
    ):
        with pytest.raises(ValueError, match=r"probabilities in \[0, 1\]"):
            posterior.quantile(torch.tensor([0.5, p]))


@pytest.mark.parametrize("interleaved", [False, True])
def test_joint_density_of_several_outputs_is_the_product(interleaved):
    posterior = several(torch.float64, interleaved)
    Y = posterior.mean + torch.randn(2, 3, 2, dtype=torch.float64)
    expected = sum(
        torch.distributions.MultivariateNormal(part.mean, part.covariance_matrix).log_prob(
            Y[..., k]
        )
        for k, part in enumerate(
            [
                single(torch.float64, (2,), 3).distribution,
                single(torch.float64, (2,), 3).distribution * 2.0,
            ]
        )
    )
    assert torch.allclose(posterior.joint_log_prob(Y), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponentials_of_heavy_tails_have_no_moments(dtype):
    normal = MultivariateNormal(torch.zeros(2, dtype=dtype), torch.eye(2, dtype=dtype))
    base = StudentTPosterior(normal, 3.0)
    up = TransformedPosterior(base, ExpTransform())
    assert torch.equal(up.mean, torch.full((2, 1), math.inf, dtype=dtype))
    assert torch.equal(up.variance, torch.full((2, 1), math.inf, dtype=dtype))
    negative = ComposeTransform([ExpTransform(), AffineTransform(0.0, -1.0)])
    assert torch.equal(TransformedPosterior(base, negative).mean, -up.mean)
    half = torch.tensor(0.5, dtype=dtype)
    torch.testing.assert_close(up.quantile(half), torch.ones(2, 1, dtype=dtype))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_values_outside_the_range_of_the_transform(sign):
    """Of a log-normal variable, or of its negative."""
    transform = ComposeTransform([ExpTransform(), AffineTransform(0.0, sign)])
    transform = ExpTransform() if sign > 0 else transform
    posterior = TransformedPosterior(single(torch.float64, (), 3), transform)
    Y = sign * torch.tensor([[0.0], [-2.0], [1.5]], dtype=torch.float64)
    Y = Y if sign > 0 else Y.clone()
    density, below = posterior.log_prob(Y), posterior.cdf(Y)
    if sign > 0:  # the composed one does not state its range
        assert torch.equal(density[:2], torch.full((2, 1), -math.inf).double())
        assert torch.equal(below[:2], torch.zeros(2, 1).double())
        assert posterior.joint_log_prob(Y) == -math.inf
        assert (posterior.log_excess(-1.0, 0) == 0).all()
        assert (posterior.log_excess(-1.0, 0, False) == -math.inf).all()
    torch.testing.assert_close(
        density[2], single(torch.float64, (), 3).log_prob(Y.abs().log())[2] - math.log(1.5)
    )
    assert posterior.log_prob(torch.full((3, 1), math.nan).double()).isnan().all()


def test_joint_density_carries_the_jacobian():
    base = several(torch.float64)
    scale = torch.tensor([[0.1, 3.0]], dtype=torch.float64)
    posterior = TransformedPosterior(base, AffineTransform(torch.zeros(1, 2).double(), scale))
    Z = base.mean + 0.3
    jacobian = 3 * scale.log().sum()
    assert torch.allclose(posterior.joint_log_prob(Z * scale), base.joint_log_prob(Z) - jacobian)


@pytest.mark.covering
@pytest.mark.parametrize("scale", [2.0, -2.0])
@pytest.mark.parametrize("maximize", [True, False])
def test_expected_improvement_against_integration(maximize, scale):
    posterior = TransformedPosterior(single(torch.float64), AffineTransform(5.0, scale))
    best = 6.5
    y = torch.linspace(-60, 70, 400_001, dtype=torch.float64)
    normal = Normal(posterior.mean.unsqueeze(-1), posterior.variance.sqrt().unsqueeze(-1))
    gain = (y - best if maximize else best - y).clamp_min(0)
    truth = torch.trapezoid(gain * normal.log_prob(y).exp(), y)
    found = posterior.log_excess(best, 1, maximize).exp()
    assert torch.allclose(found, truth, rtol=1e-8)


def test_sampler_is_registered_and_shares_base_samples_over_the_t_batch():
    posterior = TransformedPosterior(single(torch.float64), AffineTransform(0.0, 2.0))
    sampler = get_sampler(posterior, torch.Size([16]), seed=0)
    assert sampler(posterior).shape == (16, 3, 4, 1)
    assert sampler.base_samples.shape[1] == 1


def test_scores_of_known_numbers():
    mean = torch.zeros(4, dtype=torch.float64)
    posterior = GaussianPosterior(MultivariateNormal(mean, torch.eye(4, dtype=torch.float64)))
    Y = torch.tensor([[0.0], [1.0], [-1.0], [3.0]], dtype=torch.float64)
    scores = score(posterior, Y, level=0.9)
    assert math.isclose(scores.rmse, math.sqrt(11 / 4))
    assert math.isclose(scores.nlpd, 0.5 * math.log(2 * math.pi) + 11 / 8)
    assert scores.coverage == 0.75
    with pytest.raises(ValueError, match="shape"):
        score(posterior, Y[:3])
    with pytest.raises(ValueError, match="level"):
        score(posterior, Y, level=1.0)


def test_wrong_transforms_are_refused():
    with pytest.raises(ValueError, match="elementwise"):
        TransformedPosterior(
            single(torch.float64), torch.distributions.transforms.SoftmaxTransform()
        )
    for order in (-1, 2, 0.5):
        with pytest.raises(ValueError, match="order 0"):
            single(torch.float64).log_excess(0.0, order)
    mixed = AffineTransform(0.0, torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    with pytest.raises(NotImplementedError, match="increasing for all outputs or decreasing"):
        TransformedPosterior(several(torch.float64), mixed).quantile(torch.tensor(0.3))
    with pytest.raises(
        NotImplementedError,
        match="log_excess needs a transform that is increasing",
    ):
        TransformedPosterior(several(torch.float64), mixed).log_excess(0.0, 1)


@pytest.mark.parametrize("kind", ["one output", "by blocks", "joint", "interleaved"])
def test_a_unit_for_each_point_and_output(kind):
    m = 1 if kind == "one output" else 2
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(m, 3, 3, generator=generator, dtype=torch.float64)
    each = root @ root.mT + torch.eye(3)  # of every output
    loc = torch.randn(3, m, generator=generator, dtype=torch.float64)
    scale = torch.tensor([1e-3, 2.0, 1e4], dtype=torch.float64)[:, None] * torch.tensor([1.0, 3])
    scale = scale[:, :m].double()
    nothing = torch.zeros(3, m, dtype=torch.float64)
    if kind == "one output":
        base = MultivariateNormal(nothing[:, 0], each[0])
    elif kind == "by blocks":
        joint = BlockDiagLinearOperator(to_linear_operator(each))
        base = MultitaskMultivariateNormal(nothing, joint, interleaved=False)
    else:
        dense = torch.block_diag(*each)
        if kind == "interleaved":
            order = torch.arange(6).reshape(2, 3).mT.flatten()
            dense = dense[order][:, order]
        base = MultitaskMultivariateNormal(nothing, dense, interleaved=kind == "interleaved")
    posterior = GaussianPosterior(base, AffineTransform(loc, scale))
    units = torch.diag_embed(scale.mT)
    truth = units @ each @ units  # [m, 3, 3]
    torch.testing.assert_close(posterior.mean, loc)
    torch.testing.assert_close(posterior.variance, truth.diagonal(dim1=-2, dim2=-1).mT)
    found = posterior.distribution.covariance_matrix
    wanted = torch.block_diag(*truth)
    if kind == "interleaved":
        wanted = wanted[order][:, order]
    torch.testing.assert_close(found, wanted)
    Y = loc + 0.3 * scale
    density = torch.distributions.MultivariateNormal(loc.mT, truth).log_prob(Y.mT).sum()
    torch.testing.assert_close(posterior.joint_log_prob(Y), density)
