"""The different views of one data set that the members of an ensemble get."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from pfn.estimators.power_transforms import InputTransform, TargetTransform, standardisation
from pfn.estimators.whitening import Whitening
from pfn.network import Network

__all__ = ["EnsemblePlan", "Member", "PrincipalComponents"]

# Members of every eight that see columns that are alike whitened; the inputs of these have no power
# transforms, which would bend differences of columns.
_WHITENED = (3, 4, 7)


@dataclass(frozen=True)
class PrincipalComponents:
    """Of the numeric columns of a context, missing values at their means.

    Attributes:
        numeric: Which columns, `[d]`.
        location: Their means.
        directions: One column for each component.
    """

    numeric: np.ndarray
    location: np.ndarray
    directions: np.ndarray

    @classmethod
    def fit(cls, X: np.ndarray, numeric: np.ndarray, number: int) -> PrincipalComponents:
        location, _ = standardisation(X[:, numeric])
        made = cls(numeric, location, np.eye(int(numeric.sum())))
        directions = np.linalg.svd(made.apply(X), full_matrices=False)[2][:number].T
        return cls(numeric, location, directions)

    def apply(self, X: np.ndarray) -> np.ndarray:
        return np.nan_to_num(X[:, self.numeric] - self.location) @ self.directions


@dataclass(frozen=True)
class Member:
    """One view of the data set.

    Attributes:
        rows: Rows of the context.
        columns: Order of the columns, or those that the member sees.
        column_seed: Seed of the column codes.
        classes: The number that each class has here; None in regression.
        inputs: Power transforms of the inputs.
        target: Power transform of the targets; the network standardises them itself.
        components: What it sees in place of columns, if not None.
        whitening: Of columns that are alike, before anything else.
    """

    rows: np.ndarray
    columns: np.ndarray
    column_seed: int
    classes: np.ndarray | None
    inputs: InputTransform | None
    target: TargetTransform | None
    components: PrincipalComponents | None = None
    whitening: Whitening | None = None

    @property
    def width(self) -> int:
        """Number of its inputs."""
        return self.columns.size if self.components is None else self.components.directions.shape[1]

    @property
    def data(self) -> tuple[bytes, int, int, int]:
        """Equal for members that see the same columns, whatever their order."""
        return self.rows.tobytes(), id(self.inputs), id(self.target), id(self.whitening)

    def transformed(self, X: np.ndarray) -> np.ndarray:
        """Inputs in the order given."""
        X = X if self.whitening is None else self.whitening.apply(X)
        return X if self.inputs is None else self.inputs.apply(X)

    def inputs_of(self, X: np.ndarray) -> np.ndarray:
        X = self.transformed(X)
        return X[:, self.columns] if self.components is None else self.components.apply(X)

    def targets_of(self, y: np.ndarray) -> np.ndarray:
        """What it sees of the targets `[n]`."""
        y = y[self.rows]
        if self.classes is not None:
            return self.classes[y]
        return y if self.target is None else self.target.apply(y)

    def kinds_of(self, categorical: np.ndarray) -> np.ndarray:
        """Which of its inputs are categories."""
        if self.components is None:
            return categorical[self.columns]
        return np.zeros(self.components.directions.shape[1], dtype=bool)


@dataclass(frozen=True)
class EnsemblePlan:
    """A data set, and what its members may do to it.

    Attributes:
        network: Encodes what members see.
        X: Inputs `[n, d]`, NaN where missing.
        y: Numbers, or numbers of classes, `[n]`.
        categorical: `[d]`.
        num_classes: Number of classes; 0 in regression.
        size: Members at most, for one context each.
        power_transforms: See `PFNRegressor`.
        limit: Most rows of a context; infinite for no limit.
        strategy: What to do with more rows; see `context_strategy` of `PFNRegressor`.
        ranking: Columns, the most informative first, of which each member sees as many as the
            network has slots; None where all see all. The first sees the best of them, the others
            random groups in turn, and every fourth principal components of all.
        whitening: Whether some members see columns that are alike as their principal components.
    """

    network: Network
    X: np.ndarray
    y: np.ndarray
    categorical: np.ndarray
    num_classes: int
    size: int
    power_transforms: bool | str
    limit: float
    strategy: str
    ranking: np.ndarray | None = None
    whitening: bool = False

    def members(self, random: np.random.RandomState) -> list[Member]:
        """The members; the first sees the data as they are."""
        architecture, d = self.network.architecture, self.X.shape[1]
        cycle, groups = self._transforms(), self._groups(random)
        moves = self.network.coverage.exchangeable
        random_members = moves or architecture.cell_layers or architecture.classes
        number = self.size
        if not random_members and len(self.y) <= self.limit:
            number = min(number, len(cycle))  # the others would be copies
        members = []
        # Members that see the same rows share their transforms.
        inputs_of: dict[bytes, InputTransform | None] = {}
        targets_of: dict[bytes, TargetTransform] = {}
        whitening_of: dict[bytes, Whitening | None] = {}
        for i in range(number):
            columns, seed, classes = np.arange(d), 0, None
            if i and architecture.cell_layers:
                seed = int(random.randint(1, 2**31 - 1))
            elif self.ranking is not None:
                columns = next(groups) if i else np.sort(self.ranking[: architecture.max_features])
            elif i and moves:
                columns = random.permutation(d)
            if architecture.classes:
                number = self.num_classes
                classes = random.permutation(number) if i else np.arange(number)
            of_inputs, of_targets = cycle[i % len(cycle)]
            for rows in self._contexts(random):
                key = rows.tobytes()
                if of_inputs and key not in inputs_of:
                    inputs_of[key] = self._input_transform(rows)
                if of_targets and key not in targets_of:
                    targets_of[key] = TargetTransform.fit(self.y[rows])
                inputs = inputs_of[key] if of_inputs else None
                target = targets_of[key] if of_targets else None
                if key not in whitening_of:
                    whitening_of[key] = self._whitening(rows)
                whitening = whitening_of[key] if i % 8 in _WHITENED and not of_inputs else None
                member = Member(rows, columns, seed, classes, inputs, target, whitening=whitening)
                if self.ranking is not None and i % 4 == 2:
                    # Fewer the next time: the last ones are noise where columns are many.
                    kept = math.ceil(architecture.max_features * 0.75 ** (i // 4))
                    member = replace(member, components=self._components(member, kept))
                members.append(member)
        return members

    def _groups(self, random: np.random.RandomState) -> Iterator[np.ndarray]:
        """Random columns for the slots, all of them once before any comes again."""
        parts = math.ceil(self.X.shape[1] / self.network.architecture.max_features)
        while True:
            order = random.permutation(self.X.shape[1])
            yield from (order[part::parts] for part in range(parts))

    def _components(self, member: Member, number: int) -> PrincipalComponents | None:
        X = self.X[member.rows]
        X = X if member.inputs is None else member.inputs.apply(X)
        numeric = ~self.categorical
        if self.network.inputs != "standardised" or not numeric.any():
            return None  # in fixed units a sum of columns means nothing
        return PrincipalComponents.fit(X, numeric, number)

    def _transforms(self) -> list[tuple[bool, bool]]:
        """Which members transform inputs and targets; repeated over the ensemble."""
        network = self.network
        inputs = network.inputs == "standardised"
        targets = network.targets == "standardised" and not network.architecture.classes
        wanted = [(False, False), (True, True), (True, False), (False, True)]
        allowed = [(i, t) for i, t in wanted if (inputs or not i) and (targets or not t)]
        if self.power_transforms is True and self.size < 2:
            raise ValueError(
                "power_transforms apply to part of an ensemble; num_ensemble must be at least 2."
            )
        if self.power_transforms is True and len(allowed) == 1:
            raise ValueError(
                "power_transforms need a network that was trained on standardised inputs or "
                "targets; this one was trained in fixed units."
            )
        return allowed if self.power_transforms else allowed[:1]

    def _input_transform(self, rows: np.ndarray) -> InputTransform | None:
        X = self.X[rows]
        varies = [len(np.unique(column[~np.isnan(column)])) > 1 for column in X.T]
        numeric = ~self.categorical & varies
        return InputTransform.fit(X, numeric) if numeric.any() else None

    def _whitening(self, rows: np.ndarray) -> Whitening | None:
        if not self.whitening or self.network.inputs != "standardised":
            return None  # in fixed units a sum of columns means nothing
        return Whitening.fit(self.X[rows], ~self.categorical)

    def _contexts(self, random: np.random.RandomState) -> list[np.ndarray]:
        """Rows of the contexts of a member."""
        n, limit = len(self.y), self.limit
        if n <= limit:
            return [np.arange(n)]
        order = random.permutation(n)
        if self.network.architecture.classes:  # every part gets its share of every class
            order = order[np.argsort(self.y[order], kind="stable")]
        parts = math.ceil(n / limit)
        if self.strategy == "chunk":
            return [np.sort(order[part::parts]) for part in range(parts)]
        positions = (np.arange(limit) + random.uniform()) * (n / limit)
        return [np.sort(order[positions.astype(int).clip(max=n - 1)])]
