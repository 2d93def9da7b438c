"""Drawn networks as functions: at all rows in blocks to a memory budget, and as sample paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from botorch.models.deterministic import DeterministicModel
from botorch.sampling.pathwise.paths import SamplePath
from botorch.sampling.pathwise.posterior_samplers import DrawMatheronPaths
from torch import Tensor, nn

from bayes.likelihoods.base import beside_rows
from bayes.networks.predictions import check_draws, likelihood_draws
from priors.networks.finite import NetworkPrior

if TYPE_CHECKING:
    from bayes.networks.bayesian_network import BayesianNetwork
    from bayes.networks.weight_priors import WeightPrior

__all__ = ["DrawnNetworks", "drawn_networks", "evaluate_in_blocks", "linearised", "register_paths"]


def evaluate_in_blocks(
    network: NetworkPrior,
    outputs: Callable[[slice, Tensor], Tensor],
    number: int,
    X: Tensor,
    max_bytes: int,
) -> Tensor:
    """Outputs of many networks at the same rows, some networks and rows at a time.

    Args:
        network: The architecture.
        outputs: Of some of the networks at rows `[q, d]`, `[size, q, k]`.
        number: S, of networks.
        X: Inputs, `[..., q, d]`.
        max_bytes: Memory for weights and intermediate values of a block; at least one network at
            one row is evaluated at a time.

    Returns:
        `[S, ..., q, k]`.
    """
    size = X.element_size()
    own = sum(p.numel() for p in network.module.parameters())
    pairs = max(1, max_bytes // (size * _numbers_per_row(network, X)))
    rows = X.reshape(-1, X.shape[-1])
    networks = min(pairs // max(1, len(rows)), max_bytes // (size * max(1, own)))
    networks = min(max(networks, 1), max(number, 1))
    starts = range(0, number, networks)
    blocks = (
        torch.cat([outputs(which, some) for some in rows.split(pairs)], dim=-2)
        for which in (slice(start, start + networks) for start in starts)
    )
    out = next(blocks)
    if len(starts) > 1 and out.requires_grad:
        out = torch.cat([out, *blocks])
    elif len(starts) > 1:  # into one tensor: many small ones would scatter over the heap
        first, out = out, out.new_empty(number, *out.shape[1:])
        out[:networks] = first
        for start, block in zip(starts[1:], blocks, strict=True):
            out[start : start + networks] = block
    return out.reshape(number, *X.shape[:-1], out.shape[-1])


def linearised(
    prior: WeightPrior, center: Mapping[str, Tensor], eps: Tensor, X: Tensor, *, each: bool = False
) -> Tensor:
    """Outputs of the network linearised in its whitened weights, f(center) + J (eps - center).

    Args:
        prior: Of weights that are Gaussian.
        center: By site, `[*event]`; the whitened weights "eps" `[D]` among them.
        eps: Of S networks, `[S, D]`.
        X: Inputs, `[..., q, d]`.
        each: Whether each network has inputs of its own, `[S, ..., q, d]`.

    Returns:
        `[S, ..., q, k]`.
    """

    drawn = {name: center[name] for name in prior.sites()}

    def one(change: Tensor, x: Tensor) -> Tensor:
        def functions(eps: Tensor) -> Tensor:
            return prior.functions(eps, drawn, x)

        value, slope, *_ = torch.func.jvp(functions, (center["eps"],), (change,))
        return value + slope

    return torch.func.vmap(one, in_dims=(0, 0 if each else None))(eps - center["eps"], X)


def _numbers_per_row(network: NetworkPrior, X: Tensor) -> int:
    """About how many numbers a network holds at once for one row: twice all layers' outputs."""
    counted = [X.shape[-1]]

    def count(layer: nn.Module, given: Any, result: Any) -> None:
        parts = result if isinstance(result, tuple) else (result,)
        counted.extend(part.numel() for part in parts if isinstance(part, Tensor))

    layers = [layer for layer in network.module.modules() if not any(layer.children())]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            own = {name: p.detach().to(X) for name, p in network.module.named_parameters()}
            network.apply_parameters(own, torch.zeros_like(X.reshape(-1, X.shape[-1])[:1]))
    finally:
        for hook in hooks:
            hook.remove()
    return 2 * sum(counted)


class DrawnNetworks(DeterministicModel):
    """Networks drawn from a posterior, as functions: posterior sample paths.

    What is noise-free, in units of Y: function values, rates of counts, class probabilities.

    Args:
        model: The fitted model.
        index: Which of its draws, `[*sample_shape]`; of those that it holds now.
    """

    def __init__(self, model: BayesianNetwork, index: Tensor) -> None:
        super().__init__()
        self.model = model
        self._made_for = model.fitted_draws().identity
        self.index: Tensor
        self.register_buffer("index", index, persistent=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.index.shape)} of {self.model!r})"

    @property
    def num_outputs(self) -> int:
        """That of the model."""
        return self.model.num_outputs

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the draws."""
        return self.index.shape

    def forward(self, X: Tensor) -> Tensor:
        """The drawn functions.

        Args:
            X: Inputs `[*batch, n, d]`; the batch broadcasts with the shape of the draws, so that
                each may have inputs of its own.

        Returns:
            `[*batch, n, m]`, the batch broadcast.

        Raises:
            RuntimeError: the model has been fitted again.
        """
        model = self.model
        check_draws(type(self).__name__, model, self._made_for)
        batch = torch.broadcast_shapes(X.shape[:-2], self.index.shape)
        X = model.transformed_inputs(X).expand(*batch, *X.shape[-2:])
        beyond = len(batch) - self.index.dim()
        index, lead = self.index.expand(batch[beyond:]), batch[:beyond]
        grouped = X.reshape(lead.numel(), index.numel(), *X.shape[-2:]).transpose(0, 1)
        chosen, prior = index.flatten(), model.weight_prior
        draws = model.fitted_draws()
        samples = {k: v.flatten(0, 1)[chosen] for k, v in draws.samples.items()}
        if draws.center is None:
            drawn = {name: samples[name] for name in prior.sites()}
            f = prior.functions(samples["eps"], drawn, grouped, each=True)
        else:
            f = linearised(prior, draws.center, samples["eps"], grouped, each=True)
        own = {name: beside_rows(samples[name], f) for name in likelihood_draws(model)}
        value = model.likelihood.noise_free(f, own).transpose(0, 1)
        value = value.reshape(*batch, *value.shape[-2:])
        if model.outcome_transform is None:
            return value
        transformed: Tensor = model.outcome_transform.transform(value)
        return transformed


def drawn_networks(
    model: BayesianNetwork,
    log_weights: Tensor,
    sample_shape: torch.Size,
    generator: torch.Generator | None,
) -> DrawnNetworks:
    """Networks drawn from a posterior's S draws by their log weights `[S]`."""
    where = log_weights.device if generator is None else generator.device
    index = log_weights.detach().softmax(0).to(where)
    size = torch.Size(sample_shape)
    drawn = index.multinomial(size.numel(), replacement=True, generator=generator)
    return DrawnNetworks(model, drawn.to(log_weights.device).reshape(size))


class _Path(SamplePath):
    """The same in the shapes of BoTorch's paths, which have no dimension of a single output."""

    def __init__(self, drawn: DrawnNetworks) -> None:
        super().__init__()
        self.drawn = drawn
        self.input_transform = None
        self.output_transform = None

    def forward(self, X: Tensor) -> Tensor:
        """`[..., n]` at X `[..., n, d]`; of several outputs `[..., m, n]` at `[..., 1, n, d]`."""
        if self.drawn.num_outputs == 1:
            return self.drawn(X).squeeze(-1)
        return self.drawn(X.squeeze(-3)).transpose(-1, -2)

    def set_ensemble_as_batch(self, ensemble_as_batch: bool) -> None:
        """Nothing to do: draws are no ensemble.

        Args:
            ensemble_as_batch: Ignored.
        """


def register_paths(kind: type) -> None:
    """Let BoTorch's pathwise sampling draw paths of a model that has `sample_path`."""

    @DrawMatheronPaths.register(kind)
    def draw_paths(model: Any, *, sample_shape: torch.Size, **_: Any) -> _Path:
        return _Path(model.sample_path(sample_shape))
