"""Exact Gaussian process regression with any kernel, infinite networks' included.

f ~ GP(0, k), y = f(x) + e, e ~ N(0, noise). Thin on BoTorch's `SingleTaskGP`: a BoTorch model in
every respect, whose posterior also answers for its densities.
"""

from __future__ import annotations

from gpytorch.distributions import MultivariateNormal

from bayes.exact_process import ExactProcess
from bayes.marginal_likelihood import JointMarginalLogLikelihood
from priors.posteriors.gaussian import GaussianPosterior

__all__ = ["GaussianProcess"]


class GaussianProcess(ExactProcess):
    """A Gaussian process conditioned exactly on data.

    Arguments, `fit`, `posterior`, `save` and `load` are those of `ExactProcess`. The posterior is
    a `priors.GaussianPosterior`, joint over points; a non-affine outcome transform
    makes it that Gaussian seen through the transform. O(n^3) time, O(n^2) memory.
    """

    def _marginal_log_likelihood(self) -> JointMarginalLogLikelihood:
        return JointMarginalLogLikelihood(self.likelihood, self)

    def _process_posterior(self, gaussian: MultivariateNormal) -> GaussianPosterior:
        return GaussianPosterior(gaussian)
