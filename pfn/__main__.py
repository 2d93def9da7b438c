"""Command line: `python -m pfn certify | predict | show`.

certify NAME_OR_FILE [--out FILE]   measure a network on the regression prior and store the result
predict DATA.csv --target COLUMN    rows with an empty target are predicted from the others
show NAME_OR_FILE                   how a network was trained, and its certificate
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import torch

from pfn.checkpoints.regression import certificate
from pfn.network import load


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pfn", description="Prior-data fitted networks")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("certify", help="measure the gap to the posterior")
    command.add_argument("network", help="shipped name or file")
    command.add_argument("--out", type=Path, help="write the network with its certificate here")
    command.add_argument("--tasks", type=int, default=960)
    command = commands.add_parser("predict", help="predict the rows whose target is empty")
    command.add_argument("data", type=Path, help="CSV file with a header; numbers only")
    command.add_argument("--target", required=True, help="name of the target column")
    command.add_argument("--network", default="regression")
    command = commands.add_parser("show", help="how a network was trained")
    command.add_argument("network")
    options = parser.parse_args(arguments)
    try:
        match options.command:
            case "certify":
                _certify(options.network, options.tasks, options.out)
            case "predict":
                _predict(options.data, options.target, options.network)
            case "show":
                pfn = load(options.network)
                known = {k: v for k, v in pfn.metadata.items() if k != "certificate"}
                print(json.dumps(known, indent=2))
                print(pfn.certificate or "no certificate")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _certify(network: str, num_tasks: int, out: Path | None) -> None:
    pfn = load(network)
    result = certificate(pfn, num_tasks=num_tasks)
    print(result)
    if out is not None:
        pfn.metadata["certificate"] = result.to_json()
        pfn.save(out)


def _predict(path: Path, target: str, network: str) -> None:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or target not in rows[0]:
        raise ValueError(f"{path} has no rows, or no column {target!r} in its header.")
    names = [name for name in rows[0] if name != target]
    try:
        X = torch.tensor([[float(row[name]) for name in names] for row in rows])
        given = [row[target].strip() != "" for row in rows]
        y = torch.tensor(
            [float(row[target]) for row, known in zip(rows, given, strict=True) if known]
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} must hold numbers only: {error}.") from error
    known = torch.tensor(given)
    if known.all() or not known.any():
        raise ValueError(f"some rows of {path} need a value in {target!r}, and some none.")
    posterior = load(network).condition(X[known], y).posterior(X[~known], observation_noise=True)
    low, high = posterior.quantile(torch.tensor([0.05, 0.95]))
    print("row,mean,std,5%,95%")
    columns = (posterior.mean, posterior.variance.sqrt(), low, high)
    for i, row in enumerate(torch.nonzero(~known)[:, 0].tolist()):
        print(",".join([str(row + 1), *(f"{float(column[i, 0]):.6g}" for column in columns)]))


if __name__ == "__main__":
    sys.exit(main())
