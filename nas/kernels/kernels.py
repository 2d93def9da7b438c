"""Kernels between architectures, by their number in a table, and between training budgets.

`WeisfeilerLehmanKernel` weighs the levels of motifs and paths, `LinearKernel` has a trend in sizes
and counts, `DescriptorKernel` compares them one at a time, `CodeKernel` the choices of a flat
space, and `architecture_kernel` adds them and multiplies by kernels of hyperparameters, of fidelity
and of the study. The number is a coordinate of X like any other, so every BoTorch acquisition
function works on graphs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel, ScaleKernel
from gpytorch.priors import GammaPrior, LogNormalPrior, NormalPrior
from torch import Tensor, nn

from nas.kernels.table import ArchitectureTable

__all__ = [
    "BudgetKernel",
    "CodeKernel",
    "DescriptorKernel",
    "FidelityKernel",
    "LinearKernel",
    "SharedMaternKernel",
    "StudyKernel",
    "WeisfeilerLehmanKernel",
    "architecture_kernel",
    "dense",
]


class _Lookup(Kernel):
    """A kernel of the column of numbers of a table."""

    has_lengthscale = False

    def __init__(self, table: ArchitectureTable, **options: Any) -> None:
        super().__init__(**options)
        self.table = table

    @property
    def is_stationary(self) -> bool:
        """Differences of numbers mean nothing."""
        return False

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Kernel between `x1` `[..., n1, 1]` and `x2` `[..., n2, 1]`: `[..., n1, n2]`."""
        one, two = x1[..., 0].round().long(), x2[..., 0].round().long()
        if diag:
            one, two = torch.broadcast_tensors(one, two)
            return self._pairs(one.flatten(), two.flatten(), x1).unflatten(0, one.shape)
        if one.dim() == two.dim() == 1:
            return self._block(one, two, x1)
        # Batches share most numbers: each pair of different ones is computed once, unless there
        # are more of them than entries.
        rows, places = one.unique(return_inverse=True)
        columns, others = two.unique(return_inverse=True)
        first, second = torch.broadcast_tensors(one[..., :, None], two[..., None, :])
        if first.numel() < len(rows) * len(columns):
            return self._pairs(first.flatten(), second.flatten(), x1).unflatten(0, first.shape)
        return self._block(rows, columns, x1)[places[..., :, None], others[..., None, :]]

    def _block(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        """The kernel between numbers `[n1]` and `[n2]`, `[n1, n2]` as `like`."""
        raise NotImplementedError

    def _pairs(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        """The kernel of pairs of numbers `[n]`, `[n]` as `like`."""
        raise NotImplementedError


class WeisfeilerLehmanKernel(_Lookup):
    """exp(-(1 - k) / l), k the average of the levels of a table by learnt weights.

    k counts motifs that two graphs share, normalised to 1 on the diagonal: exp of it has products
    of motifs too, as an RBF kernel on the counts has, and tends to 1 + (k - 1) / l for large l.
    The weights are a softmax, so depth is learnt with them: a level without use gets little weight.

    Args:
        table: Of the architectures whose numbers X holds.
        linear: k itself, without the exponential.
        active_dims: Which column holds the number.
    """

    def __init__(
        self, table: ArchitectureTable, *, linear: bool = False, active_dims: Any = None
    ) -> None:
        super().__init__(table, active_dims=active_dims)
        self.linear = linear
        self.register_parameter("raw_weights", nn.Parameter(torch.zeros(len(table.levels))))
        self.register_prior(
            "weights_prior",
            NormalPrior(0.0, 1.0),
            lambda m: m.raw_weights,
            _setter("weights", raw=True),
        )
        if not linear:
            self.register_parameter("raw_length", nn.Parameter(torch.zeros(1)))
            self.register_constraint("raw_length", Positive(initial_value=0.3))
            self.register_prior(
                "length_prior", LogNormalPrior(-1.0, 1.0), lambda m: m.length, _setter("length")
            )

    @property
    def weights(self) -> Tensor:
        """Of the levels, `[levels]`, with sum 1."""
        return self.raw_weights.softmax(-1)

    @property
    def length(self) -> Tensor:
        """Distance 1 - k over which functions change, `[1]`."""
        return self.raw_length_constraint.transform(self.raw_length)

    def _block(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        return self._of_levels(self.table.gram(one, two).to(like))

    def _pairs(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        return self._of_levels(self.table.pairs(one, two).to(like))

    def _of_levels(self, levels: Tensor) -> Tensor:
        value = torch.tensordot(self.weights.to(levels), levels, 1)
        return value if self.linear else ((value - 1) / self.length.to(levels)).exp()


class DescriptorKernel(_Lookup):
    """A weighted sum of Matern-5/2 kernels, one for each descriptor.

    Descriptors are log parameters, log FLOPs, depth and log counts of operations, see
    `ArchitectureTable.descriptors`.

    Args:
        table: Of the architectures whose numbers X holds.
        active_dims: Which column holds the number.
    """

    def __init__(self, table: ArchitectureTable, *, active_dims: Any = None) -> None:
        super().__init__(table, active_dims=active_dims)
        number = table.descriptors().shape[-1]
        self.register_parameter("raw_weights", nn.Parameter(torch.zeros(number)))
        self.register_prior(
            "weights_prior",
            NormalPrior(0.0, 1.0),
            lambda m: m.raw_weights,
            _setter("weights", raw=True),
        )
        self.register_parameter("raw_lengths", nn.Parameter(torch.zeros(number)))
        self.register_constraint("raw_lengths", Positive(initial_value=1.0))
        self.register_prior(
            "lengths_prior", LogNormalPrior(0.5, 0.7), lambda m: m.lengths, _setter("lengths")
        )

    @property
    def weights(self) -> Tensor:
        """Of the descriptors, `[d]`, with sum 1."""
        return self.raw_weights.softmax(-1)

    @property
    def lengths(self) -> Tensor:
        """Length scales in deviations of each descriptor, `[d]`."""
        return self.raw_lengths_constraint.transform(self.raw_lengths)

    def _block(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        rows = self._rows(like)
        return self._of_rows(rows[one][:, None], rows[two])

    def _pairs(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        rows = self._rows(like)
        return self._of_rows(rows[one], rows[two])

    def _rows(self, like: Tensor) -> Tensor:
        return self.table.descriptors().to(like) / self.lengths.to(like) * 5**0.5

    def _of_rows(self, one: Tensor, two: Tensor) -> Tensor:
        # One descriptor after another, as all of them at once would fill the memory.
        total = one.new_zeros(())
        for place, weight in enumerate(self.weights.to(one)):
            distance = (one[..., place] - two[..., place]).abs()
            polynomial = torch.addcmul(1 + distance, distance, distance, value=1 / 3)
            total = torch.addcmul(total, polynomial, weight * (-distance).exp())
        return total


class LinearKernel(_Lookup):
    """The inner product of descriptors, divided by their number: a plane through the mean.

    Larger networks are better until they are not, so a trend is what few trials show first.

    Args:
        table: Of the architectures whose numbers X holds.
        active_dims: Which column holds the number.
    """

    def _block(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        rows = self._rows(like)
        return rows[one] @ rows[two].T

    def _pairs(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        rows = self._rows(like)
        return (rows[one] * rows[two]).sum(-1)

    def _rows(self, like: Tensor) -> Tensor:
        rows = self.table.descriptors().to(like)
        return rows / rows.shape[-1] ** 0.5


class CodeKernel(_Lookup):
    """exp(-sum_j w_j |c_j - c'_j|) on the codes of a space, 0 where an architecture has none.

    In a flat space a choice has its place, such as the edge of a cell, which motifs and counts do
    not tell. Each choice has one weight, which its columns c_j share: for one-hot codes this is a
    kernel of the choices that differ.

    Args:
        table: Of the architectures whose numbers X holds.
        active_dims: Which column holds the number.
    """

    def __init__(self, table: ArchitectureTable, *, active_dims: Any = None) -> None:
        super().__init__(table, active_dims=active_dims)
        self.register_parameter("raw_weights", nn.Parameter(torch.zeros(len(table.code_sizes))))
        self.register_constraint("raw_weights", Positive(initial_value=0.2))
        prior = LogNormalPrior(math.log(0.2), 1.0)
        self.register_prior("weights_prior", prior, lambda m: m.weights, _setter("weights"))

    @property
    def weights(self) -> Tensor:
        """Of the choices, `[len(table.code_sizes)]`."""
        return self.raw_weights_constraint.transform(self.raw_weights)

    def _block(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        codes = self._rows(like)
        distance = torch.cdist(codes[one, 1:], codes[two, 1:], p=1.0)
        return codes[one, :1] * codes[two, :1].T * (-distance).exp()

    def _pairs(self, one: Tensor, two: Tensor, like: Tensor) -> Tensor:
        codes = self._rows(like)
        distance = (codes[one, 1:] - codes[two, 1:]).abs().sum(-1)
        return codes[one, 0] * codes[two, 0] * (-distance).exp()

    def _rows(self, like: Tensor) -> Tensor:
        sizes = torch.tensor(self.table.code_sizes, device=like.device)
        weights = self.weights.to(like).repeat_interleave(sizes)
        scale = torch.cat([like.new_ones(1), weights])
        return self.table.codes().to(like) * scale


class BudgetKernel(Kernel):
    """(b / (b + t + t'))^a on training budgets t: curves that decay to what they end at.

    The mixture of exp(-l t) over a gamma law of the rate l (Swersky et al. 2014, 1406.3896,
    section 3.1), in the unit of the largest budget, times a learnt share beside a constant.

    Args:
        active_dims: Which column holds the budget, from 0 to 1.
    """

    def __init__(self, *, active_dims: Any = None) -> None:
        super().__init__(active_dims=active_dims)
        for name, start in (("shape", 1.0), ("scale", 0.5)):
            self.register_parameter(f"raw_{name}", nn.Parameter(torch.zeros(1)))
            self.register_constraint(f"raw_{name}", Positive(initial_value=start))
            self.register_prior(f"{name}_prior", GammaPrior(2.0, 2.0), _reader(name), _setter(name))
        self.register_parameter("raw_share", nn.Parameter(torch.zeros(1)))
        self.register_constraint("raw_share", Interval(0.0, 1.0, initial_value=0.5))

    def _value(self, name: str, like: Tensor) -> Tensor:
        raw = getattr(self, f"raw_{name}")
        return getattr(self, f"raw_{name}_constraint").transform(raw).to(like)

    @property
    def is_stationary(self) -> bool:
        """The earlier, the larger are the changes."""
        return False

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Kernel between `x1` `[..., n1, 1]` and `x2` `[..., n2, 1]`: `[..., n1, n2]`."""
        one, two = x1[..., 0], x2[..., 0]
        sums = one + two if diag else one[..., :, None] + two[..., None, :]
        shape, scale, share = (self._value(name, x1) for name in ("shape", "scale", "share"))
        return (1 - share) + share * (scale / (scale + sums)) ** shape


class SharedMaternKernel(Kernel):
    """Matern-5/2 of columns of which some share a length scale.

    Args:
        sizes: How many neighbouring columns share each.
        active_dims: Which columns.
    """

    def __init__(self, sizes: Sequence[int], *, active_dims: Any = None) -> None:
        super().__init__(active_dims=active_dims)
        self.sizes = tuple(sizes)
        prior = LogNormalPrior(2**0.5 + 0.5 * math.log(len(sizes)), 3**0.5)
        self.register_parameter("raw_lengths", nn.Parameter(torch.zeros(len(sizes))))
        self.register_constraint("raw_lengths", Positive(initial_value=prior.mode))
        self.register_prior("lengths_prior", prior, lambda m: m.lengths, _setter("lengths"))

    @property
    def lengths(self) -> Tensor:
        """Length scales, `[len(sizes)]`."""
        return self.raw_lengths_constraint.transform(self.raw_lengths)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Kernel between `x1` `[..., n1, d]` and `x2` `[..., n2, d]`: `[..., n1, n2]`."""
        sizes = torch.tensor(self.sizes, device=x1.device)
        lengths = self.lengths.to(x1).repeat_interleave(sizes)
        one, two = 5**0.5 * x1 / lengths, 5**0.5 * x2 / lengths
        if diag:
            distance = (one - two).square().sum(-1).clamp_min(1e-30).sqrt()
        else:  # exact, and with gradient 0, between equal rows
            distance = torch.cdist(one, two, compute_mode="donot_use_mm_for_euclid_dist")
        return (1 + distance + distance.square() / 3) * (-distance).exp()


class FidelityKernel(Kernel):
    """s_i c_ij s_j between levels of fidelity: how alike they are, and the scale of each.

    c is the correlation by a `BudgetKernel`, s is 1 for the full level and learnt for the others,
    as the values of each are standardised for themselves.

    Args:
        shares: Each level in units of the full one, which is first; X holds their places.
        active_dims: Which column holds the place.
    """

    def __init__(self, shares: Sequence[float], *, active_dims: Any = None) -> None:
        super().__init__(active_dims=active_dims)
        self.budget = BudgetKernel()
        self.register_buffer("shares", torch.tensor(shares, dtype=torch.float64), persistent=False)
        self.register_parameter("raw_scales", nn.Parameter(torch.zeros(len(shares) - 1)))
        self.register_constraint("raw_scales", Positive(initial_value=1.0))
        prior = LogNormalPrior(0.0, 1.0)
        self.register_prior("scales_prior", prior, lambda m: m.scales, _setter("scales"))

    @property
    def scales(self) -> Tensor:
        """Of the levels below the full one, `[levels - 1]`."""
        return self.raw_scales_constraint.transform(self.raw_scales)

    @property
    def covariance(self) -> Tensor:
        """Between the levels, `[levels, levels]`."""
        shares = self.shares.to(self.raw_scales)[:, None]
        decayed = self.budget.forward(shares, shares)
        scales = torch.cat([self.raw_scales.new_ones(1), self.scales])
        scales = scales / decayed.diagonal().sqrt()
        return scales[:, None] * decayed * scales

    @property
    def is_stationary(self) -> bool:
        """Places are names."""
        return False

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Kernel between `x1` `[..., n1, 1]` and `x2` `[..., n2, 1]`: `[..., n1, n2]`."""
        one, two = x1[..., 0].round().long(), x2[..., 0].round().long()
        if not diag:
            one, two = one[..., :, None], two[..., None, :]
        return self.covariance.to(x1)[one, two]


class LevelKernel(Kernel):
    """1 within a level of fidelity below the full one, else 0: a mean of its own for each.

    Few candidates are trained in full, and the better ones, so 0 is not the same value there.

    Args:
        active_dims: Which column holds the place of the level.
    """

    @property
    def is_stationary(self) -> bool:
        """Places are names."""
        return False

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Kernel between `x1` `[..., n1, 1]` and `x2` `[..., n2, 1]`: `[..., n1, n2]`."""
        one, two = x1[..., 0].round(), x2[..., 0].round()
        if not diag:
            one, two = one[..., :, None], two[..., None, :]
        return ((one == two) & (one > 0)).to(x1)


class StudyKernel(Kernel):
    """How alike the functions of several studies are: r_s r_t between two, 1 within each.

    r is 1 for the study that is searched, so r_s is its correlation with an earlier study s, learnt
    between 0 and 1; a coregionalisation of rank one (Bonilla et al. 2007, section 2).

    Args:
        num_earlier: Earlier studies, numbered from 1; 0 is the one that is searched.
        active_dims: Which column holds the number of the study.
    """

    def __init__(self, num_earlier: int, *, active_dims: Any = None) -> None:
        super().__init__(active_dims=active_dims)
        self.register_parameter("raw_correlation", nn.Parameter(torch.zeros(num_earlier)))
        self.register_constraint("raw_correlation", Interval(0.0, 1.0, initial_value=0.7))

    @property
    def correlation(self) -> Tensor:
        """Of each earlier study with the one that is searched, `[num_earlier]`."""
        return self.raw_correlation_constraint.transform(self.raw_correlation)

    @property
    def is_stationary(self) -> bool:
        """Numbers of studies are names."""
        return False

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Kernel between `x1` `[..., n1, 1]` and `x2` `[..., n2, 1]`: `[..., n1, n2]`."""
        one, two = x1[..., 0].round().long(), x2[..., 0].round().long()
        if not diag:
            one, two = one[..., :, None], two[..., None, :]
        loadings = torch.cat([x1.new_ones(1), self.correlation.to(x1)])
        return torch.where(one == two, 1.0, loadings[one] * loadings[two])


def architecture_kernel(
    table: ArchitectureTable,
    hyperparameters: Sequence[int] = (),
    *,
    shares: Sequence[float] = (),
    num_earlier: int = 0,
) -> Kernel:
    """(motifs + trend + descriptors + code) times kernels of hyperparameters, fidelity and study.

    Args:
        table: Holds the architectures of the training rows; column 0 of X are its numbers.
        hyperparameters: Columns behind it, in the unit cube, of a Matern-5/2 kernel: how many share
            each length scale, which has the dimension-scaled prior of Hvarfner et al. 2024
            (2402.02229, section 5).
        shares: Of levels of fidelity, see `FidelityKernel`; if there are any, one more column is
            the place of the level.
        num_earlier: Of earlier studies; if there are any, the last column is the number of a
            candidate's study.
    """
    parts: list[Kernel] = [
        _scaled(WeisfeilerLehmanKernel(table, active_dims=[0]), 0.7)
        + _scaled(LinearKernel(table, active_dims=[0]), 0.5)
        + _scaled(DescriptorKernel(table, active_dims=[0]), 0.05)
    ]
    if table.code_sizes:
        parts[0] = parts[0] + _scaled(CodeKernel(table, active_dims=[0]), 0.5)
    place = 1 + sum(hyperparameters)
    if hyperparameters:
        parts.append(SharedMaternKernel(hyperparameters, active_dims=list(range(1, place))))
    if shares:
        parts.append(FidelityKernel(shares, active_dims=[place]))
    if num_earlier:
        parts.append(StudyKernel(num_earlier, active_dims=[place + bool(shares)]))
    product = parts[0] if len(parts) == 1 else ProductKernel(*parts)
    if shares:
        product = product + _scaled(LevelKernel(active_dims=[place]), 1.0)
    return product


def dense(kernel: Kernel, one: Tensor, two: Tensor, *, diag: bool = False) -> Tensor:
    """The matrix of a kernel of `architecture_kernel`, without GPyTorch's deferred evaluation.

    Args:
        kernel: Sums, products and scalings of kernels that know their matrix.
        one: Rows, `[n1, d]`.
        two: Rows, `[n2, d]`.
        diag: Whether only of each row with the one of the same place.

    Returns:
        `[n1, n2]`, or `[n1]`.
    """
    if kernel.active_dims is not None:
        one, two = one[:, kernel.active_dims], two[:, kernel.active_dims]
    match kernel:
        case AdditiveKernel() | ProductKernel():
            combine = torch.add if isinstance(kernel, AdditiveKernel) else torch.mul
            return reduce(combine, (dense(part, one, two, diag=diag) for part in kernel.kernels))
        case ScaleKernel():  # whose columns are those of its base
            base = kernel.base_kernel
            matrix: Tensor = kernel.outputscale * base.forward(one, two, diag=diag)
        case _:
            matrix = kernel.forward(one, two, diag=diag)
    return matrix


def _scaled(kernel: Kernel, variance: float) -> ScaleKernel:
    """With a learnt variance around this one."""
    prior = LogNormalPrior(math.log(variance), 1.0)
    scaled = ScaleKernel(kernel, outputscale_prior=prior)
    scaled.outputscale = variance
    return scaled


def _reader(name: str) -> Any:
    return lambda module: module._value(name, module.raw_shape)


def _setter(name: str, *, raw: bool = False) -> Any:
    """Writes a value, as drawn from its prior, to the parameter behind it."""

    def write(module: Kernel, value: Tensor) -> None:
        parameter = f"raw_{name}"
        value = torch.as_tensor(value).to(getattr(module, parameter))
        if not raw:
            value = getattr(module, f"{parameter}_constraint").inverse_transform(value)
        module.initialize(**{parameter: value})

    return write
