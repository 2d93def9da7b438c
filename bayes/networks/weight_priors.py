"""Priors of a network's weights that are not Gaussian, or whose variances are unknown.

Every weight is its prior deviation, that of the `NetworkPrior`, times a whitened weight eps and the
deviations that are drawn for its layer:

    weight = std * eps * sqrt(v_layer / var_layer) * sqrt(s), s for weights of the readout only

eps are independent with a law of mean 0 and, where it has one, variance 1; v_layer are the layer
variances, drawn from their log-normal priors with `learn_variances`, and so are the length scales
by which the inputs of a network with `ard_num_dims` are divided; s is drawn from `readout_scale`.
Given v the limit of wide networks is a Gaussian process for every law of finite
variance, by the central limit theorem; with s a scale mixture of it, of which an inverse gamma
makes a Student t process. Laws of the readout with infinite variance have stable processes as
limits (Neal 1996, section 2.2).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Laplace, StudentT

from bayes.networks.whitening import Whitening
from priors.functions import draw
from priors.networks.finite import NetworkPrior
from priors.randomness import RandomSource
from priors.representation import as_distribution

__all__ = ["WeightPrior", "student_t_weights"]

Law = str | Distribution

# Sites of standard normal numbers.
_WHITENED = ("whitened_log_var", "whitened_log_lengthscale")


class WeightPrior:
    """A `NetworkPrior` with other laws of its weights; itself a prior over functions.

    Args:
        network: Architecture and layer variances.
        weights: Law of whitened weights, of all layers or by layer name: "gaussian", "laplace",
            "student_t" (4 degrees of freedom; others by `student_t_weights`), or a symmetric
            `torch.distributions.Distribution` of a number, of variance 1 for the variances to mean
            what they say. Biases and layers not named are Gaussian.
        readout_scale: Distribution on the positive reals of a variance by which the function is
            multiplied, one for each network; none if None.
        learn_variances: Whether layer variances, and length scales of the inputs if there are any,
            are random, with the log-normal priors that `network.variances` holds, rather than
            fixed at their present values.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an unknown law or layer, or a distribution of several numbers.
        NotImplementedError: variances or length scales are to be learnt that have another prior.

    Methods:
        sample: Functions at given inputs.
        draw: Random weights by name.
        functions: The network's outputs, given whitened weights and what else is drawn.
    """

    def __init__(
        self,
        network: NetworkPrior,
        *,
        weights: Law | Mapping[str, Law] = "gaussian",
        readout_scale: Distribution | None = None,
        learn_variances: bool = False,
    ) -> None:
        if not isinstance(network, NetworkPrior):
            raise TypeError(
                f"WeightPrior needs a NetworkPrior, got {type(network).__name__}; "
                "priors.NetworkPrior(module) makes one of a torch module."
            )
        layers = network.program.weights
        by_layer = weights if isinstance(weights, Mapping) else dict.fromkeys(layers, weights)
        unknown = [name for name in by_layer if name not in layers]
        if unknown:
            raise ValueError(
                f"weights names the layers {unknown}, but the network has {sorted(layers)}."
            )
        self.network = network
        self.learn_variances = learn_variances
        self.readout_scale = None if readout_scale is None else _single(readout_scale, "positive")
        laws = {layers[name]: _law(law) for name, law in by_layer.items()}
        self._laws = {name: law for name, law in laws.items() if law is not None}
        # refuse others than normal ones
        self.log_variance_priors()
        self.log_lengthscale_prior()

    def __repr__(self) -> str:
        facts = [f"{name}: {as_distribution(law)}" for name, law in self._laws.items()]
        if self.readout_scale is not None:
            facts.append(f"readout scale {as_distribution(self.readout_scale)}")
        if self.learn_variances:
            facts.append("variances learnt")
        network = repr(self.network).replace("\n", "\n  ")
        return f"{type(self).__name__}({', '.join(facts) or 'Gaussian weights'})\n  {network}"

    @property
    def is_gaussian(self) -> bool:
        """Whether whitened weights are standard normal."""
        return not self._laws

    def log_variance_priors(self) -> dict[tuple[str, str], tuple[float, float]]:
        """Mean and deviation of the logarithms of variances that are drawn, by kind and layer."""
        return self.network.variances.log_priors() if self.learn_variances else {}

    def log_lengthscale_prior(self) -> tuple[float, float] | None:
        """Mean and deviation of the logarithms of length scales that are drawn, None without."""
        scale = self.network.variances.input_scale
        return None if scale is None or not self.learn_variances else scale.log_prior()

    def sites(self) -> dict[str, int]:
        """What is drawn besides eps, unconstrained, and how many numbers of each."""
        found = {}
        if self.learn_variances and (number := len(self.log_variance_priors())):
            found["whitened_log_var"] = number
        scale = self.network.variances.input_scale
        if self.learn_variances and scale is not None:
            found["whitened_log_lengthscale"] = scale.num_scales
        if self.readout_scale is not None:
            found["log_readout_scale"] = 1
        return found

    def log_density(self, eps: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
        """Log density of whitened weights and what else is drawn, in nats.

        Args:
            eps: `[..., D]`.
            drawn: By site, `[..., p]`.

        Returns:
            `[...]`.
        """
        total = _normal_log_density(eps).sum(-1) if self.is_gaussian else self._of_eps(eps)
        for site, value in drawn.items():
            total = total + self.log_density_of(site, value)
        return total

    def log_density_of(self, site: str, value: Tensor) -> Tensor:
        """Log density of one site `[..., p]` besides eps, `[...]`."""
        if site in _WHITENED:
            return _normal_log_density(value).sum(-1)
        assert self.readout_scale is not None
        # s = exp(value): the density of value has the Jacobian ds / dvalue = s
        density = self.readout_scale.log_prob(value.exp()) + value
        return density.to(value).sum(-1)

    def _of_eps(self, eps: Tensor) -> Tensor:
        total = eps.new_zeros(eps.shape[:-1])
        start = 0
        for name, size in Whitening(self.network).sizes().items():
            part, law = eps[..., start : start + size], self._laws.get(name)
            each = _normal_log_density(part) if law is None else law.log_prob(part).to(part)
            total = total + each.sum(-1)
            start += size
        return total

    def draw_sites(
        self, sample_shape: torch.Size, like: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Whitened weights `[*sample_shape, D]`, and what else is drawn `[*sample_shape, p]`.

        Args:
            sample_shape: How many.
            like: Gives dtype and device.
            generator: Source of randomness.
        """
        source = RandomSource(generator, like.device, like.dtype)
        parts = []
        for name, size in Whitening(self.network).sizes().items():
            shape, law = torch.Size([*sample_shape, size]), self._laws.get(name)
            parts.append(
                source.normal(*shape)
                if law is None
                else draw(law, shape, generator=generator).to(like)
            )
        drawn = {}
        for site, size in self.sites().items():
            shape = torch.Size([*sample_shape, size])
            if site in _WHITENED:
                drawn[site] = source.normal(*shape)
            else:
                assert self.readout_scale is not None
                drawn[site] = draw(self.readout_scale, shape, generator=generator).to(like).log()
        return torch.cat(parts, dim=-1), drawn

    def weights(self, eps: Tensor, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's parameters `[..., *shape]` by name.

        Args:
            eps: Whitened weights, `[..., D]`.
            drawn: By site, `[..., p]`.
        """
        values = Whitening(self.network).weights(eps)
        for name, factor in self._factors(drawn).items():
            values[name] = values[name] * factor.reshape(
                factor.shape + (1,) * (values[name].dim() - factor.dim())
            )
        return values

    def functions(
        self, eps: Tensor, drawn: Mapping[str, Tensor], X: Tensor, *, each: bool = False
    ) -> Tensor:
        """Outputs of networks, `[..., n, k]`.

        Args:
            eps: Whitened weights, `[..., D]`; `[S, D]` with `each`.
            drawn: By site, `[..., p]`.
            X: Inputs `[n, d]`; with `each` those of each network, `[S, ..., n, d]`.
            each: Whether each network has inputs of its own.
        """
        weights, lengths = self.weights(eps, drawn), self.lengthscales(drawn)
        scale = self.network.variances.input_scale
        if lengths is None or scale is None:
            apply = self.network.apply_each if each else self.network.apply_parameters
            return apply(weights, X)
        # the network divides by its own length scales
        factor = scale.over_inputs(scale.lengthscale.to(X).squeeze(-2) / lengths)
        size = eps.shape[:-1]
        weights = {k: v.flatten(0, len(size) - 1) if size else v[None] for k, v in weights.items()}
        beside = X.dim() - 2 if each else 1  # dimensions between those of networks and features
        rows = X * factor.reshape(-1, *[1] * beside, factor.shape[-1])
        f = self.network.apply_each(weights, rows)
        return f.reshape(*size, *f.shape[1:])

    def lengthscales(self, drawn: Mapping[str, Tensor]) -> Tensor | None:
        """Drawn length scales, `[..., k]`; None where they are fixed."""
        prior = self.log_lengthscale_prior()
        if prior is None or "whitened_log_lengthscale" not in drawn:
            return None
        mean, std = prior
        return (mean + std * drawn["whitened_log_lengthscale"]).exp()

    def variances(self, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Drawn variances by name, such as "weight_var.0" and "readout_scale", `[...]`.

        Length scales, where those are drawn, are "lengthscale", `[..., k]`.
        """
        found = {}
        if "whitened_log_var" in drawn:
            columns = drawn["whitened_log_var"].unbind(-1)
            priors = self.log_variance_priors().items()
            for z, ((kind, layer), (mean, std)) in zip(columns, priors, strict=True):
                found[f"{kind}_var.{layer}"] = (mean + std * z).exp()
        if "log_readout_scale" in drawn:
            found["readout_scale"] = drawn["log_readout_scale"][..., 0].exp()
        if (lengths := self.lengthscales(drawn)) is not None:
            found["lengthscale"] = lengths
        return found

    def scales(self, drawn: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """By what drawn variances multiply each whitened weight, `[..., D]`.

        Args:
            drawn: By site, `[..., p]`.
            like: `[..., any]`, gives the leading shape.
        """
        factors = self._factors(drawn)
        ones = like.new_ones(like.shape[:-1])
        return torch.cat(
            [
                factors.get(name, ones).unsqueeze(-1).expand(*ones.shape, size)
                for name, size in Whitening(self.network).sizes().items()
            ],
            dim=-1,
        )

    def _factors(self, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By what parameters are multiplied, `[...]`, by name."""
        program, own = self.network.program, self.network.variances
        names = {"weight": program.weights, "bias": program.biases}
        found: dict[str, Tensor] = {}
        variances = self.variances(drawn)
        for kind, layer in self.log_variance_priors() if "whitened_log_var" in drawn else ():
            variance = variances[f"{kind}_var.{layer}"]
            found[names[kind][layer]] = (variance / own.value(kind, layer, variance)).sqrt()
        if "readout_scale" in variances:
            factor = variances["readout_scale"].sqrt()
            for layer in self.network.readouts:
                for of_layer in names.values():
                    if (name := of_layer.get(layer)) is not None:
                        found[name] = found[name] * factor if name in found else factor
        return found

    def draw(
        self,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Draw the network's parameters, each `[*sample_shape, *its shape]`."""
        like = Whitening(self.network).zeros()
        return self.weights(*self.draw_sites(sample_shape, like, generator=generator))

    def sample(
        self,
        X: Tensor,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw noise-free functions at `X` `[*batch, n, d]`, `[*sample_shape, *batch, n, m]`.

        Every batch element has a network of its own.
        """
        like = Whitening(self.network).zeros()

        def functions(rows: Tensor) -> Tensor:
            eps, drawn = self.draw_sites(torch.Size([len(rows)]), like, generator=generator)
            return self.functions(eps, drawn, rows, each=True)

        return self.network.sample_by(functions, X, sample_shape)

    def description(self) -> dict[str, Any]:
        """What makes it differ from its network, as JSON values."""
        scale = self.readout_scale
        return {
            "laws": {name: as_distribution(law) for name, law in self._laws.items()},
            "readout_scale": None if scale is None else as_distribution(scale),
            "learn_variances": self.learn_variances,
        }


def student_t_weights(df: float) -> StudentT:
    """Student's t with the scale that gives variance 1; of scale 1 where it has no variance.

    Args:
        df: Degrees of freedom, > 0.

    Raises:
        ValueError: df is not positive.
    """
    if not 0 < df < math.inf:
        raise ValueError(f"student_t_weights needs 0 < df < inf, got {df}.")
    scale = math.sqrt((df - 2) / df) if df > 2 else 1.0
    return StudentT(_number(df), _number(0.0), _number(scale), validate_args=False)


def _law(law: Law) -> Distribution | None:
    """The law of a whitened weight; None for the standard normal."""
    if isinstance(law, Distribution):
        return _single(law, "real")
    known = {
        "gaussian": lambda: None,
        "laplace": lambda: Laplace(_number(0.0), _number(0.5**0.5), validate_args=False),
        "student_t": lambda: student_t_weights(4.0),
    }
    if not isinstance(law, str) or law not in known:
        raise ValueError(
            f"weights must be one of {', '.join(map(repr, known))} or a torch.distributions "
            f"Distribution, got {law!r}."
        )
    return known[law]()


def _single(law: Distribution, of: str) -> Distribution:
    """Refuse what is not a distribution of a single number."""
    if not isinstance(law, Distribution):
        raise TypeError(f"A law of {of} numbers must be a Distribution, got {law!r}.")
    if law.batch_shape or law.event_shape:
        raise ValueError(f"A law of {of} numbers must be of a single number, got {law}.")
    support: Any = law.support
    inside = [bool(support.check(torch.tensor(x))) for x in (-1e3, 1e-3, 1e3)]
    if support.is_discrete or inside != [of == "real", True, True]:
        wanted = (
            "readout_scale must have all positive reals as its support, such as InverseGamma"
            if of == "positive"
            else "a law of weights must have all reals as its support, such as Laplace"
        )
        raise ValueError(f"{wanted}; got {law}.")
    return _unchecked(law)


def _unchecked(law: Distribution) -> Distribution:
    """A copy that gives NaN outside its support, where samplers may go, instead of raising."""
    new = copy.copy(law)
    Distribution.__init__(new, law.batch_shape, law.event_shape, validate_args=False)
    base = getattr(law, "base_dist", None)
    if isinstance(base, Distribution):
        vars(new)["base_dist"] = _unchecked(base)
    return new


def _number(value: float) -> Tensor:
    """In float64 on the CPU, where it combines with tensors of any dtype and device."""
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def _normal_log_density(value: Tensor) -> Tensor:
    return -0.5 * (value.square() + math.log(2 * math.pi))
