"""One layer of linear attention, and the gradient step that it should become.

A task is y_i = w' x_i + e_i, w ~ N(0, v I), e ~ N(0, s), x ~ N(0, S), S diagonal. The prompt is
the matrix with columns z_i = (x_i, y_i), and z = (x, 0) for the query. With all weights free, but
one row p of the value matrix that reaches the output and the columns Q of the product of keys and
queries that a query with y = 0 reaches, the layer predicts

    y = p' (1/n sum_i z_i z_i') Q x,      p [d + 1], Q [d + 1, d]

(Ahn et al. 2023, 2306.00297, equation 3, up to signs). With p = (0, 1) and Q = (A; 0) that is
x' A' (1/n sum_i y_i x_i): the prediction after one step of gradient descent from w = 0 on the
squared error, A the step size or preconditioner (von Oswald et al. 2023, 2212.07677). The best
layer is of this form (Ahn et al., theorem 1; Mahankali et al. 2023, 2307.03576), with A diagonal:

    a_j = 1 / ((n + 1) / n S_j + tr(S) / n + s / (n v))

Ahn et al. have s = 0; the last term is ours, from the same moments: with G = 1/n sum x_i x_i',
E[G B G] = (n + 1)/n S B S + tr(B S) S / n, and the noise adds s/n tr(A S A' S) to the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LinearTasks:
    """Linear functions with Gaussian inputs.

    Attributes:
        spectrum: Variances S of the inputs, d of them.
        weight_var: Variance v of the weights.
        noise_var: Variance s of the noise of y.
        context: Context rows n.
    """

    spectrum: tuple[float, ...]
    weight_var: float
    noise_var: float
    context: int

    def sample(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs `[B, n + 1, d]`, noisy context targets `[B, n]`, w' x of the query `[B]`."""
        d = len(self.spectrum)
        S = torch.tensor(self.spectrum)
        X = torch.randn(batch, self.context + 1, d, generator=generator) * S.sqrt()
        w = torch.randn(batch, d, 1, generator=generator) * self.weight_var**0.5
        f = (X @ w)[..., 0]
        noise = torch.randn(batch, self.context, generator=generator) * self.noise_var**0.5
        return X, f[:, :-1] + noise, f[:, -1]

    def step_size(self) -> Tensor:
        """The best preconditioner a, `[d]`."""
        S, n = torch.tensor(self.spectrum), self.context
        ridge = self.noise_var / self.weight_var
        return 1 / ((n + 1) / n * S + (S.sum() + ridge) / n)

    def risk(self, A: Tensor) -> Tensor:
        """Mean squared error of one step with preconditioner `A` `[d, d]`, in closed form."""
        S, n, v = torch.diag(torch.tensor(self.spectrum)), self.context, self.weight_var
        B = A @ S @ A.mT
        square = ((n + 1) / n * S @ B @ S).trace() + (B @ S).trace() * S.trace() / n
        return v * (S.trace() - 2 * (A @ S @ S).trace() + square) + (
            self.noise_var / n * (B @ S).trace()
        )

    def gradient_step(self, X: Tensor, y: Tensor) -> Tensor:
        """Prediction of the best single step, `[B]`."""
        moment = (X[:, :-1] * y[..., None]).mean(1)
        return (moment * self.step_size() * X[:, -1]).sum(-1)

    def ridge(self, X: Tensor, y: Tensor) -> Tensor:
        """Posterior mean at the query, `[B]`."""
        known = X[:, :-1]
        gram = known.mT @ known + self.noise_var / self.weight_var * torch.eye(X.shape[-1])
        w = torch.linalg.solve(gram, known.mT @ y[..., None])
        return (X[:, -1:] @ w)[:, 0, 0]


class LinearAttention(nn.Module):
    """One layer of linear attention that predicts the query's target.

    Args:
        features: Features d.
        generator: Of the initial weights.
    """

    def __init__(self, features: int, generator: torch.Generator) -> None:
        super().__init__()
        d = features
        self.value = nn.Parameter(0.3 * torch.randn(d + 1, generator=generator))
        self.key_query = nn.Parameter(0.3 * torch.randn(d + 1, d, generator=generator))

    def forward(self, X: Tensor, y: Tensor) -> Tensor:
        """Prediction `[B]` from inputs `[B, n + 1, d]`, the last the query's, and `[B, n]`."""
        rows = torch.cat([X[:, :-1], y[..., None]], dim=-1)  # [B, n, d + 1]
        queries = X[:, -1] @ self.key_query.mT  # [B, d + 1]
        scores = (rows @ queries[..., None])[..., 0]  # [B, n]
        return (scores * (rows @ self.value)).mean(-1)

    @torch.no_grad()
    def preconditioner(self) -> Tensor:
        """A `[d, d]`: what multiplies the moments of the context; free of the scale of p."""
        return self.value[-1] * self.key_query[:-1]

    @torch.no_grad()
    def other_entries(self) -> dict[str, float]:
        """Root mean squares of the entries that should be 0, relative to those that should not."""
        A = self.key_query[:-1]
        return {
            "value_of_inputs": float(self.value[:-1].square().mean().sqrt() / self.value[-1].abs()),
            "key_query_of_target": float(
                self.key_query[-1].square().mean().sqrt() / A.diagonal().square().mean().sqrt()
            ),
            "key_query_off_diagonal": float(
                (A - A.diagonal().diag()).square().sum().div(A.numel() - len(A)).sqrt()
                / A.diagonal().square().mean().sqrt()
            ),
        }


def train_linear_attention(
    tasks: LinearTasks, *, steps: int, batch: int, seed: int
) -> LinearAttention:
    """Adam with a cosine schedule on fresh tasks; the weights of the last quarter averaged."""
    generator = torch.Generator().manual_seed(seed)
    layer = LinearAttention(len(tasks.spectrum), generator)
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=1e-4)
    averaged = torch.optim.swa_utils.AveragedModel(layer)
    for step in range(steps):
        X, y, target = tasks.sample(batch, generator)
        loss = (layer(X, y) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step >= 3 * steps // 4:
            averaged.update_parameters(layer)
    return averaged.module
