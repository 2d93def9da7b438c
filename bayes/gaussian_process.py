"""Exact Gaussian process regression with any kernel, infinite networks' included.

f ~ GP(0, k), y = f(x) + e, e ~ N(0, noise). Thin on BoTorch's `SingleTaskGP`: a BoTorch model in
every respect, whose posterior also answers for its densities.
"""

from __future__ import annotations

from gpytorch.distributions import MultivariateNormal
from torch.distributions.transforms import AffineTransform

from bayes.exact_process import ExactProcess
from bayes.marginal_likelihood import JointMarginalLogLikelihood
from priors.posteriors.gaussian import GaussianPosterior

__all__ = ["GaussianProcess"]


class GaussianProcess(ExactProcess):
    """A Gaussian process conditioned exactly on data.

    The posterior is a `priors.GaussianPosterior`, joint over points; a non-affine outcome transform
    makes it that Gaussian seen through the transform. `fit()` maximises the marginal likelihood
    over kernel and noise, and `log_marginal_likelihood()` decides among kernels. O(n^3) time,
    O(n^2) memory.

    Args:
        train_X: Inputs, `[..., n, d]`.
        train_Y: Outcomes, `[..., n, m]`, any number of columns.
        kernel: Prior covariance of f; copied, so the learnt values are in `covar_module` and in
            the model's `repr`. It is used as it is: wrap it in `gpytorch.kernels.ScaleKernel` for
            a learnt output scale.
        train_Yvar: Known noise variances, `[..., n, m]`, units of Y squared. Without them a
            single noise variance per output is learnt, from 0.1 on the model's scale and under
            BoTorch's prior.
        likelihood: A GPyTorch Gaussian likelihood to use instead, copied.
        input_transform: `DEFAULT` standardises by the training rows, None applies none; or a
            BoTorch `InputTransform`.
        outcome_transform: `DEFAULT` standardises by the training rows, None applies none; or an
            elementwise `torch.distributions` transform from the model's scale to Y's.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes disagree or values are not finite.
    """

    def _marginal_log_likelihood(self) -> JointMarginalLogLikelihood:
        return JointMarginalLogLikelihood(self.likelihood, self)

    def _process_posterior(
        self, gaussian: MultivariateNormal, transform: AffineTransform | None
    ) -> GaussianPosterior:
        return GaussianPosterior(gaussian, transform)
