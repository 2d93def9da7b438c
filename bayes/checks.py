"""Checks of users' arguments, with errors that say what to do."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from gpytorch.kernels import Kernel
from torch import Tensor
from torch.distributions.transforms import AffineTransform, Transform

from priors.kernels.network import NNGPKernel, NTKKernel

__all__ = [
    "check_query",
    "check_training_data",
    "check_unit",
    "check_variances",
    "check_weights",
    "chosen_outputs",
    "warn_about_scale",
]


def check_training_data(
    owner: str,
    train_X: Tensor,
    train_Y: Tensor,
    train_Yvar: Tensor | None = None,
    *,
    missing: bool = False,
) -> None:
    """Refuse training data that no model here can use.

    Args:
        owner: Name of the model, for the message.
        train_X: Inputs, to be `[..., n, d]`.
        train_Y: Outcomes, to be `[..., n, m]`.
        train_Yvar: Variances of the observation noise, to be `[..., n, m]` and >= 0.
        missing: Whether inputs may be NaN.

    Raises:
        TypeError: something is not a floating-point tensor.
        ValueError: shapes, dtypes or devices disagree, or a value is not finite.
    """
    given = {"train_X": train_X, "train_Y": train_Y, "train_Yvar": train_Yvar}
    tensors = {name: value for name, value in given.items() if value is not None}
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"{owner} needs {name} as a float32 or float64 tensor, got {found}; "
                f"{_conversion(name, value, 'torch.float64')} makes one."
            )
        if value.dim() < 2:
            raise ValueError(
                f"{owner} needs {name} with rows and columns [..., n, columns], got shape "
                f"{tuple(value.shape)}; {name}.unsqueeze(-1) makes one column."
            )
        if bad := _count_bad(value, missing and name == "train_X"):
            hint = _HINT if name == "train_X" and not missing else ""
            raise ValueError(
                f"{owner} got {name} with {bad} NaN or infinite values; remove or impute them"
                f"{hint}."
            )
        if value.dtype != train_X.dtype or value.device != train_X.device:
            raise ValueError(
                f"{owner} got {name} as {value.dtype} on {value.device}, train_X as "
                f"{train_X.dtype} on {train_X.device}; they must agree."
            )
    if train_X.shape[-1] == 0 or train_X.shape[-2] == 0 or train_Y.shape[-1] == 0:
        raise ValueError(
            f"{owner} needs at least one row and one column, got train_X {tuple(train_X.shape)} "
            f"and train_Y {tuple(train_Y.shape)}."
        )
    if train_X.shape[:-1] != train_Y.shape[:-1]:
        hint = ""
        if train_X.dim() > 2 and train_X.shape[0] == train_Y.shape[0]:
            hint = (
                " Images and sequences are flat rows here: train_X.flatten(1), with input_shape="
                f"{tuple(train_X.shape[1:])} for the kernel or network."
            )
        raise ValueError(
            f"{owner} got train_X of shape {tuple(train_X.shape)} and train_Y of shape "
            f"{tuple(train_Y.shape)}; all but the last dimension must agree.{hint}"
        )
    if train_Yvar is not None:
        if train_Yvar.shape != train_Y.shape:
            raise ValueError(
                f"{owner} got train_Yvar of shape {tuple(train_Yvar.shape)}, train_Y has "
                f"{tuple(train_Y.shape)}; they must agree."
            )
        if bool((train_Yvar < 0).any()):
            raise ValueError(f"{owner} got negative variances in train_Yvar.")


def check_unit(owner: str, transform: Transform | None, train_Y: Tensor) -> None:
    """Refuse outcomes in a unit in which their dtype cannot hold variances.

    Args:
        owner: Name of the model, for the message.
        transform: From the model's scale to Y's, or None; only affine ones are checked.
        train_Y: Outcomes.

    Raises:
        ValueError: the unit of the model's scale, squared, is too small or too large.
    """
    if not isinstance(transform, AffineTransform):
        return
    limits = torch.finfo(train_Y.dtype)
    smallest, largest = 1e3 * limits.tiny**0.5, 1e-3 * limits.max**0.5
    scale, loc = (
        torch.as_tensor(part, dtype=torch.float64, device="cpu")
        for part in (transform.scale, transform.loc)
    )
    fine = (scale.abs() >= smallest) & (scale.abs() <= largest) & loc.isfinite()
    if not bool(fine.all()):
        raise ValueError(
            f"{owner} got outcomes that vary by {float(scale[~fine].flatten()[0]):.3g}; variances "
            f"in {train_Y.dtype} need between {smallest:.1g} and {largest:.1g}. Give Y in another "
            "unit" + (", or in torch.float64." if train_Y.dtype == torch.float32 else ".")
        )


def _conversion(name: str, value: object, dtype: str) -> str:
    """How a value becomes a tensor of the dtype."""
    if isinstance(value, Tensor):
        return f"{name}.to({dtype})"
    if hasattr(value, "to_numpy"):  # a table or a column of pandas or polars
        return f"torch.tensor({name}.to_numpy(), dtype={dtype})"
    return f"torch.as_tensor({name}, dtype={dtype})"


_HINT = ", or pass input_transform=priors.MissingInputs(train_X)"


def _count_bad(values: Tensor, missing: bool) -> int:
    """How many values are infinite, or NaN where none may be missing."""
    return int((values.isinf() if missing else ~values.isfinite()).sum())


def check_query(owner: str, X: Tensor, like: Tensor, *, missing: bool = False) -> None:
    """Refuse queries that do not fit the training inputs.

    Args:
        owner: Name of the model, for the message.
        X: Queries, to be `[..., q, d]`.
        like: Training inputs `[..., n, d]`.
        missing: Whether inputs may be NaN.

    Raises:
        TypeError: `X` is not a tensor of the training dtype.
        ValueError: `X` has another number of columns, or values that are not finite.
    """
    if not isinstance(X, Tensor) or X.dtype != like.dtype:
        found = X.dtype if isinstance(X, Tensor) else type(X).__name__
        raise TypeError(
            f"{owner} was trained in {like.dtype} and got X as {found}; use "
            f"{_conversion('X', X, str(like.dtype))}."
        )
    columns = like.shape[-1]
    if X.dim() < 2 or X.shape[-1] != columns:
        hint = ""
        if X.dim() > 2 and X.shape[1:].numel() == columns:
            hint = "; X.flatten(1) makes a row of each image or sequence"
        elif X.dim() == 1 and len(X) == columns:
            hint = "; one query is X[None]"
        raise ValueError(
            f"{owner} was trained on {columns} input columns and got X of shape "
            f"{tuple(X.shape)}; expected [..., q, {columns}]{hint}."
        )
    if _count_bad(X, missing):
        rows = (X.isinf() if missing else ~X.isfinite()).any(-1).nonzero()
        named = [row if len(row) > 1 else row[0] for row in rows[:3].tolist()]
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        raise ValueError(
            f"{owner} got X with NaN or infinite values in row{'s' * (len(rows) > 1)} "
            f"{', '.join(map(str, named))}{more}; remove or impute them."
        )


def check_variances(owner: str, variances: Tensor, num_outputs: int) -> None:
    """Refuse noise variances of queries that are none.

    Args:
        owner: Name of the model, for the message.
        variances: To be `[..., q, m]`, or `[..., q, 1]` for all outputs.
        num_outputs: Number of outputs.

    Raises:
        ValueError: another number of columns, or a value that is negative or NaN.
    """
    if variances.dim() < 2 or variances.shape[-1] not in (1, num_outputs):
        raise ValueError(
            f"{owner} got observation_noise of shape {tuple(variances.shape)}; expected "
            f"[..., q, {num_outputs}]."
        )
    if not bool((variances >= 0).all()):
        raise ValueError(f"{owner} got negative or NaN variances in observation_noise.")


def check_weights(owner: str, weights: Tensor, train_Y: Tensor) -> Tensor:
    """Weights of rows as a column.

    Args:
        owner: Name of the model, for the message.
        weights: To be `[..., n]` or `[..., n, 1]`, > 0.
        train_Y: Outcomes, `[..., n, m]`.

    Returns:
        `[..., n, 1]`.

    Raises:
        TypeError: another dtype than that of the outcomes.
        ValueError: another shape or device, or a weight that is not positive and finite.
    """
    if not isinstance(weights, Tensor) or weights.dtype != train_Y.dtype:
        found = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(
            f"{owner} needs train_weights as a tensor of {train_Y.dtype}, got {found}; use "
            f"{_conversion('train_weights', weights, str(train_Y.dtype))}."
        )
    column = weights.unsqueeze(-1) if weights.dim() == train_Y.dim() - 1 else weights
    if column.shape != (*train_Y.shape[:-1], 1) or column.device != train_Y.device:
        raise ValueError(
            f"{owner} needs train_weights {tuple(train_Y.shape[:-1])} on {train_Y.device}, one for "
            f"each row, got shape {tuple(weights.shape)} on {weights.device}."
        )
    if not bool((column > 0).all() & column.isfinite().all()):
        raise ValueError(f"{owner} needs finite train_weights > 0; leave out rows of weight 0.")
    return column


def warn_about_scale(owner: str, X: Tensor, kernel: Kernel) -> None:
    """Warn where the kernel of a network gets inputs far from mean 0 and variance 1.

    Such a kernel is not stationary: an offset or a large scale makes rows nearly collinear, and
    the fit has nothing to learn from.

    Args:
        owner: Name of the model, for the message.
        X: Inputs as the kernel sees them, `[..., n, d]`.
        kernel: Any kernel.
    """
    for part in kernel.modules():
        if not isinstance(part, NNGPKernel | NTKKernel):
            continue
        seen = X if part.active_dims is None else X[..., part.active_dims]
        sizes = seen.reshape(-1, seen.shape[-1]).square().mean(0).sqrt()
        if float(sizes.max()) > 10 or 0 < float(sizes.max()) < 0.05:
            column = int(sizes.argmax())
            warnings.warn(
                f"{owner} got inputs of root mean square up to {float(sizes[column]):.3g} "
                f"(column {column}) without an input transform, but {type(part).__name__} "
                "expects mean 0 and variance 1. Omit input_transform to have them "
                "standardised, or standardise them yourself.",
                stacklevel=4,
            )
            return


def chosen_outputs(owner: str, indices: Sequence[int] | None, num_outputs: int) -> list[int]:
    """The outputs that a query asks for.

    Args:
        owner: Name of the model, for the message.
        indices: Indices of outputs, negative ones from the end; all without them.
        num_outputs: Number of outputs.

    Raises:
        ValueError: an index is out of range, or there is none.
    """
    outputs = list(range(num_outputs) if indices is None else indices)
    if not outputs or not all(-num_outputs <= k < num_outputs for k in outputs):
        raise ValueError(f"{owner} has {num_outputs} outputs, got indices {outputs}.")
    return outputs
