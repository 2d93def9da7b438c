"""Spaces whose members are derived by a probabilistic context-free grammar.

    space = Grammar(
        (64,),
        {
            "network": sequence("body", op("linear", out_features=10)),
            "body": ["layer", (0.5, sequence("layer", "body"))],
            "layer": [sequence(op("linear", out_features=w), op("relu")) for w in (16, 64)],
        },
    )

A rule gives the options of a symbol, each a part (`nas.spaces.expressions`) or a pair of weight and
part. Derivations go from left to right and choose only among options from which a network that
builds can be completed (`nas.spaces.derivation`). A subtree is drawn anew (mutation) or taken from
another network (crossover); what stands to its right keeps its choices wherever they are still
allowed. An architecture of a grammar carries its derivation, the options that were taken.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from nas.architectures.architecture import Architecture
from nas.architectures.operations import OPERATIONS, Shape
from nas.spaces.derivation import Derivation, Limits, Lookahead, Rules, State
from nas.spaces.expressions import Apply, Branches, Copies, Expression, symbols_of
from nas.spaces.expressions import Sequence as Chain
from nas.spaces.space import Space
from priors.randomness import RandomSource

__all__ = ["Grammar"]

Option = Expression | tuple[float, Expression]
Rule = Option | Sequence[Option]
Pick = Callable[[State, list[int]], int | None]

NUM_REMEMBERED = 4096  # derivations
NUM_ATTEMPTS = 5  # to mutate


class Grammar(Space):
    """Architectures that a probabilistic context-free grammar derives.

    Args:
        input_shape: Shape of one input, without the batch.
        rules: Symbol to its options; the first symbol is where derivations start. An option's
            weight is 1 unless it is a pair `(weight, part)`.
        output_shape: Shape of one output that every network must have; None for any.
        max_depth: Symbols inside symbols at most.
        max_choices: Choices after which only the options that end soonest are taken; bounds
            networks whose recursion ends late.
        max_elements: Size of any value inside a network for one input, at most.
        max_copies: Copies of one part in a network at most, copies of copies included.

    Raises:
        ValueError: no rule, an unknown symbol or operation, a weight that is not positive, a symbol
            whose derivations never end, or no network at all.
        TypeError: a part of another kind.
    """

    def __init__(
        self,
        input_shape: Iterable[int],
        rules: Mapping[str, Rule],
        *,
        output_shape: Iterable[int] | None = None,
        max_depth: int = 24,
        max_choices: int = 200,
        max_elements: int = 1 << 22,
        max_copies: int = 16,
    ) -> None:
        if not rules:
            raise ValueError("A grammar needs at least one rule.")
        self.input_shape: Shape = tuple(int(size) for size in input_shape)
        self.output_shape = None if output_shape is None else tuple(int(s) for s in output_shape)
        self.start = next(iter(rules))
        weighted = {symbol: _options(symbol, rule) for symbol, rule in rules.items()}
        self.weights = {
            s: tuple(weight for weight, _ in options) for s, options in weighted.items()
        }
        parts = {s: tuple(part for _, part in options) for s, options in weighted.items()}
        for symbol, options in parts.items():
            _check(symbol, options, parts)
        limits = Limits(self.output_shape, max_depth, max_choices, max_elements, max_copies)
        self.rules = Rules(self.start, self.input_shape, parts, limits)
        self.operations = tuple(sorted({n for ps in parts.values() for p in ps for n in _names(p)}))
        self._remembered: OrderedDict[tuple[int, ...], Derivation] = OrderedDict()
        self._members: dict[int, list[Architecture] | None] = {}
        ahead = Lookahead(self.rules)
        if not ahead.allowed(ahead.begin(), 0):
            raise ValueError(
                f"No network can be derived from {self.start!r} for inputs of shape "
                f"{self.input_shape}: allow more depth, or operations that fit that shape."
            )

    def __repr__(self) -> str:
        counts = ", ".join(f"{s}: {len(parts)}" for s, parts in self.rules.options.items())
        return f"{type(self).__name__}({self.input_shape} -> {self.output_shape}, options {counts})"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_remembered": OrderedDict(), "_members": {}}

    def random(self, generator: Generator) -> Architecture:
        """A derivation drawn by the weights."""
        ahead = Lookahead(self.rules)
        found = self.rules.derive(
            ahead, lambda state, chosen: self._draw(ahead, state, chosen, generator)
        )
        assert found is not None, "an allowed option led nowhere"
        return self._made(found)

    def members(self, limit: int) -> list[Architecture] | None:
        """All members, each once; None where there are more than `limit` derivations."""
        if limit not in self._members:
            every = self.derivations(limit)
            self._members[limit] = None if every is None else list(dict.fromkeys(every))
        return self._members[limit]

    def steps(
        self, architecture: Architecture, number: int, generator: Generator
    ) -> list[Architecture]:
        """At most so many different mutations."""
        found = (self.mutate(architecture, generator) for _ in range(number))
        return [graph for graph in dict.fromkeys(found) if graph != architecture]

    def mutate(self, architecture: Architecture, generator: Generator) -> Architecture:
        """The same network with one subtree drawn anew, every choice of it equally likely.

        Where nothing but the old choice is allowed, another place is tried, a few times.
        """
        old = self.derivation(architecture)
        places = [i for i, c in enumerate(old.choices) if len(self.rules.options[c.symbol]) > 1]
        for _ in range(NUM_ATTEMPTS if places else 0):
            at = places[int(RandomSource(generator).integers(len(places)))]
            ahead = Lookahead(self.rules)
            pick = self._replacing(
                ahead, old, at, self._other(ahead, old, at, generator), generator
            )
            found = self.rules.derive(ahead, pick)
            if found is not None and found.options != old.options:
                return self._made(found)
        return architecture

    def crossover(
        self, architecture: Architecture, other: Architecture, generator: Generator
    ) -> Architecture:
        """The first network with a subtree of the second in the place of one of the same symbol."""
        old, donor = self.derivation(architecture), self.derivation(other)
        symbols = {choice.symbol for choice in donor.choices[1:]}
        places = [i for i, c in enumerate(old.choices) if i and c.symbol in symbols]
        if not places:
            return self.mutate(architecture, generator)
        draws, ahead = RandomSource(generator), Lookahead(self.rules)
        at = places[int(draws.integers(len(places)))]
        symbol = old.choices[at].symbol
        sources = [i for i, c in enumerate(donor.choices) if i and c.symbol == symbol]
        source = sources[int(draws.integers(len(sources)))]

        def given(state: State, chosen: list[int]) -> int | None:
            place = source + len(chosen) - at
            return self._kept(ahead, state, chosen, donor, place, generator)

        found = self.rules.derive(ahead, self._replacing(ahead, old, at, given, generator))
        return architecture if found is None else self._made(found)

    def neighbours(self, architecture: Architecture) -> list[Architecture]:
        """The members with one choice made otherwise, and what follows from it ended soonest."""
        old = self.derivation(architecture)
        found = {architecture: None}
        for at, start in enumerate(old.choices):
            for option in range(len(self.rules.options[start.symbol])):
                if option != start.option:
                    changed = self._changed(old, at, option)
                    if changed is not None:
                        found[changed] = None
        return list(found)[1:]

    def derivation(self, architecture: Architecture) -> Derivation:
        """How an architecture is derived.

        Raises:
            ValueError: it does not carry a derivation of this grammar that gives it.
        """
        options = architecture.derivation
        found = None if options is None else self._remembered.get(options)
        if found is None and options is not None:
            found = self.rules.build(options)
            if found is not None:
                self._remember(found)
        if found is None or (
            found.nodes != architecture.nodes and Architecture(found.nodes) != architecture
        ):
            raise ValueError(
                f"The architecture carries no derivation of this grammar:\n{architecture}\n"
                "Take it from `random`, `from_options` or the study that proposed it."
            )
        return found

    def from_options(self, options: Sequence[int]) -> Architecture:
        """The architecture of a derivation.

        Args:
            options: What is chosen, from left to right, counted from 0.

        Raises:
            ValueError: they are not a derivation.
        """
        found = self.rules.build([int(option) for option in options])
        if found is None:
            raise ValueError(f"{list(options)} is not a derivation of {self!r}.")
        return self._made(found)

    def log_probability(self, architecture: Architecture) -> float:
        """Log probability in nats with which `random` draws the derivation of an architecture.

        `-inf` where it takes an option that is not allowed there.

        Raises:
            ValueError: it is not derived by this grammar.
        """
        options = self.derivation(architecture).options
        ahead, total = Lookahead(self.rules), 0.0

        def pick(state: State, chosen: list[int]) -> int:
            nonlocal total
            option, weights = options[len(chosen)], self.weights[state.symbol]
            allowed = ahead.allowed(state, len(chosen))
            among = math.fsum(weights[o] for o in allowed)
            total += math.log(weights[option] / among) if option in allowed else -math.inf
            return option

        self.rules.derive(ahead, pick)
        return total

    def derivations(self, limit: int) -> list[Architecture] | None:
        """The architecture of every derivation, or None where there are more than `limit`."""
        found: list[Architecture] = []
        ahead = Lookahead(self.rules)
        for options in self._every(ahead, ahead.begin(), ()):
            if len(found) == limit:
                return None
            found.append(self.from_options(options))
        return found

    def encode(self, architecture: Architecture) -> Tensor:
        """Log parameters, log FLOPs, depth and shares of operations, `[3 + operations]`.

        Sizes fill [0, 1) as x / (c + x), c a middling size.
        """
        counts = architecture.operation_counts()
        total = max(1, sum(counts.values()))
        sizes = (
            (math.log1p(architecture.num_parameters), 10.0),
            (math.log1p(architecture.flops), 14.0),
            (float(architecture.depth), 8.0),
        )
        row = [value / (middle + value) for value, middle in sizes]
        row += [counts.get(name, 0) / total for name in self.operations]
        return torch.tensor(row, dtype=torch.float64, device="cpu")

    def __contains__(self, architecture: object) -> bool:
        if not isinstance(architecture, Architecture):
            return False
        try:
            self.derivation(architecture)
        except ValueError:
            return False
        return True

    def _made(self, derivation: Derivation) -> Architecture:
        self._remember(derivation)
        return Architecture(derivation.nodes, derivation.options)

    def _remember(self, derivation: Derivation) -> None:
        self._remembered[derivation.options] = derivation
        while len(self._remembered) > NUM_REMEMBERED:
            self._remembered.popitem(last=False)

    def _draw(
        self, ahead: Lookahead, state: State, chosen: list[int], generator: Generator
    ) -> int | None:
        """By the weights; None where no completion is found, which old choices may leave."""
        allowed = ahead.allowed(state, len(chosen))
        return self._weighted(state.symbol, allowed, generator) if allowed else None

    def _weighted(self, symbol: str, allowed: Sequence[int], generator: Generator) -> int:
        weights = [self.weights[symbol][option] for option in allowed]
        place = float(RandomSource(generator, dtype=torch.float64).uniform()) * math.fsum(weights)
        for option, weight in zip(allowed, weights, strict=True):
            place -= weight
            if place < 0:
                return option
        return allowed[-1]

    def _kept(
        self,
        ahead: Lookahead,
        state: State,
        chosen: list[int],
        old: Derivation,
        place: int,
        generator: Generator,
    ) -> int | None:
        """The choice of another derivation where it is possible here, otherwise a draw."""
        if place < len(old.choices):
            choice = old.choices[place]
            if choice.symbol == state.symbol and ahead.completes(state, choice.option):
                return choice.option
        return self._draw(ahead, state, chosen, generator)

    def _replacing(
        self, ahead: Lookahead, old: Derivation, at: int, inside: Pick, generator: Generator
    ) -> Pick:
        """Picks like an old derivation, except in the subtree of its choice number `at`."""
        open_symbols, end = 1, 0  # of the new subtree, and where it ended

        def pick(state: State, chosen: list[int]) -> int | None:
            nonlocal open_symbols, end
            position = len(chosen)
            if position < at:
                return old.choices[position].option
            if open_symbols:
                option = inside(state, chosen)
                if option is not None:
                    open_symbols += self.rules.arities[state.symbol, option] - 1
                    end = position + 1
                return option
            place = old.choices[at].end + position - end
            return self._kept(ahead, state, chosen, old, place, generator)

        return pick

    def _other(self, ahead: Lookahead, old: Derivation, at: int, generator: Generator) -> Pick:
        """Picks for the subtree of the choice number `at` that begin with another option."""

        def pick(state: State, chosen: list[int]) -> int | None:
            if len(chosen) > at:
                return self._draw(ahead, state, chosen, generator)
            others = [o for o in ahead.allowed(state, at) if o != old.choices[at].option]
            return self._weighted(state.symbol, others, generator) if others else None

        return pick

    def _changed(self, old: Derivation, at: int, option: int) -> Architecture | None:
        ahead = Lookahead(self.rules)

        def soonest(state: State, chosen: list[int]) -> int | None:
            wished = [option] if len(chosen) == at else ahead.soonest(state)
            return next((o for o in wished if ahead.completes(state, o)), None)

        pick = self._replacing(ahead, old, at, soonest, Generator().manual_seed(0))
        found = self.rules.derive(ahead, pick)
        return None if found is None else self._made(found)

    def _every(
        self, ahead: Lookahead, state: State, chosen: tuple[int, ...]
    ) -> Iterator[tuple[int, ...]]:
        if state.stack is None:
            yield chosen
            return
        for option in ahead.allowed(state, len(chosen)):
            following = ahead.choose(state, option)
            assert following is not None
            yield from self._every(ahead, following, (*chosen, option))


def _options(symbol: str, rule: Rule) -> list[tuple[float, Expression]]:
    """Weights and parts of a rule."""
    listed = isinstance(rule, list | tuple) and not _is_weighted(rule)
    every: list[Any] = list(rule) if listed else [rule]  # type: ignore[arg-type]
    options = []
    for option in every:
        weight, part = option if _is_weighted(option) else (1.0, option)
        if not weight > 0 or not math.isfinite(weight):
            raise ValueError(f"A weight of {symbol!r} must be positive, got {weight}.")
        options.append((float(weight), part))
    if not options:
        raise ValueError(f"The rule of {symbol!r} has no option.")
    return options


def _is_weighted(option: object) -> bool:
    """Whether it is a pair of weight and part."""
    return isinstance(option, tuple) and len(option) == 2 and isinstance(option[0], int | float)


def _check(symbol: str, options: Iterable[Expression], rules: Mapping[str, object]) -> None:
    for part in options:
        unknown = sorted(set(symbols_of(part)) - set(rules))
        if unknown:
            raise ValueError(
                f"The rule of {symbol!r} names {', '.join(map(repr, unknown))}, for which there is "
                "no rule; an operation is written op(name)."
            )
        missing = sorted(set(_names(part)) - set(OPERATIONS) - {"repeat"})
        if missing:
            raise ValueError(
                f"The rule of {symbol!r} uses the unknown operation {missing[0]!r}; add it by "
                "nas.register_operation."
            )


def _names(part: Expression) -> Iterator[str]:
    """Labels of the operations in a part."""
    match part:
        case Apply(node):
            yield node.operation
            if node.body is not None:
                yield from node.body.operation_counts()
        case Chain(parts):
            for inner in parts:
                yield from _names(inner)
        case Copies(inner, _):
            yield from _names(inner)
        case Branches(parts, join, split):
            for inner in (*parts, join):
                yield from _names(inner)
            if split is not None:
                yield "chunk"
