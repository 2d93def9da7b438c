"""Run the code blocks of a Markdown page as a reader would who pastes them one after another.

A page becomes one script with the page's line numbers, so that a traceback points into the page:
`python` blocks stand as they are, `sh` blocks are run by the shell, all else is blank. It runs in a
folder of its own, as `__main__` of a fresh process. Blocks of other languages (`console` for what
installs or takes long, `text` for output) are not run.

    python docs/execution.py                    # pages whose code changed, for the site
    python docs/execution.py docs/pages/guides/tables.md --anew
    python docs/execution.py --examples         # the guides as notebooks, into examples/guides/
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "pages"
EXAMPLES = ROOT / "examples" / "guides"
EXECUTED = ROOT / "docs" / "executed"
"""One folder a page: `output.json` and its figures; ignored by git."""

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_FIGURE = re.compile(r"savefig\(\s*[\"']([^\"']+)[\"']")
_END = "\x1e"  # printed after each block
_RUN = ("python", "sh")
_HEADER = re.compile(r"---\n.*?^---\n", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A code block that is run.

    Attributes:
        language: `python` or `sh`.
        code: Its text.
        line: Number of the line of its opening fence, from 1.
        end: Index of the first character after it in the page.
    """

    language: str
    code: str
    line: int
    end: int

    @property
    def figures(self) -> list[str]:
        """Files that it saves figures to."""
        return _FIGURE.findall(self.code)


class PageError(RuntimeError):
    """A block of a page failed."""


def pages() -> list[Path]:
    """README and the pages of the site that have code to run."""
    every = [ROOT / "README.md", *sorted(PAGES.rglob("*.md"))]
    return [page for page in every if blocks(page.read_text())]


def blocks(text: str) -> list[Block]:
    """Code blocks of a page, in order."""
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start()) + 1, found.end())
        for found in _FENCE.finditer(text)
        if found[1] in _RUN
    ]


def is_slow(text: str) -> bool:
    """Whether the page's header says that it takes minutes."""
    return re.match(r"---\n.*?^slow: true$.*?^---$", text, re.MULTILINE | re.DOTALL) is not None


def script(text: str) -> str:
    """The page as a program with the same line numbers."""
    lines = [""] * (text.count("\n") + 1)
    for block in blocks(text):
        code = block.code.splitlines()
        if block.language == "python":
            lines[block.line : block.line + len(code)] = code
        else:
            lines[block.line] = (
                f"__import__('subprocess').run({block.code!r}, shell=True, check=True)"
            )
        lines[block.line + len(code)] = f"print({_END!r}, flush=True)"
    return "\n".join(lines)


def notebook(page: Path) -> str:
    """The page as a script of cells (`# %%`), as Jupyter, VS Code and Spyder read it."""
    text = page.read_text()
    source = page.relative_to(ROOT).as_posix()
    cells = [
        f"# Made from {source} by `python docs/execution.py --examples`. Run it in its own folder."
    ]
    start = _HEADER.match(text).end() if _HEADER.match(text) else 0
    for block in blocks(text):
        opening = text.rindex("```" + block.language, start, block.end)
        cells += [_prose(text[start:opening]), _cell(block)]
        start = block.end
    return "\n\n".join(cell for cell in [*cells, _prose(text[start:])] if cell) + "\n"


def _prose(text: str) -> str:
    lines = text.strip().splitlines()
    return "\n".join(
        ["# %% [markdown]", *(f"# {line}".rstrip() for line in lines)] if lines else []
    )


def _cell(block: Block) -> str:
    code = block.code.strip("\n")
    if block.language == "sh":
        code = _SHELL.format(code)
    return f"# %%\n{code}"


_SHELL = '''import subprocess

subprocess.run(
    r"""
{}
""",
    shell=True,
    check=True,
)'''


def guides() -> dict[Path, Path]:
    """The notebook of every guide, and the page that it is made from."""
    found = [PAGES / "getting-started.md", *sorted((PAGES / "guides").glob("*.md"))]
    return {EXAMPLES / f"{page.stem.replace('-', '_')}.py": page for page in found}


def run(page: Path, folder: Path, *, timeout: float = 900.0) -> list[str]:
    """Run a page in an empty folder; returns what each block printed.

    Raises:
        PageError: A block failed or warned; the message holds the traceback, with the page's lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / f"{page.stem}.py"
    program.write_text(script(page.read_text()))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {
        **os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "COLUMNS": "100",
    }  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, program.name],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PageError(f"{page} did not end within {timeout:.0f} s.") from None
    where = page.relative_to(ROOT) if page.is_relative_to(ROOT) else page
    if done.returncode:
        raise PageError(f"{where} failed (lines are the page's):\n{done.stdout}{done.stderr}")
    if warned := [line for line in done.stderr.splitlines() if "Warning: " in line]:
        raise PageError(f"{where} warns:\n" + "\n".join(warned))
    return [output.strip("\n") for output in done.stdout.split(_END)[:-1]]


def executed(page: Path) -> Path:
    """The folder of a page's outputs and figures."""
    if page == ROOT / "README.md":
        return EXECUTED / "readme"
    return EXECUTED / page.relative_to(PAGES).with_suffix("")


def outputs(page: Path) -> list[str] | None:
    """What the blocks of a page printed, if it was run since they changed."""
    record = executed(page) / "output.json"
    if not record.exists():
        return None
    kept = json.loads(record.read_text())
    return kept["outputs"] if kept["page"] == _digest(page) else None


def _digest(page: Path) -> str:
    """Of the code alone: prose may change without another run."""
    code = [(block.language, block.code) for block in blocks(page.read_text())]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def execute(page: Path) -> None:
    """Run a page and keep its outputs and figures."""
    target = executed(page)
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        printed = run(page, Path(folder))
        target.mkdir(parents=True)
        for block in blocks(page.read_text()):
            for figure in block.figures:
                shutil.copy(Path(folder) / figure, target / figure)
    record = {"page": _digest(page), "outputs": printed}
    (target / "output.json").write_text(json.dumps(record, indent=1))


def main() -> int:
    """Run pages; returns the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="all, when none is given")
    parser.add_argument("--anew", action="store_true", help="also those that did not change")
    parser.add_argument("--examples", action="store_true", help="write the guides as notebooks")
    options = parser.parse_args()
    if options.examples:
        for example, page in guides().items():
            example.parent.mkdir(exist_ok=True)
            example.write_text(notebook(page))
        return 0
    failed = 0
    for page in [path.resolve() for path in options.pages] or pages():
        if outputs(page) is not None and not options.anew:
            continue
        print(page.relative_to(ROOT), flush=True)
        try:
            execute(page)
        except PageError as error:
            failed += 1
            print(error, file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
