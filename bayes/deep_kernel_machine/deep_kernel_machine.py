"""Deep kernel machines: the limit of a deep Bayesian model that still learns its representation.

The features of layer l at the rows enter the next one through their Gram matrix G_l alone. With
N nu_l features a layer and N outputs' worth of data, N to infinity, the posterior is a point mass
at the Gram matrices that maximise

    log p(Y | G_L) - sum_l nu_l KL(N(0, G_l) || N(0, K_l(G_{l-1}))),   l = 1, ..., L,

G_0 the inputs' and y ~ N(0, K_{L+1}(G_L) + noise) (Yang et al. 2023, 2108.13097). As nu grows the
matrices become K_l(G_{l-1}), and the model the Gaussian process of the infinitely wide network;
with nu in proportion to the outputs they are learnt.

Inducing points Z carry the matrices G_l of M points. Other points t see them as their conditional
distribution says: with K the kernel of the layer and K_ii = L L', G_ii = L S S' L', A = L^-1 K_it,

    G_ti = A' S S' L',   G_tt = K_tt - A' A + A' S S' A

(their sparse machine: G_ti = K_ti K_ii^-1 G_ii). What is learnt is S, lower triangular with a
positive diagonal, since in it the regularisation does not depend on anything else,

    KL = 1/2 (|S|_F^2 - M) - log |S|,

and S = I is the infinitely wide network. The last layer is a sparse process, whose bound on
log p(Y | G_L) is that of Titsias 2009; with all rows as inducing points it is exact.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import gpytorch
import torch
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor, nn

from bayes.checks import check_query
from bayes.deep_kernel_machine.gram_kernels import GramKernel, InputGram, layers_of
from bayes.description import describe_values
from bayes.noise import LessNoise
from bayes.processes.marginal_likelihood import exact_solves, relative_jitter
from bayes.standardised_model import StandardisedModel
from bayes.variational.inducing_points import InducingPoints
from priors.posteriors.transforms import DEFAULT
from priors.representation import as_data, count

__all__ = ["DeepKernelMachine"]

_MOST_POINTS = 200


@dataclass(frozen=True)
class _Points:
    """What points t share with the inducing points at one layer.

    Attributes:
        cross: `[..., t, M]`.
        own: Covariances among themselves `[..., t, t]`, or variances `[..., t]`.
    """

    cross: Tensor
    own: Tensor

    def variances(self) -> Tensor:
        return self.own if self.own.dim() < self.cross.dim() else self.own.diagonal(0, -2, -1)


@dataclass(frozen=True)
class _Solved:
    """The inducing points at every layer, and what the outcomes say of the last.

    Attributes:
        grams: Gram matrices `[M, M]` of the layers, the inputs' first.
        roots: L of each kernel, `[M, M]`.
        mean: L_B^-T L_B^-1 A y / noise, `[m, M]`.
        half: L_B^-1 of each output, `[m, M, M]`.
    """

    grams: list[Tensor]
    roots: list[Tensor]
    mean: Tensor
    half: Tensor


class _Factor(gpytorch.Module):
    """S of one layer, from M (M + 1) / 2 numbers that are 0 for S = I."""

    def __init__(self, size: int, like: Tensor, learn: bool) -> None:
        super().__init__()
        self.entries = nn.Parameter(like.new_zeros(size * (size + 1) // 2), requires_grad=learn)
        self.size = size

    def forward(self) -> Tensor:
        """S `[M, M]`, float64."""
        rows, columns = torch.tril_indices(self.size, self.size, device=self.entries.device)
        entries = self.entries.double()
        S = entries.new_zeros(self.size, self.size).index_put((rows, columns), entries)
        return S.tril(-1) + S.diagonal().exp().diag_embed()

    def divergence(self) -> Tensor:
        """KL(N(0, G) || N(0, K)) in nats."""
        S = self()
        return 0.5 * (S.square().sum() - self.size) - S.diagonal().log().sum()


class _Layers(gpytorch.Module):
    """The Gram matrix of the inputs, and the kernel of each layer."""

    def __init__(self, inputs: InputGram, kernels: Sequence[GramKernel]) -> None:
        super().__init__()
        self.inputs, self.hidden = inputs, nn.ModuleList(kernels)

    def kernels(self) -> list[GramKernel]:
        return list(self.hidden)  # type: ignore[arg-type]


class DeepKernelMachine(StandardisedModel):
    """A deep kernel method that learns its representation: Gram matrices of layers, no features.

    Layers are the hidden layers of an infinitely wide network. One layer is its Gaussian process;
    from two on, the Gram matrices between them are learnt by `fit`, along with variances, noise and
    inducing points. Before `fit`, and for an infinite `regularisation`, the model is the sparse
    Gaussian process of the infinitely wide network. O(n M^2 layers) an evaluation.

    Args:
        train_X: Inputs, `[n, d]`.
        train_Y: Outcomes, `[n, m]`; they share the representation.
        layers: A number of ReLU layers, or a list of "relu", "squared exponential", activations
            such as `nn.GELU()`, and `GramKernel`s.
        num_inducing: M, at most; all rows where they are fewer. They are chosen among the rows by
            the variance that they leave. None takes 200, and where Gram matrices are learnt a third
            of the rows at most: those of all rows hold what noise the rows have, too.
        regularisation: nu, how many outputs' worth of evidence holds a Gram matrix at that of the
            infinitely wide network: one for all, or one for each layer but the last; may be
            infinite. At 1 the noise of a single outcome is fitted too.
        learn_inducing_points: Whether `fit` moves them too, unless all rows are taken.
        ard_num_dims: d, for a length scale of each input.
        input_transform: `DEFAULT` standardises by the training rows, None applies none; or a
            BoTorch `InputTransform`, copied.
        outcome_transform: `DEFAULT` standardises by the training rows, None applies none; or an
            elementwise `torch.distributions` transform from the model's scale to Y's.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes disagree, values are not finite, or no layer or regularisation.

    Attributes:
        noise: Noise variance of each output, `[m]`, on the model's scale.
        inducing_points: `[M, d]` in the units of train_X.

    Methods:
        fit: Learn Gram matrices, variances, noise and inducing points; returns the model.
        posterior: Predict, `model.posterior(X, observation_noise=True)` for y rather than f.
        objective: Evidence less regularisation, which `fit` maximises.
        grams: Gram matrices of points, layer by layer: the representation.
        condition_on_observations: A model of further rows, with the representation as it is.
        subset_output: A model of some outputs.
        save: Write to a file.
        load: Read it again.

    All else is inherited from BoTorch's `Model`.
    """

    _module_name = "list of layers"

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        *,
        layers: int | Sequence[str | nn.Module],
        num_inducing: int | None = None,
        regularisation: float | Sequence[float] = 10.0,
        learn_inducing_points: bool = True,
        ard_num_dims: int | None = None,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self._check(train_X, train_Y)
        if train_X.dim() != 2:
            raise ValueError(
                f"{owner} takes one data set [n, d], got train_X of shape {tuple(train_X.shape)}."
            )
        if num_inducing is not None and num_inducing < 1:
            raise ValueError(f"{owner} needs num_inducing >= 1, got {num_inducing}.")
        if ard_num_dims not in (None, train_X.shape[-1]):
            raise ValueError(
                f"{owner} got ard_num_dims={ard_num_dims} for {train_X.shape[-1]} input columns."
            )
        kernels = layers_of(owner, layers)
        self.regularisation = _each(owner, regularisation, len(kernels) - 1)
        self.layers = _Layers(InputGram(ard_num_dims), kernels).to(train_X)
        self._hold(train_X, train_Y, input_transform, outcome_transform)
        rows = self.transformed_inputs(self.train_X)
        if num_inducing is None:
            num_inducing = _MOST_POINTS if self._is_wide else min(_MOST_POINTS, -(-len(rows) // 3))
        chosen = InducingPoints.among(rows, self._prior, num_inducing, learn_inducing_points)
        self.inducing = chosen.to(train_X)
        self.factors = nn.ModuleList(
            _Factor(self.num_inducing, train_X, nu < math.inf) for nu in self.regularisation
        )

    def _prior(self, x1: Tensor, x2: Tensor | None = None, *, diag: bool = False) -> Tensor:
        """Kernel of the infinitely wide network, on the model's scale."""
        x2 = x1 if x2 is None else x2
        q1, q2 = (self.layers.inputs.variances(x) for x in (x1, x2))
        c = q1 if diag else self.layers.inputs.between(x1, x2)
        for kernel in self.layers.kernels():
            after = [kernel(q, q, q) for q in (q1, q2)]
            c = after[0] if diag else kernel(q1.unsqueeze(-1), q2.unsqueeze(-2), c)
            q1, q2 = after
        return c

    def __repr__(self) -> str:
        """Data, layers and the present values of the hyperparameters."""
        data = as_data(self.train_X, self.num_outputs)
        head = f"{type(self).__name__}({data}; {count(self.num_inducing, 'inducing point')})"
        nu = ", ".join(f"{value:.3g}" for value in self.regularisation)
        lines = [f"regularisation: {nu}"] if nu else []
        lines += describe_values(self.layers) + describe_values(self.likelihood)
        return "\n  ".join([head, *lines])

    @property
    def num_inducing(self) -> int:
        """M."""
        return len(self.inducing.points)

    @property
    def inducing_points(self) -> Tensor:
        """The inducing points `[M, d]` in the units of train_X."""
        return self.inducing.untransformed(self.input_transform)

    def _less_noise(self) -> LessNoise | None:
        """None where Gram matrices are learnt.

        The evidence of what was fitted to the outcomes is no judge of their noise: it is largest
        where the function goes through them all.
        """
        return super()._less_noise() if self._is_wide else None

    @property
    def _is_wide(self) -> bool:
        """Whether all is as in the infinitely wide network."""
        return all(nu == math.inf for nu in self.regularisation)

    def _objective(self) -> Tensor:
        total = self._solved()[1]
        for nu, factor in zip(self.regularisation, self._factors(), strict=True):
            if nu < math.inf:
                total = total - nu * factor.divergence()
        return total

    def _factors(self) -> list[_Factor]:
        return list(self.factors)  # type: ignore[arg-type]

    def _solved(self) -> tuple[_Solved, Tensor]:
        """Of the present values, and the bound on log p(Y | G_L) in nats."""
        Z = self.inducing.points.double()
        rows = self.transformed_inputs(self.train_X)
        gram = self.layers.inputs.between(Z, Z)
        at = _Points(self.layers.inputs.between(rows, Z), self.layers.inputs.variances(rows))
        grams, roots = [gram], []
        for index, kernel in enumerate(self.layers.kernels()):
            diagonal = gram.diagonal()
            covariance = kernel(diagonal.unsqueeze(-1), diagonal, gram)
            root = _root(covariance)
            roots.append(root)
            at = _next(kernel, diagonal, at)
            if index < len(self.factors):
                S = self._factors()[index]()
                gram = (root @ S) @ (root @ S).mT
                grams.append(gram)
                at = _moved(root, S, at)
        return self._conditioned(grams, roots, at)

    def _conditioned(
        self, grams: list[Tensor], roots: list[Tensor], at: _Points
    ) -> tuple[_Solved, Tensor]:
        """The sparse process of the last layer (Titsias 2009), each output with its noise."""
        y, noise = self.targets(), self.noise.double()  # [m, n] and [m]
        a = torch.linalg.solve_triangular(roots[-1], at.cross.mT, upper=False)  # [M, n]
        outer, size = a @ a.mT, y.shape[-1]
        eye = torch.eye(len(outer), dtype=outer.dtype, device=outer.device)
        root = torch.linalg.cholesky(eye + outer / noise[:, None, None])
        half = torch.linalg.solve_triangular(root, eye.expand_as(root), upper=False)
        seen = (half @ (a @ y.mT).mT.unsqueeze(-1)).squeeze(-1) / noise[:, None]  # [m, M]
        left = (at.variances() - a.square().sum(0)).clamp_min(0).sum()
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + size * noise.log()
        quadratic = y.square().sum(-1) / noise - seen.square().sum(-1)
        bound = -0.5 * (size * math.log(2 * math.pi) + log_det + quadratic + left / noise).sum()
        mean = (half.mT @ seen.unsqueeze(-1)).squeeze(-1)
        return _Solved(grams, roots, mean, half), bound

    def _present(self) -> _Solved:
        if self._follows_rows():
            return self._solved()[0]
        found: _Solved = self._remembered(self._parts(), lambda: self._solved()[0])
        return found

    def _at(self, inputs: Tensor, solved: _Solved, *, joint: bool) -> list[_Points]:
        """Points `[..., q, d]` at every layer, then at the last kernel."""
        Z = self.inducing.points.double()
        own = (
            self.layers.inputs.between(inputs, inputs)
            if joint
            else self.layers.inputs.variances(inputs)
        )
        at = _Points(self.layers.inputs.between(inputs, Z), own)
        found = [at]
        for index, kernel in enumerate(self.layers.kernels()):
            at = _next(kernel, solved.grams[index].diagonal(), at)
            if index < len(self.factors):
                at = _moved(solved.roots[index], self._factors()[index](), at)
            found.append(at)
        return found

    def _moments(self, inputs: Tensor, *, joint: bool) -> tuple[Tensor, Tensor]:
        solved = self._present()
        at = self._at(inputs, solved, joint=joint)[-1]
        a = torch.linalg.solve_triangular(solved.roots[-1], at.cross.mT, upper=False)
        mean = solved.mean @ a
        kept = solved.half @ a.unsqueeze(-3)  # [..., m, M, q]
        if joint:
            prior = (at.own - a.mT @ a).unsqueeze(-3)
            return mean, prior + kept.mT @ kept
        prior = (at.own - a.square().sum(-2)).unsqueeze(-2)
        return mean, prior + kept.square().sum(-2)

    def objective(self) -> Tensor:
        """Evidence of the outcomes given the Gram matrices, less the regularisation.

        Without the hyperparameters' priors. Objectives of the same data compare machines of the
        same regularisation; rows that were held out compare any.

        Returns:
            A scalar in nats, of all rows and outputs in the units of train_Y.
        """
        with torch.no_grad(), exact_solves():
            return self._objective() - self._log_jacobian()

    def grams(self, X: Tensor) -> list[Tensor]:
        """The representation of points: their Gram matrices at the layers.

        Args:
            X: Points, `[..., q, d]`.

        Returns:
            `[..., q, q]` of the inputs and of each layer but the last, whose kernel is the
            covariance of f before the outcomes.
        """
        check_query(type(self).__name__, X, self.train_X)
        with torch.no_grad():
            found = self._at(self.transformed_inputs(X), self._present(), joint=True)
        return [at.own.to(X) for at in found[:-1]]

    def condition_on_observations(self, X: Tensor, Y: Tensor, **kwargs: Any) -> Self:
        """A model of these rows and further ones; all that was learnt stays.

        Args:
            X: Inputs, `[n', d]`.
            Y: Outcomes, `[n', m]`.
            **kwargs: Ignored.

        Raises:
            TypeError: another dtype than the model's.
            ValueError: shapes disagree, or values are not finite.
            NotImplementedError: a batch of further rows.
        """
        if isinstance(X, Tensor) and isinstance(Y, Tensor) and max(X.dim(), Y.dim()) > 2:
            raise NotImplementedError(
                f"{type(self).__name__} is conditioned on one set of rows [n, d], got X "
                f"{tuple(X.shape)} and Y {tuple(Y.shape)}; GradientDescentEnsemble and "
                "GaussianProcess take batches."
            )
        return super().condition_on_observations(X, Y, **kwargs)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        layers: int | Sequence[str | nn.Module] | None = None,
        *,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> Self:
        """Read what `save` wrote.

        The file holds no code: pass the layers (and transforms, if the model was given its own) of
        the same make; learnt values come from the file.

        Args:
            path: The file.
            layers: The same as at construction; required.
            input_transform: The same as at construction.
            outcome_transform: The same as at construction.

        Raises:
            ValueError: the file is damaged or of another kind, or what was passed does not fit it.
            TypeError: no layers were passed.
        """
        if layers is None:
            raise TypeError(
                f"{cls.__name__}.load needs the layers as well, since {path} holds values and no "
                "code; call load(path, layers) with those of the construction."
            )

        def make(X: Tensor, Y: Tensor, regularisation: list[str], **options: Any) -> Any:
            nu = [float(value) for value in regularisation]
            if len(nu) != len(layers_of(cls.__name__, layers)) - 1:
                raise ValueError(f"{path} was saved with {len(nu) + 1} layers; pass those to load.")
            return cls(X, Y, layers=layers, regularisation=nu, **options)

        return cls._load(path, make, input_transform, outcome_transform)

    def _construction(self) -> dict[str, Any]:
        lengthscales = len(self.layers.inputs.value("lengthscale"))
        return {
            "num_inducing": self.num_inducing,
            "regularisation": [str(nu) for nu in self.regularisation],
            "learn_inducing_points": self.inducing.points.requires_grad,
            "ard_num_dims": lengthscales if lengthscales > 1 else None,
        }

    def _module(self) -> nn.Module:
        return self.layers

    def _covariance_of(self, inputs: Tensor) -> Tensor:
        return self._prior(inputs)

    def _parts(self) -> dict[str, nn.Module]:
        names = ("layers", "factors", "inducing", "likelihood")
        return {**{name: getattr(self, name) for name in names}, **self._transforms()}


def _next(kernel: GramKernel, diagonal: Tensor, at: _Points) -> _Points:
    """Points behind the kernel of a layer, the Gram matrix of the inducing points given."""
    q = at.variances()
    cross = kernel(q.unsqueeze(-1), diagonal, at.cross)
    if at.own is q:
        return _Points(cross, kernel(q, q, q))
    return _Points(cross, kernel(q.unsqueeze(-1), q.unsqueeze(-2), at.own))


def _moved(root: Tensor, S: Tensor, at: _Points) -> _Points:
    """Points as the Gram matrix (L S) (L S)' of the inducing points moves them."""
    a = torch.linalg.solve_triangular(root, at.cross.mT, upper=False)  # [..., M, t]
    b = S.mT @ a
    cross = b.mT @ (root @ S).mT
    if at.own.dim() < at.cross.dim():
        change = (b.square() - a.square()).sum(-2)
        return _Points(cross, (at.own + change).clamp_min(torch.finfo(a.dtype).tiny))
    return _Points(cross, at.own + (b.mT @ b - a.mT @ a))


def _root(covariance: Tensor) -> Tensor:
    """L of a kernel matrix with a jitter of 1e-8 of its mean diagonal, always added."""
    diagonal = covariance.diagonal()
    covariance = covariance + torch.diag_embed(1e-8 * diagonal.mean() + 0 * diagonal)
    with exact_solves(), relative_jitter(diagonal):
        return psd_safe_cholesky(covariance)


def _each(owner: str, regularisation: float | Sequence[float], number: int) -> list[float]:
    """One value for each learnt Gram matrix."""
    if isinstance(regularisation, int | float):
        values = [float(regularisation)] * number
    else:
        values = [float(value) for value in regularisation]
    if len(values) != number or not all(value > 0 for value in values):
        raise ValueError(
            f"{owner} of {count(number + 1, 'layer')} needs a positive regularisation, one for all "
            f"or {number} of them, got {regularisation}."
        )
    return values
