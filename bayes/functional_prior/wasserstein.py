"""Matching by the Wasserstein distance in its dual form, as Tran et al. 2022 published it.

Kantorovich and Rubinstein: W_1(p, q) is the largest E_p[c] - E_q[c] over critics c that are
1-Lipschitz. The critic is a network of values at a measurement set (two layers of 200 softplus
units), held to its condition by the penalty 10 (|grad c| - 1)^2 at points between functions of
both priors (Gulrajani et al. 2017, 1704.00028). Adagrad trains it for 200 steps; then RMSprop takes
one step in the variances; and so on with another measurement set.

What is changed of the published program:

* its critic sees one bag of 128 functions and learns them by heart: here every step has other
  functions of a larger pool, and the variances move by functions that the critic has not seen;
* the state of its Adagrad outlives the critic, so that later critics learn ever more slowly: here
  each has an optimiser of its own;
* its measurement points lie in the box of training and test inputs: see `TrainingBox`;
* the result is the mean of the last quarter of the iterations, not the last of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from bayes.functional_prior.measurements import Measurements
from bayes.functional_prior.second_moments import functions_of
from bayes.functional_prior.variables import Variables
from bayes.inference.settings import check_settings
from priors.functions import FunctionPrior
from priors.networks.finite import NetworkPrior
from priors.random_state import seeded
from priors.randomness import RandomSource

__all__ = ["WassersteinMatching", "dual_distance", "train_critic"]

_PRECISION = torch.float32  # of critics


@dataclass(frozen=True)
class WassersteinMatching:
    """The dual Wasserstein distance with a critic, in the published settings.

    Attributes:
        num_iterations: Steps in the variances.
        learning_rate: Of RMSprop on their logarithms.
        num_functions: Functions of each prior in a step of either kind.
        critic_steps: Steps of each critic.
        critic_learning_rate: Of its Adagrad.
        critic_width: Units of its two layers.
        critic_pool: Functions of each prior from which the steps of a critic take theirs.
        penalty: Weight of the Lipschitz condition.
        tolerance: Norm of the critic's gradient at which its training ends.
    """

    num_iterations: int = 200
    learning_rate: float = 0.05
    num_functions: int = 128
    critic_steps: int = 200
    critic_learning_rate: float = 0.02
    critic_width: int = 200
    critic_pool: int = 2048
    penalty: float = 10.0
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        check_settings(
            self,
            at_least_one=(
                "num_iterations",
                "num_functions",
                "critic_steps",
                "critic_width",
                "critic_pool",
            ),
            positive=("learning_rate", "critic_learning_rate"),
        )

    def run(
        self,
        prior: NetworkPrior,
        target: FunctionPrior,
        measurements: Measurements,
        *,
        num_sets: int,
        num_restarts: int,
        seed: int,
        progress: bool,
    ) -> None:
        """See `MatchingMethod`; each iteration has its measurement set, and there is one start."""
        cpu = torch.Generator().manual_seed(seed)
        X = measurements.draw(cpu)
        generator = torch.Generator(X.device).manual_seed(seed)
        prior.to(X)
        with torch.no_grad():
            size = functions_of(target, X, self.num_functions, generator).square().mean()
        variables = Variables(prior, float(size))
        optimiser = torch.optim.RMSprop(variables.parameters, lr=self.learning_rate)
        bar = tqdm(
            range(self.num_iterations),
            desc="Wasserstein",
            delay=5.0,
            leave=False,
            disable=not progress,
        )
        kept = []
        for iteration in bar:
            if iteration:
                X = measurements.draw(cpu)
            with torch.no_grad():
                pool = [
                    functions_of(which, X, self.critic_pool, generator) for which in (target, prior)
                ]
            critic = train_critic(self, pool[0], pool[1], generator)
            f = functions_of(prior, X, self.num_functions, generator).to(_PRECISION)
            # E_target[c] is large where the critic tells the two apart: go up E_network[c].
            loss = -critic(f).mean()
            optimiser.zero_grad()
            loss.backward(inputs=variables.parameters)
            optimiser.step()
            variables.set(variables.get())  # within bounds
            if iteration >= self.num_iterations - max(1, self.num_iterations // 4):
                kept.append(variables.get())
        variables.set(torch.stack(kept).mean(0))
        for parameter in variables.parameters:
            parameter.grad = None


def train_critic(
    settings: WassersteinMatching, p: Tensor, q: Tensor, generator: torch.Generator
) -> nn.Module:
    """A critic that is large on functions of p and small on those of q.

    It works in float32, a sixth of the time of float64 and exact enough for what noise decides.
    All that it depends on is passed: neither an earlier critic nor its optimiser has a part.

    Args:
        settings: Of the critic and its training.
        p: Functions as rows, `[a, n]`.
        q: Others, `[b, n]`.
        generator: Of first weights and of the functions in each step.

    Returns:
        A module from `[..., n]` to `[..., 1]`, in float32.
    """
    p, q = p.to(_PRECISION), q.to(_PRECISION)
    with seeded(RandomSource(generator).seed(), p.device):
        critic = _new_critic(p, settings.critic_width)
    optimiser = torch.optim.Adagrad(critic.parameters(), lr=settings.critic_learning_rate)

    def some(functions: Tensor) -> Tensor:
        rows = torch.randint(
            len(functions),
            (settings.num_functions,),
            generator=generator,
            device=generator.device,
        )
        return functions[rows.to(functions.device)]

    for _ in range(settings.critic_steps):
        a, b = some(p), some(q)
        share = torch.rand(
            len(a), 1, generator=generator, dtype=a.dtype, device=generator.device
        ).to(a)
        between = (share * a + (1 - share) * b).requires_grad_()
        slope = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[0]
        penalty = (slope.norm(dim=-1) - 1).square().mean()
        loss = critic(b).mean() - critic(a).mean() + settings.penalty * penalty
        gradients = torch.autograd.grad(loss, list(critic.parameters()))
        for parameter, gradient in zip(critic.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
        if torch.stack([g.square().sum() for g in gradients]).sum().sqrt() < settings.tolerance:
            break
    return critic.requires_grad_(False)


def dual_distance(
    settings: WassersteinMatching, p: Tensor, q: Tensor, generator: torch.Generator
) -> float:
    """W_1 of two priors, from functions that the critic has not seen.

    Args:
        settings: Of the critic; it learns from the first half of the functions.
        p: Functions as rows, `[a, n]`.
        q: Others, `[b, n]`.
        generator: See `train_critic`.
    """
    half = min(len(p), len(q)) // 2
    critic = train_critic(settings, p[:half], q[:half], generator)
    with torch.no_grad():
        p, q = p[half:].to(_PRECISION), q[half:].to(_PRECISION)
        return float(critic(p).mean() - critic(q).mean())


def _new_critic(like: Tensor, width: int) -> nn.Sequential:
    critic = nn.Sequential(
        nn.Linear(like.shape[-1], width),
        nn.Softplus(),
        nn.Linear(width, width),
        nn.Softplus(),
        nn.Linear(width, 1),
    ).to(like)
    for layer in critic:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return critic
