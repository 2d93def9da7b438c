"""Checks of what users pass in, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["check_query", "check_training_data", "chosen_outputs"]


def check_training_data(
    owner: str, train_X: Tensor, train_Y: Tensor, train_Yvar: Tensor | None = None
) -> None:
    """Refuse training data that no model here can use.

    Args:
        owner: Name of the model, for the message.
        train_X: Inputs, to be `[..., n, d]`.
        train_Y: Outcomes, to be `[..., n, m]`.
        train_Yvar: Variances of the observation noise, to be `[..., n, m]` and >= 0.

    Raises:
        TypeError: something is no floating-point tensor.
        ValueError: shapes, dtypes or devices disagree, or a value is not finite.
    """
    given = {"train_X": train_X, "train_Y": train_Y, "train_Yvar": train_Yvar}
    tensors = {name: value for name, value in given.items() if value is not None}
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"{owner} needs {name} as a float32 or float64 tensor, got {found}; "
                f"torch.as_tensor({name}, dtype=torch.float64) makes one."
            )
        if value.dim() < 2:
            raise ValueError(
                f"{owner} needs {name} with rows and columns [..., n, columns], got shape "
                f"{tuple(value.shape)}; {name}.unsqueeze(-1) makes one column."
            )
        if not bool(value.isfinite().all()):
            bad = int((~value.isfinite()).sum())
            raise ValueError(
                f"{owner} got {name} with {bad} NaN or infinite values; remove or impute them."
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
        raise ValueError(
            f"{owner} got train_X of shape {tuple(train_X.shape)} and train_Y of shape "
            f"{tuple(train_Y.shape)}; all but the last dimension must agree."
        )
    if train_Yvar is not None:
        if train_Yvar.shape != train_Y.shape:
            raise ValueError(
                f"{owner} got train_Yvar of shape {tuple(train_Yvar.shape)}, train_Y has "
                f"{tuple(train_Y.shape)}; they must agree."
            )
        if bool((train_Yvar < 0).any()):
            raise ValueError(f"{owner} got negative variances in train_Yvar.")


def check_query(owner: str, X: Tensor, like: Tensor) -> None:
    """Refuse queries that do not fit the training inputs.

    Args:
        owner: Name of the model, for the message.
        X: Queries, to be `[..., q, d]`.
        like: Training inputs `[..., n, d]`.

    Raises:
        TypeError: `X` is not a tensor of the training dtype.
        ValueError: `X` has another number of columns.
    """
    if not isinstance(X, Tensor) or X.dtype != like.dtype:
        found = X.dtype if isinstance(X, Tensor) else type(X).__name__
        raise TypeError(
            f"{owner} was trained in {like.dtype} and got X as {found}; use X.to({like.dtype})."
        )
    if X.dim() < 2 or X.shape[-1] != like.shape[-1]:
        raise ValueError(
            f"{owner} was trained on {like.shape[-1]} input columns and got X of shape "
            f"{tuple(X.shape)}; expected [..., q, {like.shape[-1]}]."
        )


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
