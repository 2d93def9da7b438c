"""Deriving networks from a grammar, from left to right, with the shapes known at every choice.

A state is what a choice depends on: the parts still to be derived (a stack, the leftmost on top)
and the shapes that the next part reads. Work goes on until a symbol is on top, whose rule is then a
choice. An option is allowed if a search of bounded length finds a way to complete the derivation
from it: every operation fits the shape that reaches it, symbols lie no deeper than they may, the
output has the shape that is wanted. What was found is remembered, so a derivation never fails and
never goes back, and its probability is the product over its choices of weight / (sum of the weights
that are allowed there). Once all choices are made, the nodes are written down by `Rules.build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, prod
from typing import Any, NamedTuple

from nas.architectures.architecture import Node
from nas.architectures.costs import output_of
from nas.architectures.operations import Shape
from nas.spaces.expressions import Apply, Branches, Copies, Expression, symbols_of
from nas.spaces.expressions import Sequence as Chain

__all__ = ["Choice", "Derivation", "Limits", "Lookahead", "Rules", "State"]

MAX_STEPS = 100  # states of one search; an option that needs more counts as not completed

Shapes = tuple[Shape, ...]


class Level(NamedTuple):
    """Where a part lies: in how many symbols, and in how many copies of the whole."""

    depth: int
    copies: int = 1


class Gather(NamedTuple):
    """Branches of which some are derived.

    Attributes:
        of: The part of the grammar.
        source: What each branch gets.
        done: Outputs of those derived.
        place: Number of those parts of the grammar, of which some are copied.
    """

    of: Branches
    source: Shapes
    done: Shapes = ()
    place: int = 0


class State(NamedTuple):
    """What the next choice depends on.

    Attributes:
        stack: `(part, level, rest)`; equal stacks of one `Lookahead` are one object.
        shapes: What the next part reads.
    """

    stack: Any
    shapes: Shapes

    @property
    def symbol(self) -> str:
        """The symbol on top of the stack."""
        return str(self.stack[0])

    @property
    def depth(self) -> int:
        """How deep it lies."""
        return int(self.stack[1].depth)

    @property
    def key(self) -> tuple[int, Shapes]:
        """Equal for equal states of one `Lookahead`."""
        return id(self.stack), self.shapes


@dataclass(frozen=True)
class Choice:
    """One symbol of a derivation.

    Attributes:
        symbol: The symbol.
        option: Which of its options was taken.
        end: Choices from this one to before `end` are its subtree.
    """

    symbol: str
    option: int
    end: int


@dataclass(frozen=True)
class Derivation:
    """A network and how it was derived.

    Attributes:
        nodes: Its nodes; the first is the input.
        choices: What was chosen, from left to right.
    """

    nodes: tuple[Node, ...]
    choices: tuple[Choice, ...]

    @property
    def options(self) -> tuple[int, ...]:
        """The options that were taken, which are all that is needed to repeat it."""
        return tuple(choice.option for choice in self.choices)


@dataclass(frozen=True)
class Limits:
    """What bounds a derivation.

    Attributes:
        output_shape: Wanted of the network; None for any.
        max_depth: Of symbols inside symbols.
        max_choices: After so many only the options that end soonest are allowed.
        max_elements: Of any value, for one input.
        max_copies: Of one part in the network, copies of copies included.
    """

    output_shape: Shape | None
    max_depth: int
    max_choices: int
    max_elements: int
    max_copies: int


class Rules:
    """The rules of a grammar, ready to derive by.

    Args:
        start: The symbol that stands for a network.
        input_shape: What it reads.
        options: The options of each symbol.
        limits: What bounds a derivation.

    Raises:
        ValueError: a symbol whose derivations never end.
    """

    def __init__(
        self,
        start: str,
        input_shape: Shape,
        options: Mapping[str, tuple[Expression, ...]],
        limits: Limits,
    ) -> None:
        self.start = start
        self.input_shape = input_shape
        self.options = options
        self.limits = limits
        self.heights = _heights(options)
        self.soonest = {
            symbol: sorted(range(len(parts)), key=lambda option: self.heights[symbol, option])
            for symbol, parts in options.items()
        }
        self.arities = {
            (symbol, index): len(list(symbols_of(part)))
            for symbol, parts in options.items()
            for index, part in enumerate(parts)
        }

    def derive(
        self, lookahead: Lookahead, pick: Callable[[State, list[int]], int | None]
    ) -> Derivation | None:
        """Choose until nothing is left.

        Args:
            lookahead: Of this derivation alone, so that equal picks give equal networks.
            pick: Takes the state and the choices before it and gives an option; None gives up.
        """
        state, chosen = lookahead.begin(), []  # type: ignore[var-annotated]
        while state.stack is not None:
            option = pick(state, chosen)
            following = None if option is None else lookahead.choose(state, option)
            if option is None or following is None:
                return None
            chosen.append(option)
            state = following
        return self.build(chosen)

    def build(self, options: Sequence[int]) -> Derivation | None:
        """The network of these options, None where they are not a derivation."""
        return _Builder(self, tuple(options)).network()

    def fits_depth(self, symbol: str, depth: int, option: int) -> bool:
        """Whether an option of a symbol at this depth can end in time."""
        return depth + self.heights[symbol, option] <= self.limits.max_depth

    def shape_of(self, node: Node, shapes: Shapes) -> Shape | None:
        """The output of an operation; None where it does not fit or is too large."""
        shape = output_of(node, shapes)
        return None if shape is None or prod(shape) > self.limits.max_elements else shape

    def ends_well(self, shapes: Shapes) -> bool:
        """Whether what is left at the end is one output as it is wanted."""
        wanted = self.limits.output_shape
        return len(shapes) == 1 and (wanted is None or shapes[0] == wanted)


@dataclass
class Lookahead:
    """The states of one derivation, and which of them can be completed.

    Args:
        rules: The rules.
    """

    rules: Rules
    _known: dict[tuple[int, Shapes], bool] = field(default_factory=dict)
    _stacks: dict[Any, Any] = field(default_factory=dict)

    def begin(self) -> State:
        """The state before the first choice."""
        return State(self._stack(self.rules.start, Level(1), None), (self.rules.input_shape,))

    def allowed(self, state: State, num_chosen: int) -> tuple[int, ...]:
        """The options of the symbol on top that may be chosen, in the order of the rule."""
        found: list[int] = []
        heights, late = self.rules.heights, num_chosen >= self.rules.limits.max_choices
        for option in self.soonest(state):
            sooner = found and heights[state.symbol, found[0]] < heights[state.symbol, option]
            if late and sooner:
                break
            if self.completes(state, option):
                found.append(option)
        return tuple(sorted(found))

    def soonest(self, state: State) -> list[int]:
        """The options of the symbol on top that fit the depth, those that end soonest first."""
        symbol, depth, rules = state.symbol, state.depth, self.rules
        return [o for o in rules.soonest[symbol] if rules.fits_depth(symbol, depth, o)]

    def completes(self, state: State, option: int) -> bool:
        """Whether a completion from an option of the symbol on top is found."""
        steps = 0
        path = [(state, [option])]  # states under way, and the options left to try there
        while path:
            at, left = path[-1]
            if not left or steps > MAX_STEPS:
                path.pop()
                if path:
                    self._known[at.key] = False
                continue
            steps += 1
            following = self.choose(at, left.pop())
            if following is None:
                continue
            known = True if following.stack is None else self._known.get(following.key)
            if known:
                self._known.update((passed.key, True) for passed, _ in path[1:])
                return True
            if known is None:
                path.append((following, self.soonest(following)[::-1]))
        return False

    def choose(self, state: State, option: int) -> State | None:
        """Take an option of the symbol on top and work to the next choice; None if impossible."""
        symbol, level, rest = state.stack
        options = self.rules.options[symbol]
        if not 0 <= option < len(options) or not self.rules.fits_depth(symbol, level.depth, option):
            return None
        inside = Level(level.depth + 1, level.copies)
        found = self._settle(self._stack(options[option], inside, rest), state.shapes)
        if found is not None and found.stack is None and not self.rules.ends_well(found.shapes):
            return None
        return found

    def _settle(self, stack: Any, shapes: Shapes) -> State | None:
        """Work until a symbol is on top or nothing is left; None where something does not fit."""
        while stack is not None:
            part, level, rest = stack
            if isinstance(part, str):
                return State(stack, shapes)
            if isinstance(part, Apply):
                shape = self.rules.shape_of(part.node, shapes)
                if shape is None:
                    return None
                stack, shapes = rest, (shape,)
            elif isinstance(part, Chain):
                stack = rest
                for inner in reversed(part.parts):
                    stack = self._stack(inner, level, stack)
            else:
                gather = self._gathered(part, shapes)
                if gather.place == len(gather.of.parts):
                    stack, shapes = self._stack(gather.of.join, level, rest), gather.done
                    continue
                pieces = self._pieces(gather)
                if pieces is None:
                    return None
                branch, count = _counted(gather.of.parts[gather.place])
                inside = Level(level.depth, level.copies * count)
                if inside.copies > self.rules.limits.max_copies:
                    return None
                stack = self._stack(branch, inside, self._stack(gather, level, rest))
                shapes = pieces
        return State(None, shapes)

    @staticmethod
    def _gathered(part: Branches | Gather, shapes: Shapes) -> Gather:
        """Branches at their beginning, or with one more of them derived."""
        if isinstance(part, Branches):
            return Gather(part, shapes)
        _, count = _counted(part.of.parts[part.place])
        return Gather(part.of, part.source, part.done + shapes * count, part.place + 1)

    def _pieces(self, gather: Gather) -> Shapes | None:
        """What each branch reads, the same shape for all."""
        if gather.of.split is None:
            return gather.source
        shape = self.rules.shape_of(_chunk(gather.of, 0), gather.source)
        return None if shape is None else (shape,)

    def _stack(self, part: Any, level: Level, rest: Any) -> Any:
        """A part on a stack, one object for equal ones; it is kept, its id is a key."""
        if isinstance(part, Gather):
            key: Any = (id(part.of), *part[1:])
        else:
            key = part if isinstance(part, str) else id(part)
        return self._stacks.setdefault((key, level, id(rest)), (part, level, rest))


class _Builder:
    """Writes down the nodes of a derivation, checking that all fits."""

    def __init__(self, rules: Rules, options: tuple[int, ...]) -> None:
        self.rules = rules
        self.options = options
        self.cursor = 0
        self.nodes = [Node.of("input", shape="x".join(str(size) for size in rules.input_shape))]
        self.shapes = [rules.input_shape]
        self.choices: list[Choice | None] = []

    def network(self) -> Derivation | None:
        """The derivation; None where the options are not one."""
        try:
            wires = self.part(self.rules.start, (0,), Level(1))
        except _Misfit:
            return None
        if self.cursor < len(self.options) or not self.rules.ends_well(self._read(wires)):
            return None
        choices = tuple(choice for choice in self.choices if choice is not None)
        return Derivation(tuple(self.nodes), choices)

    def part(self, part: Expression, wires: tuple[int, ...], level: Level) -> tuple[int, ...]:
        """Write down a part that reads these nodes, and give the nodes it ends in."""
        match part:
            case str():
                return self.symbol(part, wires, level)
            case Apply(node):
                return self.node(node, wires)
            case Chain(parts):
                for inner in parts:
                    wires = self.part(inner, wires, level)
                return wires
            case Branches():
                return self.part(part.join, self.branches(part, wires, level), level)
        raise TypeError(f"{part!r} cannot stand in a grammar.")

    def symbol(self, symbol: str, wires: tuple[int, ...], level: Level) -> tuple[int, ...]:
        """The option that was taken of a symbol."""
        if self.cursor >= len(self.options):
            raise _Misfit
        start, option = self.cursor, self.options[self.cursor]
        options = self.rules.options[symbol]
        if not 0 <= option < len(options) or not self.rules.fits_depth(symbol, level.depth, option):
            raise _Misfit
        self.cursor += 1
        self.choices.append(None)
        wires = self.part(options[option], wires, Level(level.depth + 1, level.copies))
        self.choices[start] = Choice(symbol, option, self.cursor)
        return wires

    def branches(self, part: Branches, wires: tuple[int, ...], level: Level) -> tuple[int, ...]:
        """The outputs of all branches."""
        outputs: tuple[int, ...] = ()
        index = 0
        for branch in part.parts:
            inner, count = _counted(branch)
            inside = Level(level.depth, level.copies * count)
            if inside.copies > self.rules.limits.max_copies:
                raise _Misfit
            source = self.source(part, index, wires)
            start = len(self.nodes)
            made = self.part(inner, source, inside)
            end = len(self.nodes)
            outputs += made
            for copy in range(index + 1, index + count):
                outputs += self.copied(start, end, made, source, self.source(part, copy, wires))
            index += count
        return outputs

    def source(self, part: Branches, index: int, wires: tuple[int, ...]) -> tuple[int, ...]:
        """What a branch reads."""
        return wires if part.split is None else self.node(_chunk(part, index), wires)

    def copied(
        self,
        start: int,
        end: int,
        made: tuple[int, ...],
        source: tuple[int, ...],
        other: tuple[int, ...],
    ) -> tuple[int, ...]:
        """The nodes from `start` to `end` once more, reading another source of the same shape."""
        offset = len(self.nodes) - start
        place = dict(zip(source, other, strict=True))
        place |= {wire: wire + offset for wire in range(start, end)}
        for node in self.nodes[start:end]:
            inputs = tuple(place[wire] for wire in node.inputs)
            self.nodes.append(Node(node.operation, inputs, node.arguments, node.body))
        self.shapes += self.shapes[start:end]
        return tuple(place[wire] for wire in made)

    def node(self, node: Node, wires: tuple[int, ...]) -> tuple[int, ...]:
        """An operation that reads these nodes."""
        shape = self.rules.shape_of(node, self._read(wires))
        if shape is None:
            raise _Misfit
        self.nodes.append(Node(node.operation, wires, node.arguments, node.body))
        self.shapes.append(shape)
        return (len(self.nodes) - 1,)

    def _read(self, wires: tuple[int, ...]) -> Shapes:
        return tuple(self.shapes[wire] for wire in wires)


class _Misfit(Exception):
    """The options are not a derivation."""


def _chunk(part: Branches, index: int) -> Node:
    count = sum(_counted(branch)[1] for branch in part.parts)
    assert part.split is not None
    return Node.of("chunk", dim=part.split, parts=count, index=index)


def _counted(branch: Expression) -> tuple[Expression, int]:
    """What a branch is, and how many copies of it there are."""
    return (branch.part, branch.count) if isinstance(branch, Copies) else (branch, 1)


def _heights(options: Mapping[str, tuple[Expression, ...]]) -> dict[tuple[str, int], float]:
    """Symbols nested below each option at the least."""
    needs = {
        (symbol, index): set(symbols_of(part))
        for symbol, parts in options.items()
        for index, part in enumerate(parts)
    }
    least = dict.fromkeys(options, inf)
    for _ in options:
        for symbol, index in needs:
            height = 1 + max((least[inner] for inner in needs[symbol, index]), default=0)
            least[symbol] = min(least[symbol], height)
    endless = sorted(symbol for symbol, height in least.items() if height == inf)
    if endless:
        raise ValueError(
            f"Derivations from {', '.join(endless)} never end: give each an option without itself."
        )
    return {key: max((least[inner] for inner in needs[key]), default=0) for key in needs}
