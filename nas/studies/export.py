"""A network out of a study: Python code that builds it, and its weights where they were kept."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from nas.architectures import Architecture, Node
from nas.architectures.operations import OPERATIONS
from nas.studies.keeping import kept_of
from nas.trials import architecture_of
from priors.files import write_safetensors_atomically

__all__ = ["architecture_code", "export"]

CODE, WEIGHTS = "network.py", "weights.safetensors"

_HEAD = '''"""The network of trial {number} of the study {study}: {values}.

    from network import build

    network = build()

Made by nas.export.{note}
"""

{imports}

HYPERPARAMETERS = {hyperparameters}

ARCHITECTURE = {architecture}


def build():
    """{summary}"""
{body}
'''
_TRAINED = """    network = ARCHITECTURE.build()
    network.load_state_dict(load_file(Path(__file__).with_name("weights.safetensors")))
    return network.eval()"""
_UNTRAINED = "    return ARCHITECTURE.build()"


def export(
    study: optuna.Study,
    folder: str | Path,
    *,
    trial: int | None = None,
    kept: str | Path | None = None,
) -> Path:
    """Write a network of a study as code and weights.

    `network.py` holds the architecture, the hyperparameters and a function `build()`;
    `weights.safetensors` its `state_dict`, where the objective called `nas.keep_predictions`. The
    modules that register operations of your own are imported by `network.py`, so they must be on
    its path.

    Args:
        study: Its study.
        folder: Where the files go; it is made.
        trial: Number of a complete trial; None takes the best.
        kept: Folder that was given to `keep_predictions`, if one was.

    Returns:
        The path of `network.py`.

    Raises:
        ValueError: no such complete trial, none that is best of all objectives, or one without an
            architecture.
        FileNotFoundError: the trial kept weights and the file is gone.
        OSError: the folder cannot be written.
    """
    chosen = _chosen(study, trial)
    architecture = architecture_of(chosen)
    if architecture is None:
        raise ValueError(
            f"Trial {chosen.number} has no architecture; its objective did not call nas.suggest."
        )
    weights = kept_of(study, chosen, folder=kept)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    if weights is not None:
        write_safetensors_atomically(
            place / WEIGHTS,
            weights.weights,
            kind="state_dict",
            description={"study": study.study_name, "trial": chosen.number},
        )
    path = place / CODE
    path.write_text(_code(study, chosen, architecture, weights is not None), encoding="utf-8")
    return path


def architecture_code(architecture: Architecture) -> str:
    """A Python expression of the architecture, in terms of `Architecture` and `Node`."""
    return _expression(architecture, "")


def _expression(architecture: Architecture, indent: str) -> str:
    lines = [f"{indent}        {_node(node, indent)},\n" for node in architecture.nodes]
    return f"Architecture(\n{indent}    (\n{''.join(lines)}{indent}    )\n{indent})"


def _node(node: Node, indent: str) -> str:
    if node.body is None:
        return repr(node)
    parts = [repr(node.operation), *map(str, node.inputs)]
    parts += [f"{name}={value!r}" for name, value in node.arguments]
    body = _expression(node.body, f"{indent}        ")
    return f"Node.of({', '.join(parts)}, body={body})"


def _chosen(study: optuna.Study, number: int | None) -> FrozenTrial:
    complete = {
        t.number: t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    }
    if number is not None:
        if number not in complete:
            raise ValueError(f"The study {study.study_name!r} has no complete trial {number}.")
        return complete[number]
    if not complete:
        raise ValueError(f"The study {study.study_name!r} has no complete trial yet.")
    if len(study.directions) > 1:
        front = [t.number for t in study.best_trials]
        raise ValueError(
            f"The study {study.study_name!r} has several objectives and so no best trial; choose "
            f"one of those on the Pareto front: {front}."
        )
    return study.best_trial


def _code(
    study: optuna.Study, trial: FrozenTrial, architecture: Architecture, trained: bool
) -> str:
    imports = ["from nas import Architecture, Node"]
    if trained:
        imports = ["from pathlib import Path", "", "from safetensors.torch import load_file", ""]
        imports.append("from nas import Architecture, Node")
    assert trial.values is not None
    imports += _registrations(architecture)
    summary = "The trained network" if trained else "The network with fresh weights"
    return _HEAD.format(
        number=trial.number,
        study=ascii(study.study_name).replace("\\", "/").replace('"', "'"),
        values=", ".join(f"{value:.6g}" for value in trial.values),
        note="" if trained else " No weights were kept.",
        imports="\n".join(imports),
        hyperparameters=repr(dict(sorted(trial.params.items()))),
        architecture=architecture_code(architecture),
        summary=f"{summary}, from {_shape(architecture.input_shape)} to "
        f"{_shape(architecture.output_shape)}.",
        body=_TRAINED if trained else _UNTRAINED,
    )


def _registrations(architecture: Architecture) -> list[str]:
    """Lines that import the modules in which operations of the user's own are registered."""
    own: dict[str, list[str]] = {}
    for name in architecture.operation_counts():
        module = OPERATIONS[name].build.__module__
        if module.partition(".")[0] != "nas":
            own.setdefault(module, []).append(name)
    lines = []
    for module, names in sorted(own.items()):
        told = f"registers {', '.join(map(repr, sorted(names)))}"
        if module == "__main__":
            lines.append(f"# The script that {told} (nas.register_operation) must have run.")
        else:
            lines.append(f"import {module}  # noqa: F401  # {told}")
    return ["", *lines] if lines else []


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(('n', *map(str, shape)))}]"
