"""An architecture in the limit of infinite width: its kernels, and how it passes signals on.

NTK parametrisation; `InfiniteNetwork` has the limit's kernels. Made from a `NetworkPrior`, it
shares its variances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from priors.gaussian.activations import Activation
from priors.gaussian.quasi_monte_carlo import QuasiMonteCarlo, jackknife
from priors.limits.costs import costs
from priors.limits.evaluation import Evaluation
from priors.limits.moments import Points, Settings
from priors.limits.tangents import readouts
from priors.networks.criticality import critical_initialisation, susceptibilities
from priors.networks.network import Network
from priors.networks.variances import VarianceSpec
from priors.programs.nodes import Nonlinear

if TYPE_CHECKING:
    from priors.networks.finite import NetworkPrior

__all__ = ["InfiniteNetwork", "LayerCriticality"]


@dataclass(frozen=True)
class LayerCriticality:
    """How a layer passes signals on (Roberts, Yaida & Hanin 2021, chapter 5).

    Attributes:
        layer: The layer whose weights follow the nonlinearity.
        variance: Variance of the nonlinearity's input.
        chi_parallel: Factor on a small change of the input's norm; 1 at criticality.
        chi_perp: Factor on a small change of its direction; 1 at criticality.
    """

    layer: str
    variance: float
    chi_parallel: float
    chi_perp: float


class InfiniteNetwork(Network):
    """The limit of a network as all hidden widths go to infinity.

    A parameter that is added or joined to units (a class token, positions) has independent entries
    of variance weight_var, under its own name among the layers. Gains are held at the value they
    have in the module; those of normalisations at 1. Constants and the raw input beside units are
    vectors that are the same in every network: h + x has the moment K + <x, x'> / d, and
    cat([h, x]) counts h and x with their shares of the module's own fan-in, as `NetworkPrior` at
    those widths does.

    Args:
        module: A `torch.nn.Module` (see `priors.programs.tracer.trace` for what it may contain),
            or a `NetworkPrior`, whose variances are then shared. Widths and weights do not matter.
        weight_var: Starting values of the weight variances: one value for all layers, a dict by
            layer name, or None for 2 behind a rectifier and 1 elsewhere. 0 is fixed, not learnt.
        bias_var: The same for the biases; None starts them at 0.1.
        ard_num_dims: Number of features of a row, channels of an image or features of a token, by
            whose length scales inputs are divided; the first layer's weight variance is then
            held. No length scales if None. See `LayerVariances`.
        input_shape: Shape of one input, e.g. `(1, 8, 8)`; rows are reshaped to it.
        batch_shape: Batch of independent variances.
        parameterization: "ntk", or "standard" with the module's own widths: the same NNGP
            kernel, and the tangent kernel of gradient descent on weights W ~ N(0, weight_var /
            fan_in) themselves (Sohl-Dickstein et al. 2020, 2001.07301).
        quadrature: Rule for expectations over many variables (gates, attention over heads).
        max_variables: Most variables of such an expectation; larger ones are refused.
        max_bytes: Memory for what is held besides the kernels.
        devices: Devices that compute the blocks of a large kernel in turn, when no gradient is
            needed, e.g. `["cuda:0", "cuda:1"]`; empty means where the inputs are.

    Raises:
        UnsupportedOperationError: the module contains something without a limit here.
        ValueError: bad variances or shapes.
    """

    def __init__(
        self,
        module: nn.Module | NetworkPrior,
        *,
        weight_var: VarianceSpec | None = None,
        bias_var: VarianceSpec | None = None,
        ard_num_dims: int | None = None,
        input_shape: Sequence[int] | None = None,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        parameterization: str = "ntk",
        quadrature: QuasiMonteCarlo | None = None,
        max_variables: int = 64,
        max_bytes: int = 2**30,
        devices: Sequence[torch.device | str] = (),
    ) -> None:
        super().__init__(module, weight_var, bias_var, ard_num_dims, input_shape, batch_shape)
        if parameterization not in ("ntk", "standard"):
            raise ValueError(
                f'parameterization must be "ntk" or "standard", got {parameterization!r}.'
            )
        self.parameterization = parameterization
        self.quadrature = QuasiMonteCarlo() if quadrature is None else quadrature
        self.max_variables = max_variables
        self.max_bytes = max_bytes
        self.devices = tuple(torch.device(d) for d in devices)

    def nngp(self, x1: Tensor, x2: Tensor | None = None, *, diag: bool = False) -> Tensor:
        """Covariance of one output unit under the prior (neural network Gaussian process).

        Args:
            x1: Inputs `[..., n1, d]`.
            x2: Inputs `[..., n2, d]`; None means x1.
            diag: Row by row instead of all pairs.

        Returns:
            `[..., n1, n2]`, or `[..., n]` with `diag`.

        Raises:
            ValueError: shapes do not fit the network or each other.
        """
        kernel, _ = self._kernels(x1, x2, diag, nngp=True, ntk=False)
        assert kernel is not None
        return kernel

    def ntk(self, x1: Tensor, x2: Tensor | None = None, *, diag: bool = False) -> Tensor:
        """Neural tangent kernel of one output unit; arguments and shapes as for `nngp`."""
        _, kernel = self._kernels(x1, x2, diag, nngp=False, ntk=True)
        assert kernel is not None
        return kernel

    def kernels(
        self, x1: Tensor, x2: Tensor | None = None, *, diag: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Both kernels, `(nngp, ntk)`, from one pass; arguments as for `nngp`."""
        nngp, ntk = self._kernels(x1, x2, diag, nngp=True, ntk=True)
        assert nngp is not None
        assert ntk is not None
        return nngp, ntk

    def criticality(self, *, input_variance: float = 1.0) -> list[LayerCriticality]:
        """How each hidden layer passes signals on, at a typical input.

        Args:
            input_variance: Mean square of the input's features, in units of their length scales.

        Returns:
            One entry for each plain nonlinearity and each layer that it feeds, in order.
        """
        program = self.program
        size = math.prod(1 if s is None else s for s in program.input_shape)
        raw = next(iter(self.variances.state_dict().values()))
        x = torch.full((1, size), math.sqrt(input_variance), dtype=torch.float64, device=raw.device)
        found = []
        with torch.no_grad():
            own = Points(program, self._settings(), x).single
            for index, target in program.edges():
                phi, source = own.activation(index)
                variance = float(own.variance_of(source, 0).mean())
                weight_var = float(self.variances.value("weight", target.layer, x))
                parallel, perpendicular = susceptibilities(phi, variance, weight_var)
                found.append(
                    LayerCriticality(target.layer, variance, float(parallel), float(perpendicular))
                )
        return found

    def tune_to_criticality(self, *, input_variance: float = 1.0) -> InfiniteNetwork:
        """Set the variances so that signals neither grow nor vanish with the depth, in place.

        Every layer that a plain nonlinearity feeds gets the critical weight and bias variance of
        that nonlinearity, the first layers what brings the input to the critical variance where
        there is one. A bias whose critical variance is 0 is held there. Readouts are left alone.

        Args:
            input_variance: Mean square of the input's features, in units of their length scales.

        Returns:
            This network.

        Raises:
            ValueError: a nonlinearity has no critical point, or needs a bias where the network
                has none (or one fixed at 0).
        """
        program = self.program
        last = {program.nodes[i].layer for i in readouts(program, program.output)}  # type: ignore[union-attr]
        values: dict[str, tuple[float, float]] = {}
        start = (1.0, 0.0, 0.0)
        for index, target in reversed(program.edges()):
            node = program.nodes[index]
            assert isinstance(node, Nonlinear)
            phi = node.factors[0].function
            assert isinstance(phi, Activation)
            start = critical_initialisation(phi)
            if target.layer not in last:
                values[target.layer] = start[:2]
        weight_var, bias_var, variance = start
        for layer in program.weights:
            if layer not in values and layer not in last:
                first = (variance - bias_var) / input_variance if variance > 0 else weight_var
                values[layer] = (first, bias_var)
        for layer, (weight, bias) in values.items():
            self.variances.set("weight", layer, weight)
            if bias == 0 and layer in self.variances.bias_var:
                self.variances.hold("bias", layer, 0.0)
            elif bias > 0:
                try:
                    self.variances.set("bias", layer, bias)
                except ValueError as error:
                    raise ValueError(
                        f"Layer {layer!r} needs a bias of variance {bias:.4g} to be critical: "
                        "give its module a bias and make the network with a positive bias_var."
                    ) from error
        return self

    def quadrature_error(
        self, x1: Tensor, x2: Tensor | None = None, *, diag: bool = False, replicates: int = 8
    ) -> tuple[Tensor, Tensor]:
        """Bounds on the quasi-Monte Carlo error of both kernels, `(nngp, ntk)`.

        Half the width of a 99% interval, from the kernels without each part of the points that
        are in use (jackknife), plus what expansions of a lower degree change. That includes what
        an error in one layer does to the next. 0 where no such expectation is needed.

        Args:
            x1: See `nngp`.
            x2: See `nngp`.
            diag: See `nngp`.
            replicates: Parts left out in turn, 2 to 8; each costs what the kernels cost.

        Returns:
            Each of the shape of the kernel.

        Raises:
            ValueError: fewer than 2 replicates.
        """
        if replicates < 2:
            raise ValueError(f"replicates must be at least 2, got {replicates}.")
        rule = self.quadrature
        parts, lower = rule.variants(replicates)
        found: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            try:
                for variant in (rule, lower, *parts):
                    self.quadrature = variant
                    found.append(self.kernels(x1, x2, diag=diag))
            finally:
                self.quadrature = rule
        own, coarse, *left_out = found
        nngp, ntk = (
            jackknife([values[k] for values in left_out]) + (own[k] - coarse[k]).abs()
            for k in (0, 1)
        )
        return nngp, ntk

    def costs(self) -> list[str]:
        """What makes the kernels slow, and cheaper choices; empty for chains of closed forms."""
        return costs(self.program)

    def _settings(self) -> Settings:
        return Settings(self.variances.value, self.quadrature, self.max_variables, self.max_bytes)

    def _kernels(
        self, x1: Tensor, x2: Tensor | None, diag: bool, *, nngp: bool, ntk: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        self._check_rows(x1, "x1")
        if x2 is None:
            x2 = x1
        if x2 is not x1:
            self._check_rows(x2, "x2")
            if x2.shape[-1] != x1.shape[-1]:
                raise ValueError(
                    f"x2 has {x2.shape[-1]} features, x1 has {x1.shape[-1]}; the last dimensions "
                    "must agree."
                )
            if diag and x1.shape[-2] != x2.shape[-2]:
                raise ValueError(
                    f"diag=True pairs rows, but x1 has {x1.shape[-2]} and x2 {x2.shape[-2]}."
                )
        same = x2 is x1
        x1 = self._scaled(x1)
        x2 = x1 if same else self._scaled(x2)
        evaluation = Evaluation(
            self.program,
            self._settings(),
            standard=self.parameterization == "standard",
            devices=self.devices,
        )
        return evaluation.kernels(x1, x2, diag=diag, nngp=nngp, ntk=ntk)
