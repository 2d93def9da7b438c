"""Tables of `benchmarks fits`: means over the splits, ratios to `SingleTaskGP`, goals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.bayes.competitors import BOTORCH, COMPETITORS, NETWORKS
from benchmarks.pfn.scores import paired, ranks

__all__ = ["CHOSEN", "cells", "goals", "report", "with_chosen"]

CHOSEN = "chosen by evidence"
# Those that goals are about, with how much longer than SingleTaskGP their fits may take.
_GOALS = {
    f"{kernel} {activation} ARD": factor
    for activation, factor in (("ReLU", 4.0), ("GELU", 4.0), ("tanh", 8.0))
    for kernel in ("NNGP", "NTK")
}
_RMSE_RATIO, _NLPD_DIFFERENCE = 1.15, 0.1
_SUMMARY = ("NNGP ReLU ARD", "NNGP GELU ARD", "NNGP tanh ARD", CHOSEN, BOTORCH)

Record = dict[str, Any]


def with_chosen(records: Iterable[Record]) -> list[Record]:
    """The records and, for each split, that of the network of largest evidence."""
    found = list(records)
    splits: dict[tuple[str, int, int], list[Record]] = {}
    for record in found:
        if record["model"] in NETWORKS:
            splits.setdefault((record["set"], record["rows"], record["split"]), []).append(record)
    for of_split in splits.values():
        fine = [r for r in of_split if r["failure"] is None and math.isfinite(r["evidence"])]
        if len(of_split) > 1 and fine:
            best = max(fine, key=lambda r: r["evidence"])
            # choosing needs all fits
            seconds = sum(r["seconds"] for r in of_split)
            found.append(best | {"model": CHOSEN, "seconds": seconds, "was": best["model"]})
    return found


def cells(records: Iterable[Record]) -> dict[tuple[str, int], dict[str, dict[str, Any]]]:
    """Means and standard errors of each model on each set, beside `SingleTaskGP`.

    Ratios and differences are of means over the splits on which both have succeeded.
    """
    grouped: dict[tuple[str, int], dict[str, dict[int, Record]]] = {}
    for record in with_chosen(records):
        of_set = grouped.setdefault((record["set"], record["rows"]), {})
        of_set.setdefault(record["model"], {})[record["split"]] = record
    return {
        size: {
            model: _cell(of_set[model], of_set.get(BOTORCH, {}))
            for model in (*COMPETITORS, CHOSEN)
            if model in of_set
        }
        for size, of_set in sorted(grouped.items())
    }


def _cell(runs: dict[int, Record], botorch: dict[int, Record]) -> dict[str, Any]:
    fine = {number: run for number, run in runs.items() if run["failure"] is None}
    cell: dict[str, Any] = {
        "splits": len(runs),
        "failures": [run["failure"] for run in runs.values() if run["failure"] is not None],
    }
    if fine:
        for key in ("rmse", "nlpd", "coverage", "seconds"):
            found = paired(np.array([run[key] for run in fine.values()]))
            cell[key], cell[f"{key}_error"] = found["mean"], found["standard_error"]
    both = [n for n in fine if n in botorch and botorch[n]["failure"] is None]
    if both:
        own = {k: np.array([fine[n][k] for n in both]) for k in ("rmse", "nlpd", "seconds")}
        other = {k: np.array([botorch[n][k] for n in both]) for k in own}
        difference = paired(own["nlpd"] - other["nlpd"])
        cell["rmse_ratio"] = float(own["rmse"].mean() / other["rmse"].mean())
        cell["time_ratio"] = float(own["seconds"].mean() / other["seconds"].mean())
        cell["nlpd_difference"] = difference["mean"]
        cell["nlpd_difference_error"] = difference["standard_error"]
    return cell


def mean_ranks(found: dict[tuple[str, int], dict[str, dict[str, Any]]]) -> dict[str, float]:
    """Rank in mean NLPD, 1 for the best, averaged over the sets; of models that are on all."""
    every = [
        model
        for model in (*COMPETITORS, CHOSEN)
        if all("nlpd" in of_set.get(model, {}) for of_set in found.values())
    ]
    if not every:
        return {}
    scores = {
        f"{name}-{rows}": {model: of_set[model]["nlpd"] for model in every}
        for (name, rows), of_set in found.items()
    }
    return {model: of["mean"] for model, of in ranks(scores).items()}


def goals(found: dict[tuple[str, int], dict[str, dict[str, Any]]]) -> list[str]:
    """Each goal: how often it is met, and by name where it is not."""
    accuracy, speed, failed = [], [], []
    for (name, rows), of_set in found.items():
        for model, cell in of_set.items():
            where = f"{model} on {name}-{rows}"
            if cell["failures"] and model in NETWORKS:
                failed.append(f"{where}: {len(cell['failures'])}, {cell['failures'][0]}")
            if model not in _GOALS or "rmse_ratio" not in cell:
                continue
            ratio, difference = cell["rmse_ratio"], cell["nlpd_difference"]
            missed = ratio > _RMSE_RATIO or difference > _NLPD_DIFFERENCE
            told = f"{where}: RMSE x {ratio:.2f}, NLPD {difference:+.2f}"
            accuracy.append(told if missed else "")
            slow = cell["time_ratio"] > _GOALS[model]
            speed.append(f"{where}: {cell['time_ratio']:.1f} times" if slow else "")
    ranked = mean_ranks(found)
    lines = [
        "no failure: " + ("met" if not failed else f"{len(failed)} missed"),
        *(f"  {text}" for text in failed),
        *_goal(f"RMSE x {_RMSE_RATIO} and NLPD + {_NLPD_DIFFERENCE} of {BOTORCH}", accuracy),
        *_goal("processor time of a fit, 4 times (closed forms) and 8 times (tanh)", speed),
    ]
    if CHOSEN in ranked and BOTORCH in ranked:
        verdict = "met" if ranked[CHOSEN] < ranked[BOTORCH] else "missed"
        lines.append(
            f"mean NLPD rank of {CHOSEN} before {BOTORCH}: {verdict}, "
            f"{ranked[CHOSEN]:.1f} and {ranked[BOTORCH]:.1f} of {len(ranked)}"
        )
    return lines


def _goal(what: str, told: list[str]) -> list[str]:
    missed = [text for text in told if text]
    return [
        f"{what}: met {len(told) - len(missed)} of {len(told)}",
        *(f"  {text}" for text in missed),
    ]


def relevance(records: Iterable[Record]) -> list[str]:
    """Networks without length scales of the inputs beside the same with them, as Markdown.

    Means over the splits of a set, and over sets; ratios of RMSE and time as geometric means. The
    last but one column is of what has the larger evidence of the two on each split.
    """
    runs = {
        (r["set"], r["rows"], r["split"], r["model"]): r for r in records if r["failure"] is None
    }
    lines = []
    for model in (name for name in NETWORKS if f"{name} ARD" in NETWORKS):
        of_sets: dict[tuple[str, int], list[tuple[float, ...]]] = {}
        for (name, rows, number, which), run in runs.items():
            other = runs.get((name, rows, number, f"{model} ARD"))
            if which == model and other is not None:
                rmse, time = (math.log(run[key] / other[key]) for key in ("rmse", "seconds"))
                nlpd = run["nlpd"] - other["nlpd"]
                chosen = nlpd if run["evidence"] > other["evidence"] else 0.0
                of_sets.setdefault((name, rows), []).append((rmse, time, nlpd, chosen))
        if not of_sets:
            continue
        means = {size: np.mean(found, 0) for size, found in of_sets.items()}
        mean_rmse, mean_time, mean_nlpd, mean_chosen = np.mean(list(means.values()), 0)
        better = [f"{name}-{rows}" for (name, rows), mean in means.items() if mean[2] < 0]
        lines.append(
            f"| {model} | {math.exp(mean_rmse):.2f} | {mean_nlpd:+.2f} "
            f"| {math.exp(mean_time):.2f} | {mean_chosen:+.3f} | {', '.join(better)} |"
        )
    head = (
        "| without length scales | RMSE / with | NLPD less with | time / with "
        "| chosen by evidence | better without |"
    )
    return [head, "|---|---|---|---|---|---|", *lines] if lines else []


def report(records: Iterable[Record]) -> str:
    """Tables of all sets, ranks, a summary of few lines and the goals."""
    every = [r for r in records if "set" in r]
    found = cells(every)
    if not found:
        return "no fits yet"
    lines = []
    for (name, rows), of_set in found.items():
        splits = max(cell["splits"] for cell in of_set.values())
        lines += [f"\n{name}, {rows} rows, {splits} splits", _ROW.format(*_HEAD)]
        lines += [_ROW.format(model, *_columns(cell)) for model, cell in of_set.items()]
    ranked = mean_ranks(found)
    if ranked:
        lines.append("\nmean rank in NLPD, of models that are on all of these sets")
        lines += [f"  {ranked[m]:5.2f}  {m}" for m in sorted(ranked, key=lambda m: ranked[m])]
    parts = (summary(found), relevance(every), goals(found))
    return "\n".join([*lines, *(line for part in parts for line in ("", *part))])


_HEAD = ("", "RMSE", "x", "NLPD", "-", "coverage", "seconds", "x", "failures")
_ROW = "  {:<24}{:>20}{:>7}{:>17}{:>16}{:>10}{:>9}{:>8}{:>10}"


def _columns(cell: dict[str, Any]) -> list[str]:
    failures = f"{len(cell['failures'])}" if cell["failures"] else ""
    if "rmse" not in cell:
        return [*[""] * 7, failures]
    return [
        _number(cell["rmse"], cell["rmse_error"], ".3g"),
        _number(cell.get("rmse_ratio"), None, ".2f"),
        _number(cell["nlpd"], cell["nlpd_error"], ".2f"),
        _number(cell.get("nlpd_difference"), cell.get("nlpd_difference_error"), "+.2f"),
        f"{cell['coverage']:.2f}",
        f"{cell['seconds']:.1f}",
        _number(cell.get("time_ratio"), None, ".1f"),
        failures,
    ]


def _number(value: float | None, error: float | None, style: str) -> str:
    if value is None:
        return ""
    told = f"{value:{style}}"
    return told if error is None else f"{told} ± {error:{style.lstrip('+')}}"


def summary(found: dict[tuple[str, int], dict[str, dict[str, Any]]]) -> list[str]:
    """A few models over all sets, as Markdown."""
    ranked = mean_ranks(found)
    lines = [
        f"| {len(found)} sets | RMSE / {BOTORCH}'s | NLPD less its | worst set | mean NLPD rank "
        "| time of a fit | failures |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in _SUMMARY:
        of_sets = {
            f"{name}-{rows}": of_set[model]
            for (name, rows), of_set in found.items()
            if model in of_set
        }
        both = {name: cell for name, cell in of_sets.items() if "rmse_ratio" in cell}
        if not both:
            continue
        ratio = math.exp(float(np.mean([math.log(c["rmse_ratio"]) for c in both.values()])))
        time = math.exp(float(np.mean([math.log(c["time_ratio"]) for c in both.values()])))
        difference = float(np.mean([c["nlpd_difference"] for c in both.values()]))
        worst = max(both, key=lambda name: both[name]["nlpd_difference"])
        failures = sum(len(cell["failures"]) for cell in of_sets.values())
        rank = f"{ranked[model]:.1f} of {len(ranked)}" if model in ranked else ""
        lines.append(
            f"| {model} | {ratio:.2f} | {difference:+.2f} "
            f"| {worst}, {both[worst]['nlpd_difference']:+.2f} | {rank} "
            f"| x {time:.1f} | {failures} |"
        )
    return lines
