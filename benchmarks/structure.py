"""Is the house in order: which room imports which, how large are its parts, what do imports cost?

A room is a folder or a file directly in a package; its inside is not looked at. An arrow is an
import of one room by another, those inside functions included; not those for type checkers alone,
nor those of names from a package as a whole.
Floors count up from the rooms that import no other; a circle is rooms that import each other in a
loop, and its arrows are those that run back up. Then files and classes by lines, and the processor
seconds of imports in fresh processes beside those of BoTorch and GPyTorch, medians.

    python -m benchmarks structure
    python -m benchmarks structure --files --seconds 0   # arrows between files; no imports timed
"""

from __future__ import annotations

import argparse
import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("priors", "bayes", "pfn", "nas")
TIMED = {
    "gpytorch": "import gpytorch",
    "botorch": "import botorch",
    "priors": "import priors",
    "NNGPKernel": "from priors import NNGPKernel",
    "bayes": "import bayes",
    "pfn": "import pfn",
    "nas": "import nas",
}


def modules() -> dict[str, Path]:
    """Name and file of every module of the packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = path
    return found


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All import statements but those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from imports(other)
        elif isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        else:
            yield from imports(child)


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of ours that a file imports."""
    found = set()
    for statement in imports(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        else:
            base = statement.module or ""
            names = [f"{base}.{alias.name}" for alias in statement.names]
            names = [name if name in known else base for name in names]
        found |= {name for name in names if name in known}
    return found


def graph(known: dict[str, Path], *, rooms: bool) -> networkx.DiGraph:
    """Arrows between rooms, or between files."""

    def place(name: str) -> str:
        return ".".join(name.split(".")[:2]) if rooms else name

    def is_face(name: str) -> bool:  # a package only hands names on
        return known[name].name == "__init__.py" and "." not in name

    made = networkx.DiGraph()
    for name, path in known.items():
        if is_face(name):
            continue
        made.add_node(place(name))
        for other in imported(path, known):
            if not is_face(other) and place(other) != place(name):
                made.add_edge(place(name), place(other))
    return made


def floors(arrows: networkx.DiGraph) -> dict[str, int]:
    """Floor of each room, 1 at the bottom; rooms of a circle are on one floor."""
    groups = networkx.condensation(arrows)
    height: dict[int, int] = {}
    for group in reversed(list(networkx.topological_sort(groups))):
        height[group] = 1 + max((height[below] for below in groups.successors(group)), default=0)
    return {room: height[group] for room, group in groups.graph["mapping"].items()}


def describe_graph(arrows: networkx.DiGraph, what: str) -> list[str]:
    """Counts, circles, and floors from the top."""
    circles = [sorted(c) for c in networkx.strongly_connected_components(arrows) if len(c) > 1]
    inside = sum(arrows.subgraph(circle).number_of_edges() for circle in circles)
    height = floors(arrows)
    lines = [
        f"{len(arrows)} {what} on {max(height.values())} floors, {arrows.number_of_edges()} arrows,"
        f" {inside} of them in {len(circles)} circles"
    ]
    lines += [f"  circle: {', '.join(circle)}" for circle in circles]
    for floor in range(max(height.values()), 0, -1):
        rooms = sorted(room for room in arrows if height[room] == floor)
        lines.append(f"  {floor:2d}  {', '.join(rooms)}")
    return lines


def sizes(known: dict[str, Path], count: int) -> list[str]:
    """The longest files and classes, and how often types are left to trust."""
    files, classes, ignored = [], [], dict.fromkeys(PACKAGES, 0)
    for name, path in known.items():
        text = path.read_text()
        files.append((text.count("\n"), name))
        ignored[name.split(".")[0]] += text.count("type: ignore")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                methods = sum(isinstance(part, ast.FunctionDef) for part in node.body)
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                classes.append((lines, methods, f"{name}.{node.name}"))
    told = [f"{len(files)} files, {sum(n for n, _ in files)} lines; the longest:"]
    told += [f"  {lines:5d}  {name}" for lines, name in sorted(files, reverse=True)[:count]]
    told.append(f"{len(classes)} classes; the longest:")
    told += [
        f"  {n:5d} lines, {m:2d} methods  {c}" for n, m, c in sorted(classes)[: -count - 1 : -1]
    ]
    told.append(f"type: ignore: {', '.join(f'{k} {v}' for k, v in ignored.items())}")
    directly = sum(
        name.count(".") == 1 and path.name != "__init__.py"
        for name, path in known.items()
        if name.startswith("priors.")
    )
    told.append(f"files directly in priors, beside __init__: {directly}")
    return told


def seconds(statement: str, repeats: int) -> float:
    """Median processor seconds of a fresh process with one statement."""
    text = f"import resource\n{statement}\nu = resource.getrusage(resource.RUSAGE_SELF)\n"
    text += "print(u.ru_utime + u.ru_stime)"
    command = [sys.executable, "-W", "ignore", "-c", text]
    times = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        times.append(float(done.stdout.splitlines()[-1]))
    return statistics.median(times)


def main(argv: list[str]) -> int:
    """Print all of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks structure", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--files", action="store_true", help="arrows between files too")
    parser.add_argument("--longest", type=int, default=10, help="files and classes to list")
    parser.add_argument("--seconds", type=int, default=5, help="repeats of each import; 0 for none")
    options = parser.parse_args(argv)
    known = modules()
    print("\n".join(describe_graph(graph(known, rooms=True), "rooms")))
    if options.files:
        print("\n".join(describe_graph(graph(known, rooms=False), "files")))
    print("\n".join(sizes(known, options.longest)))
    if options.seconds:
        found = {name: seconds(text, options.seconds) for name, text in TIMED.items()}
        for name, value in found.items():
            against = "gpytorch" if name in ("priors", "NNGPKernel") else "botorch"
            print(f"{TIMED[name]:32} {value:5.2f} s, {value / found[against]:.2f} of {against}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
