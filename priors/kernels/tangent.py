"""The tangent kernel of one function at one point, by automatic differentiation.

It is computed either from whole Jacobians (Jacobian contraction) or one column at a time, a
forward derivative along a backward one (NTK-vector products); both are exact, and which is
cheaper depends on the network.

Source: Novak et al. 2022 (2206.08720) for the two methods and their costs. Left out: their
structured derivatives, which need rules for every primitive.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import jacrev, jvp, vjp, vmap
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from priors.kernels.compat import TorchDispatchMode, tree_leaves
from priors.kernels.parameters import ParametricFunction, checked

__all__ = ["METHODS", "Method", "Tangent", "along", "check_pair"]

Method = Literal["auto", "jacobian_contraction", "ntk_vector_products"]
METHODS = ("auto", "jacobian_contraction", "ntk_vector_products")


class _Cost(TorchDispatchMode):
    """Counts the numbers that a computation produces.

    Views count as well: derivatives copy some of what the forward pass only views.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.numbers += sum(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))
        return result


class Tangent:
    """A function and its parameters, with what its derivatives cost.

    Args:
        function: f(parameters, x) of a batch.
        parameters: The point.
        x: Examples `[n, *input_shape]`, n >= 1; the first is tried.
        output: See `empirical_ntk`.
        method: See `empirical_ntk`.
        max_bytes: See `empirical_ntk`.
    """

    def __init__(
        self,
        function: ParametricFunction,
        parameters: Mapping[str, Tensor],
        x: Tensor,
        *,
        output: str | int,
        method: str,
        max_bytes: int,
    ) -> None:
        self.parameters = checked(parameters)
        if method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
        if len(x) == 0:
            raise ValueError("x1 has no rows; the kernel needs at least one.")
        self.function, self.method, self.max_bytes = function, method, max_bytes
        self.trial = x[:1].detach()
        counter, numbers = FlopCounterMode(display=False), _Cost()
        with torch.no_grad(), counter, numbers:
            value = function(self.parameters, self.trial)
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != 1:
            came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                "The function must return a tensor [n, ...] with a row for each of n inputs; one "
                f"input gave {came}."
            )
        self.num_outputs = value.numel()
        self.only: slice = slice(None)
        if isinstance(output, int):
            if not -self.num_outputs <= output < self.num_outputs:
                raise ValueError(
                    f"output {output} does not exist; the network has {self.num_outputs}."
                )
            output %= self.num_outputs
            self.only, self.num_outputs = slice(output, output + 1), 1
        elif output not in ("all", "mean"):
            raise ValueError(f'output must be "all", "mean" or an index, got {output!r}.')
        self.traced = output != "all"
        self.num_parameters = sum(p.numel() for p in self.parameters.values())
        self.dtype, self.item = value.dtype, value.element_size()
        # get_total_flops counts a multiply-add as two
        self.forward = max(counter.get_total_flops() / 2, self.num_parameters)
        self.intermediate = max(1, numbers.numbers)

    def at(self, function: ParametricFunction, parameters: Mapping[str, Tensor]) -> Tangent:
        """The same of a function that costs as much, at another point."""
        other = copy.copy(self)
        other.function, other.parameters = function, dict(parameters)
        return other

    def outputs(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The wanted outputs at a batch, `[n, m]`."""
        return self.function(parameters, x).reshape(len(x), -1)[:, self.only]

    def outputs_of_one(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The wanted outputs at one example, `[m]`."""
        return self.outputs(parameters, x[None])[0]

    def jacobians(self, x: Tensor) -> dict[str, Tensor]:
        """Derivatives of the outputs of each example by parameter, `[n, m, p]`."""
        blocks = vmap(jacrev(self.outputs_of_one), in_dims=(None, 0))(self.parameters, x)
        return {name: J.flatten(2) if J.dim() > 2 else J[..., None] for name, J in blocks.items()}

    @property
    def examples(self) -> int:
        """Examples whose Jacobians and intermediate values fit the memory."""
        per_example = self.num_outputs * (self.num_parameters + self.intermediate)
        return int(self.max_bytes // (self.item * per_example))

    def contracts(self, n1: int, n2: int | None, diag: bool) -> bool:
        """Whether Jacobians are contracted, for n1 rows and n2 others, None for the same rows."""
        if self.method == "ntk_vector_products":
            return False
        needed = 1 if n2 is None and (diag or n1 == 1) else 2
        if self.examples < needed:
            if self.method == "auto":
                return False
            unit = self.item * self.num_outputs * (self.num_parameters + self.intermediate)
            raise ValueError(
                f"max_bytes is {self.max_bytes}, but the Jacobians of {needed} examples take "
                f'{needed * unit}; raise it or use method="ntk_vector_products".'
            )
        if self.method == "jacobian_contraction":
            return True
        m, P, FP = self.num_outputs, self.num_parameters, self.forward
        columns = n1 if n2 is None else n2
        pairs = n1 if diag else n1 * columns
        examples: float = n1 if n2 is None else n1 + n2
        if not diag and examples > self.examples:  # the second side once for each block of rows
            repeats = math.ceil(n1 / self.block(n1, n2))
            examples = n1 + columns * (repeats - 1) / 2 if n2 is None else n1 + columns * repeats
        contraction = 2 * examples * m * FP + pairs * m * P * (1 if self.traced else m)
        products = 2 * columns * m * FP + 2 * pairs * m * FP
        return contraction <= products or not self._has_forward_derivative()

    def _has_forward_derivative(self) -> bool:
        still = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        try:
            with torch.no_grad():
                along(lambda p: self.function(p, self.trial), self.parameters, still)
        except NotImplementedError:
            return False
        return True

    def block(self, n1: int, n2: int | None) -> int:
        """Rows of either side whose Jacobians are held together."""
        if n1 + (n2 or 0) <= self.examples:
            return max(n1, n2 or 0)
        return self.examples // 2

    def matrix(self, x1: Tensor, x2: Tensor | None, *, progress: bool) -> Tensor:
        """`[n1, n2, m, m]`, or `[n1, n2]` where the outputs are traced."""
        n2 = None if x2 is None else len(x2)
        if self.contracts(len(x1), n2, diag=False):
            return self._contracted(x1, x2, progress)
        return self._by_columns(x1, x1 if x2 is None else x2, progress)

    def diagonal(self, x1: Tensor, x2: Tensor | None, *, progress: bool) -> Tensor:
        """`[n, m, m]`, or `[n]` where the outputs are traced."""
        if self.contracts(len(x1), None if x2 is None else len(x2), diag=True):
            return self._contracted_diagonal(x1, x2, progress)
        return self._diagonal_by_columns(x1, x1 if x2 is None else x2, progress)

    def batched(self, x1: Tensor, x2: Tensor | None, *, diag: bool, progress: bool) -> Tensor:
        """The same of rows `[..., n, d]` whose batch dimensions broadcast, traced outputs."""
        inputs = [x1] if x2 is None else [x1, x2]
        shape = torch.broadcast_shapes(*(x.shape[:-2] for x in inputs))
        if not shape:
            return (self.diagonal if diag else self.matrix)(x1, x2, progress=progress)
        rows = [x.expand(*shape, *x.shape[-2:]) for x in inputs]
        if diag:
            flat = [x.reshape(-1, x.shape[-1]) for x in rows]
            kernel = self.diagonal(flat[0], flat[1] if x2 is not None else None, progress=progress)
            return kernel.reshape(rows[0].shape[:-1])
        total = sum(x.shape[:-1].numel() for x in inputs)
        n2 = None if x2 is None else x2.shape[-2]
        if total <= self.examples and self.contracts(x1.shape[-2], n2, diag=False):
            sides = [
                {
                    name: J.flatten(1).reshape(*x.shape[:-1], -1)
                    for name, J in self.jacobians(x.reshape(-1, x.shape[-1])).items()
                }
                for x in inputs
            ]
            products = (sides[0][name] @ sides[-1][name].mT for name in self.parameters)
            return _sum(products) / self.num_outputs
        flat = [x.reshape(-1, *x.shape[-2:]) for x in rows]
        pairs = zip(*flat, strict=True) if x2 is not None else ((x, None) for x in flat[0])
        kernels = [self.matrix(a, b, progress=progress) for a, b in pairs]
        return torch.stack(kernels).reshape(*shape, *kernels[0].shape)

    def _contracted(self, x1: Tensor, x2: Tensor | None, progress: bool) -> Tensor:
        block = self.block(len(x1), None if x2 is None else len(x2))
        rows = x1.split(block)
        columns = rows if x2 is None else x2.split(block)
        grid: list[list[Tensor]] = []
        for i, a in enumerate(_bar(rows, progress)):
            left = self.jacobians(a)
            grid.append([])
            for j, b in enumerate(columns):
                if x2 is None and j < i:
                    mirrored = grid[j][i].transpose(0, 1)
                    grid[i].append(mirrored if self.traced else mirrored.mT)
                    continue
                right = left if x2 is None and j == i else self.jacobians(b)
                grid[i].append(self._contract(left, right))
        return torch.cat([torch.cat(blocks, dim=1) for blocks in grid])

    def _contract(self, left: dict[str, Tensor], right: dict[str, Tensor]) -> Tensor:
        if self.traced:
            products = (left[name].flatten(1) @ right[name].flatten(1).mT for name in left)
            return _sum(products) / self.num_outputs
        m = self.num_outputs
        products = (left[name].flatten(0, 1) @ right[name].flatten(0, 1).mT for name in left)
        return _sum(products).unflatten(0, (-1, m)).unflatten(-1, (-1, m)).transpose(1, 2)

    def _contracted_diagonal(self, x1: Tensor, x2: Tensor | None, progress: bool) -> Tensor:
        block = self.examples if x2 is None else self.examples // 2
        blocks = []
        starts = range(0, len(x1), block)
        for start in _bar(starts, progress):
            left = self.jacobians(x1[start : start + block])
            right = left if x2 is None else self.jacobians(x2[start : start + block])
            products = (left[name] @ right[name].mT for name in left)
            if self.traced:
                products = ((left[name] * right[name]).sum((1, 2)) for name in left)
            blocks.append(_sum(products) / (self.num_outputs if self.traced else 1))
        return torch.cat(blocks)

    def pullback(self, x: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
        """The parameter gradient of `cotangent` `[m]` times the outputs at one example."""
        return vjp(lambda p: self.outputs_of_one(p, x), self.parameters)[1](cotangent)[0]

    def _by_columns(self, x1: Tensor, x2: Tensor, progress: bool) -> Tensor:
        n1, n2, m = len(x1), len(x2), self.num_outputs
        numbers = self.max_bytes // self.item
        one = self.num_parameters + self.intermediate
        # As many rows as keep the tangents of their values no larger than those of parameters.
        rows = min(n1, 1 + self.num_parameters // self.intermediate)
        columns = min(n2 * m, max(1, numbers // (one + rows * self.intermediate)))
        if columns == n2 * m:
            rows = max(rows, (numbers // columns - one) // self.intermediate)
        basis = torch.eye(m, dtype=self.dtype, device=x1.device)

        def push(tangents: dict[str, Tensor], x: Tensor) -> Tensor:
            return along(lambda p: self.outputs(p, x), self.parameters, tangents)[1]

        parts = []
        pairs = torch.arange(n2 * m, device=x1.device)
        for chosen in _bar(pairs.split(columns), progress):
            example, unit = chosen // m, chosen % m
            tangents = vmap(self.pullback)(x2[example], basis[unit])
            part = torch.cat(
                [vmap(push, in_dims=(0, None))(tangents, a) for a in x1.split(rows)], dim=1
            )
            # traced: of the outputs at x1 the one that the column belongs to
            parts.append((part * basis[unit][:, None]).sum(-1) if self.traced else part)
        kernel = torch.cat(parts).unflatten(0, (n2, m))
        if self.traced:
            return kernel.mean(1).mT
        return kernel.permute(2, 0, 3, 1)  # from [n2, m of x2, n1, m of x1]

    def _diagonal_by_columns(self, x1: Tensor, x2: Tensor, progress: bool) -> Tensor:
        n, m = len(x1), self.num_outputs
        numbers = self.max_bytes // self.item
        columns = max(1, numbers // (self.num_parameters + 2 * self.intermediate))
        basis = torch.eye(m, dtype=self.dtype, device=x1.device)

        def column(a: Tensor, b: Tensor, cotangent: Tensor) -> Tensor:
            tangents = self.pullback(b, cotangent)
            return along(lambda p: self.outputs_of_one(p, a), self.parameters, tangents)[1]

        parts = []
        for chosen in _bar(torch.arange(n * m, device=x1.device).split(columns), progress):
            example, unit = chosen // m, chosen % m
            part = vmap(column)(x1[example], x2[example], basis[unit])
            parts.append((part * basis[unit]).sum(-1) if self.traced else part)
        kernel = torch.cat(parts).unflatten(0, (n, m))
        return kernel.mean(1) if self.traced else kernel.mT


def along(
    function: Callable[[dict[str, Tensor]], Tensor],
    point: dict[str, Tensor],
    direction: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Value at `point` and derivative along `direction`.

    Raises:
        NotImplementedError: torch has no forward derivative of some operation.
    """
    try:
        value, change = jvp(function, (point,), (direction,))  # type: ignore[misc]
    except NotImplementedError as error:
        raise NotImplementedError(
            "torch has no forward derivative for an operation of this network "
            f"({str(error).splitlines()[0]}). For kernels, use jacobian_contraction instead; "
            "for attention, run under torch.nn.attention.sdpa_kernel(SDPBackend.MATH), with "
            "nn.MultiheadAttention in train mode."
        ) from error
    return value, change


def check_pair(x1: Tensor, x2: Tensor | None, *, flat: bool, diag: bool) -> None:
    """Examples in one dimension of rows, or `flat` ones `[..., n, d]`."""
    for name, x in (("x1", x1), ("x2", x2)):
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}.")
        if x.dim() < (2 if flat else 1):
            raise ValueError(
                f"{name} must have shape {'[..., n, d]' if flat else '[n, *input_shape]'}, got "
                f"{tuple(x.shape)}; one input is x[None]."
            )
    if x2 is None:
        return
    row = -2 if flat else -x1.dim()
    examples = [x.shape[x.dim() + row + 1 :] for x in (x1, x2)]
    if examples[0] != examples[1] or not (flat or x1.dim() == x2.dim()):
        raise ValueError(
            f"x2 has shape {tuple(x2.shape)}, x1 {tuple(x1.shape)}; inputs must agree in all but "
            "the number of rows."
        )
    if diag and x1.shape[row] != x2.shape[row]:
        raise ValueError(
            f"diag=True pairs rows, but x1 has {x1.shape[row]} and x2 {x2.shape[row]}."
        )


def _sum(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total = total + term
    return total


def _bar(blocks: Sequence[Any], progress: bool) -> Any:
    return tqdm(
        blocks, desc="tangent kernel", unit="block", delay=5.0, leave=False, disable=not progress
    )
