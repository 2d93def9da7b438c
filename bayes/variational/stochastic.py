"""Minibatches: natural gradient steps for q(v), Adam for everything else.

Salimbeni et al. 2018 (1803.09151). The rate of both falls to zero in the second half, so that the
noise of the minibatches is averaged away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bayes.variational.projection import factor, project
from bayes.variational.whitened_gaussian import WhitenedGaussian, target

if TYPE_CHECKING:
    from bayes.variational.variational_process import VariationalProcess

__all__ = ["StochasticAscent"]

_RATE, _NATURAL_RATE = 0.02, 0.1
# Of the objective that progress shows.
_MEMORY = 0.95


class StochasticAscent:
    """Ascent of a model's bound by minibatches.

    Args:
        model: The model, whose parameters and q(v) are changed in place.
        batch_size: Rows of a minibatch.
        steps: How many are planned.
        seed: Seed of the minibatches.
    """

    def __init__(self, model: VariationalProcess, batch_size: int, steps: int, seed: int) -> None:
        self.model = model
        self.batch_size, self.steps = batch_size, steps
        self.q = WhitenedGaussian(model.q_linear, model.q_precision)
        self.Y = model.targets().double()
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.long, device="cpu")
        learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimiser = torch.optim.Adam(learnt, lr=_RATE)
        self._taken = 0
        self._shown: float | None = None

    def step(self) -> float:
        """Take one step; a running mean of the bound in nats per row."""
        model, n = self.model, len(self.Y)
        index = self._rows().to(self.Y.device)
        share = min(1.0, 2 * (1 - self._taken / self.steps))
        for group in self._optimiser.param_groups:
            group["lr"] = _RATE * share
        law, Z = model.law, model.inducing.points
        rows = project(
            model.covar_module,
            Z,
            factor(model.covar_module, Z),
            model.transformed_inputs(model.train_X[index]),
        )
        inverse_scale = torch.as_tensor(law.inverse_scale(), dtype=torch.float64)
        r = float(inverse_scale.detach())
        at = self.q.factorised(r)
        assert at is not None
        mean, variance = at.marginals(rows)
        weight = n / len(index)
        expected = law.expected_log_prob(self.Y[index], mean, variance)
        expected = model.weighed(expected, index).sum() * weight
        g, h = torch.autograd.grad(expected, (mean, variance), retain_graph=True)
        objective = expected - at.divergence(inverse_scale) - law.divergence()
        objective = objective + model._log_priors()
        value = float(objective.detach()) / n
        self._optimiser.zero_grad()
        if objective.requires_grad:
            (-objective / n).backward()
            self._optimiser.step()
        with torch.no_grad():
            linear, precision = target(rows.detach(), mean, g, h)
            prior = WhitenedGaussian.prior(linear.shape, linear.device)
            ahead = WhitenedGaussian(linear, prior.precision + precision)
            self._move(ahead, _NATURAL_RATE * share, r)
        self._taken += 1
        before = value if self._shown is None else self._shown
        self._shown = _MEMORY * before + (1 - _MEMORY) * value
        return self._shown

    def finish(self) -> None:
        """Leave q(v) with the model."""
        self.model.q_linear, self.model.q_precision = self.q.linear, self.q.precision

    def _move(self, ahead: WhitenedGaussian, step: float, inverse_scale: float) -> None:
        """Towards another q, less far where that would be no distribution."""
        for _ in range(12):
            candidate = self.q.towards(ahead, step)
            if candidate.factorised(inverse_scale) is not None:
                self.q = candidate
                return
            step /= 2

    def _rows(self) -> torch.Tensor:
        """Numbers of the next rows, each once in a pass over all."""
        if len(self._order) < self.batch_size:
            new = torch.randperm(len(self.Y), generator=self._generator, device="cpu")
            self._order = torch.cat([self._order, new])
        taken, self._order = self._order.split(
            [self.batch_size, len(self._order) - self.batch_size]
        )
        return taken
