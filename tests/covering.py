"""Few combinations of parameters of a test: those that are fast."""

import collections
import re


def combination(item):
    """The value of each parameter of a test, of those that are given together all values.

    Values are told apart by identity: not all can be compared, and pytest makes no copies. (Its
    `callspec.indices` number the combinations, not the values.)
    """
    params = item.callspec.params
    given = [mark.args[0] for mark in item.iter_markers("parametrize")]
    together = [tuple(re.findall(r"\w+", n) if isinstance(n, str) else n) for n in given]
    alone = params.keys() - set().union(*together)  # those of fixtures
    return {
        names: tuple(id(params[name]) for name in names)
        for names in [*together, *((name,) for name in alone)]
    }


def covering(combinations):
    """Numbers of combinations in which every value of every parameter occurs, few and mixed.

    Args:
        combinations: A dictionary each, from the names of parameters to their values.
    """
    values = [frozenset(combination.items()) for combination in combinations]
    used = collections.Counter()
    kept = set()
    while missing := set().union(*values) - set(used):
        best = min(
            (number for number in range(len(values)) if values[number] & missing),
            key=lambda k: (-len(values[k] & missing), sum(used[value] for value in values[k])),
        )
        kept.add(best)
        used.update(values[best])
    return kept


def chosen(ids, names, test):
    """Numbers of the combinations with these ids.

    Where a test is asked for by its id, the others of its family are not there.

    Raises:
        ValueError: no combination has one of the ids.
    """
    missing = set(names) - set(ids)
    if missing and len(ids) > len(names):
        raise ValueError(
            f"{test} is marked fast_for {sorted(missing)}, which it does not have; "
            f"its ids are {ids}."
        )
    return {number for number, value in enumerate(ids) if value in names}
