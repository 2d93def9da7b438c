"""A prior-data fitted network that predicts from the trials in one forward pass."""

from __future__ import annotations

from botorch.models.model import Model
from botorch.models.transforms.input import FilterFeatures
from torch import Tensor

from nas.surrogates.surrogate import VectorSurrogate
from pfn import PFN, load

__all__ = ["FittedNetwork"]


class FittedNetwork(VectorSurrogate):
    """A network of `pfn` on as many columns and trials as it was trained for.

    With more columns it gets those whose correlation with the targets is largest, with more
    trials the better half of what it may have and the newest.

    Args:
        name: Of a network of `pfn.load`, or a path.
    """

    def __init__(self, name: str = "bo") -> None:
        super().__init__(self._condition)
        self.name = name
        self._network: PFN | None = None

    def __repr__(self) -> str:
        return "pfn" if self.name == "bo" else f"{type(self).__name__}({self.name!r})"

    def __getstate__(self) -> dict[str, object]:
        return {"name": self.name}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__init__(state["name"])  # type: ignore[misc]

    @property
    def network(self) -> PFN:
        """The network, loaded when it is first needed."""
        if self._network is None:
            self._network = load(self.name)
        return self._network

    @property
    def max_columns(self) -> int:
        """Columns that it was trained for."""
        return self.network.coverage.num_features or self.network.architecture.max_features

    def notice(self, X: Tensor) -> str | None:
        """Says once which columns and trials it uses where there are too many."""
        rows, columns = self.network.coverage.max_context, self.max_columns
        told = []
        if X.shape[-1] > columns:
            told.append(f"the {columns} columns that correlate most with the values")
        if len(X) > rows:
            told.append(f"{rows:.0f} trials, the best and the newest")
        if not told:
            return None
        return (
            f"The network {self.name!r} uses {' and '.join(told)}, as it was trained for no more; "
            "surrogate='gp' uses all."
        )

    def _condition(self, X: Tensor, Y: Tensor, num_architecture: int) -> Model:
        rows = self.chosen_rows(Y)
        X, Y = X[rows], Y[rows]
        columns = self.chosen_columns(X, Y)
        return self.network.to(X.device).condition(
            X, Y, input_transform=FilterFeatures(columns), check=False
        )

    def chosen_rows(self, Y: Tensor) -> Tensor:
        """Numbers of the trials it gets, in their order.

        Args:
            Y: Targets, `[n, 1]`, oldest first.
        """
        most = min(self.network.coverage.max_context, len(Y))
        best = Y[:, 0].argsort(descending=True, stable=True)
        taken = set(best[: int(most) // 2].tolist())
        for row in reversed(range(len(Y))):
            if len(taken) < most:
                taken.add(row)
        return Y.new_tensor(sorted(taken)).long()

    def chosen_columns(self, X: Tensor, Y: Tensor) -> Tensor:
        """Numbers of the columns it gets, in their order; see the class."""
        x, y = X - X.mean(0), Y - Y.mean(0)
        spread = x.square().sum(0).sqrt()
        correlation = (x * y).sum(0).abs() / spread.clamp_min(1e-12)
        correlation = correlation.where(spread > 1e-9, -1.0)
        order = correlation.argsort(descending=True, stable=True)
        return order[: self.max_columns].sort().values
