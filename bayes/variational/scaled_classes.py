"""Classes by softmax of functions whose common variance is random.

Lee et al. 2021 (A scale mixture perspective of Bayesian neural networks in the infinite-width
limit), section 4: f | s ~ GP(0, s k) with s ~ p(s), q(s) inverse gamma, q(v | s) = N(m, s S). Given
s the functions are Gaussian, over s multivariate t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from botorch.posteriors import Posterior
from torch import Tensor, nn
from torch.distributions import Distribution, InverseGamma, kl_divergence

from bayes.likelihoods import Categorical
from bayes.variational.latent import Latent
from bayes.variational.laws import CategoricalLaw, class_posterior, predicted_classes
from bayes.variational.nodes import gamma_nodes, normal_nodes

__all__ = ["ScaledClassesLaw"]

_SCALES, _FUNCTIONS = 16, 256


class ScaledClassesLaw(CategoricalLaw):
    """Softmax of functions of random scale.

    Args:
        likelihood: With its number of classes.
        scale: Prior of s.
        like: Whose dtype and device the parameters have.

    Attributes:
        log_concentration: Logarithm of a in q(s) = InverseGamma(a, b).
        log_rate: Logarithm of b.
    """

    def __init__(self, likelihood: Categorical, scale: Distribution, like: Tensor) -> None:
        assert likelihood.num_classes is not None
        super().__init__(likelihood, likelihood.num_classes, 1, like)
        self.scale = scale
        self.num_nodes = _SCALES * _FUNCTIONS
        a, b = 2.0, 2.0
        if isinstance(scale, InverseGamma):
            a, b = float(scale.concentration), float(scale.rate)
        self.log_concentration = nn.Parameter(like.new_tensor(math.log(a)))
        self.log_rate = nn.Parameter(like.new_tensor(math.log(b)))

    @property
    def scale_posterior(self) -> InverseGamma:
        """q(s)."""
        return InverseGamma(self.log_concentration.double().exp(), self.log_rate.double().exp())

    def values(self) -> dict[str, Tensor]:
        return {
            "scale concentration": self.log_concentration.exp(),
            "scale rate": self.log_rate.exp(),
        }

    def inverse_scale(self) -> Tensor:
        return (self.log_concentration.double() - self.log_rate.double()).exp()

    def _scales(self, size: int = _SCALES) -> tuple[Tensor, Tensor]:
        """Nodes of s `[J]` and their log weights `[J]`, float64."""
        inverse, log_weights = gamma_nodes(
            self.log_concentration.double().exp(), self.log_rate.double().exp(), size
        )
        return 1 / inverse, log_weights

    def divergence(self) -> Tensor:
        """KL(q(s) || p(s)), in nats."""
        q = self.scale_posterior
        if isinstance(self.scale, InverseGamma):
            prior = InverseGamma(
                self.scale.concentration.to(self.log_rate).double(),
                self.scale.rate.to(self.log_rate).double(),
            )
            return kl_divergence(q, prior)
        scales, log_weights = self._scales(64)
        return (log_weights.exp() * (q.log_prob(scales) - self.scale.log_prob(scales))).sum()

    def _normals(self, like: Tensor) -> tuple[Tensor, Tensor]:
        x, log_weights = normal_nodes(self.num_functions, _FUNCTIONS, like)
        scales, of_scales = self._scales()
        x = scales.sqrt()[:, None, None] * x
        return x.flatten(0, 1).unsqueeze(-2), (of_scales[:, None] + log_weights).flatten()

    def noise_free(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        return class_posterior(latent.mean, latent.variance, outputs, *self._scales())

    def outcomes(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        return predicted_classes(latent.mean, latent.variance, outputs, *self._scales())
