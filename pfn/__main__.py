"""Command line: `python -m pfn train | certify | predict | show`.

train NAME|MODULE:PRIOR      a shipped network's recipe, or a task prior of your own, from scratch
certify NAME|FILE            measure a network on its recipe's prior, or on MODULE:PRIOR
predict DATA.csv --target Y  rows with an empty target are predicted from the others; text columns
                             are categories, a target of text is predicted as classes
show NAME|FILE               how a network was trained, and its certificate
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pfn.certification import certify
from pfn.checkpoints.recipes import RECIPES, Recipe
from pfn.predict import predict_file
from pfn.prior_fitted_network import load
from pfn.rates import PROBED, probe
from pfn.training import TrainingConfig, train
from priors.files import read_safetensors
from priors.objects import load_object
from priors.tasks.task import TaskPrior


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pfn", description="Prior-data fitted networks")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train", help="train a network")
    command.add_argument(
        "prior", help=f"one of {', '.join(RECIPES)}; or module:prior, file.py:prior"
    )
    limit = command.add_mutually_exclusive_group()
    limit.add_argument("--hours", type=float, help="time for training; 2 if not given")
    limit.add_argument("--minutes", type=float, help="time for training")
    command.add_argument("--out", type=Path, help="the network; default: runs/NAME.safetensors")
    command.add_argument("--resume", action="store_true", help="continue an interrupted training")
    command.add_argument("--initial", help="start from a trained network, by name or file")
    command.add_argument("--config", type=Path, help="JSON file that changes TrainingConfig")
    command.add_argument("--device", help="such as cuda; the GPU when there is one")
    command.add_argument(
        "--probe",
        action=argparse.BooleanOptionalAction,
        help="choose batch and precision by a short probe; default on a GPU, unless --config "
        "has a batch",
    )
    command.add_argument(
        "--certificate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the network after the training",
    )
    command.add_argument(
        "--state", type=Path, help="folder of state and log; default: that of --out"
    )
    command.add_argument("--save-every", type=float, default=300.0, help="seconds between files")
    command.add_argument("--seed", type=int)
    command = commands.add_parser("certify", help="measure the gap to the posterior")
    command.add_argument("network", help="shipped name or file")
    command.add_argument(
        "--prior", help="recipe, module:prior or file.py:prior; default: the network's own recipe"
    )
    command.add_argument("--out", type=Path, help="write the network with its certificate here")
    command.add_argument("--tasks", type=int, help="number of tasks")
    command.add_argument("--context", type=int, nargs="+", help="numbers of context rows")
    command.add_argument(
        "--reference",
        help="module:function or file.py:function, from a task to the exact posterior of its "
        "queries; default: the oracle of the prior",
    )
    command = commands.add_parser("predict", help="predict the rows whose target is empty")
    command.add_argument("data", type=Path, help="CSV file with a header; numbers or text")
    command.add_argument("--target", required=True, help="name of the target column")
    command.add_argument(
        "--network", help="shipped name or file; regression or classification, as the target is"
    )
    command.add_argument(
        "--members", type=int, default=8, help="number of ensemble members; 1 is fastest"
    )
    command.add_argument("--out", type=Path, help="CSV file of the predictions")
    command = commands.add_parser("show", help="how a network was trained")
    command.add_argument("network")
    options = parser.parse_args(arguments)
    try:
        match options.command:
            case "train":
                _train(options)
            case "certify":
                _certify(options)
            case "predict":
                _predict(options)
            case "show":
                print(load(options.network))
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _recipe(name: str, *, gpu: bool = False) -> Recipe:
    if name in RECIPES:
        return RECIPES[name](gpu=gpu)
    try:
        prior = load_object(name)
    except ValueError as error:
        raise ValueError(
            f"{name!r} is neither one of {', '.join(RECIPES)} nor a prior over tasks of yours, "
            f"given as module:prior or path/to/file.py:prior. {error}"
        ) from error
    if not isinstance(prior, TaskPrior):
        raise ValueError(f"{name} is a {type(prior).__name__}, not a task prior.")
    return Recipe(prior, TrainingConfig(), certified=_sizes(prior), reference="own")


def _sizes(prior: TaskPrior) -> dict[str, Any]:
    """What a certificate can measure on the tasks of a prior, as far as some of them show."""
    generator = torch.Generator().manual_seed(0)
    rows = max(prior.sample(1, generator=generator).X.shape[1] for _ in range(16))
    queries = min(16, max(1, rows // 2))
    return {
        "context_sizes": tuple(n for n in (0, 5, 20, 80) if n + queries <= rows),
        "num_queries": queries,
    }


def _beside(out: Path, suffix: str) -> Path:
    """Another file of the same training."""
    stem = out.name.removesuffix(".safetensors")
    return out.with_name(stem + suffix)


def _train(options: argparse.Namespace) -> None:
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    gpu = device.type == "cuda"
    if gpu and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device; omit the option.")
    recipe = _recipe(options.prior, gpu=gpu)
    name = Path(options.prior).name.replace(".py:", "_").replace(":", "_")
    out = options.out or Path("runs") / f"{name}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out if options.state is None else options.state / out.name
    beside.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = _beside(beside, ".training")
    initial = None if options.initial is None else load(options.initial)
    changes = {} if options.config is None else json.loads(options.config.read_text())
    config = _configuration(options, recipe.config, changes)
    if options.resume and checkpoint.exists():
        config = _as_begun(config, checkpoint)
    elif options.probe or (options.probe is None and gpu and "batch" not in changes):
        found = probe(recipe.prior, config, device=device, initial=initial)
        print(found, file=sys.stderr)
        config = found.config
    first = not int(os.environ.get("RANK", "0"))  # of the processes of torchrun, all alike
    pfn = train(
        recipe.prior,
        config=config,
        device=device,
        checkpoint=checkpoint,
        resume=options.resume,
        log=_beside(beside, ".jsonl"),
        initial=initial,
        held_out_prior=recipe.held_out_prior or _recipe(options.prior).prior,
        snapshot=out if first else None,
        metadata={"command": _command(options, gpu)},
    )
    if not first or not options.certificate:
        return
    measured = recipe.certificate(pfn)
    pfn.certificate = measured
    pfn.save(out)
    print(pfn)


def _configuration(
    options: argparse.Namespace, config: TrainingConfig, changes: Any
) -> TrainingConfig:
    """That of the recipe with what the options and their file change."""
    hours = 2.0 if options.hours is None else options.hours
    seconds = hours * 3600 if options.minutes is None else options.minutes * 60
    config = replace(config, time_limit=seconds, checkpoint_every=options.save_every)
    if options.seed is not None:
        config = replace(config, seed=options.seed)
    if options.config is None:
        return config
    merged = _merged(config.to_json(), changes, str(options.config))
    try:
        return TrainingConfig.from_json(merged)
    except TypeError as error:  # such as text where a number belongs
        raise ValueError(f"{options.config}: {error}.") from error


def _as_begun(config: TrainingConfig, checkpoint: Path) -> TrainingConfig:
    """With the settings that a probe chose when the training began."""
    _, description = read_safetensors(checkpoint, kind="PFN training")
    begun = TrainingConfig.from_json(description["config"])
    return replace(config, **{name: getattr(begun, name) for name in PROBED})


def _command(options: argparse.Namespace, gpu: bool) -> str:
    """What was typed, without folders of this machine."""
    words = [f"python -m pfn train {options.prior}"]
    if options.minutes is not None:
        words.append(f"--minutes {options.minutes:g}")
    else:
        words.append(f"--hours {2.0 if options.hours is None else options.hours:g}")
    if gpu:
        words.append("--device cuda")
    if options.seed is not None:
        words.append(f"--seed {options.seed}")
    if options.initial is not None:
        words.append(f"--initial {Path(options.initial).name}")
    if options.config is not None:
        words.append(f"--config {options.config.name}")  # whose values are in the metadata
    return " ".join(words)


def _merged(known: dict[str, Any], changes: Any, where: str) -> dict[str, Any]:
    """`known` with some of its values changed, those of dicts within it one by one."""
    if not isinstance(changes, dict):
        raise ValueError(f"{where} must be a JSON object, got {changes!r:.60}.")
    for key in changes:
        if key not in known:
            raise ValueError(f"{where} has {key!r}; known are {', '.join(known)}.")
    merged = {
        key: _merged(known[key], value, f"{key} of {where}")
        if isinstance(known[key], dict)
        else value
        for key, value in changes.items()
    }
    return {**known, **merged}


def _certify(options: argparse.Namespace) -> None:
    pfn = load(options.network)
    name = options.prior or options.network
    if name not in RECIPES and options.prior is None:
        words = pfn.metadata.get("command", "").split()
        own = words[words.index("train") + 1 :][:1] if "train" in words else []
        name = own[0] if own and own[0] in RECIPES else name
    recipe = _recipe(name)
    given: dict[str, Any] = {"num_tasks": options.tasks, "context_sizes": options.context}
    changes = {name: value for name, value in given.items() if value is not None}
    if options.reference is not None:
        changes |= {"reference": load_object(options.reference), "reference_is": "exact"}
    if options.prior is not None and options.prior not in RECIPES:
        measured = certify(pfn, recipe.prior, **{**recipe.certified, **changes})
    else:
        measured = recipe.certificate(pfn, **changes)
    print(measured)
    if options.out is not None:
        pfn.certificate = measured
        pfn.save(options.out)


def _predict(options: argparse.Namespace) -> None:
    found = predict_file(
        options.data, options.target, network=options.network, members=options.members
    )
    if options.out is None:
        csv.writer(sys.stdout, lineterminator="\n").writerows(found)
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(found)
    partial = options.out.with_name(options.out.name + ".partial")
    partial.write_text(text.getvalue(), encoding="utf-8")
    partial.replace(options.out)


if __name__ == "__main__":
    sys.exit(main())
