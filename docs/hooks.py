"""What the site shows beside the pages' own text: outputs, figures, the map, the reference.

Loaded by MkDocs (`hooks` in mkdocs.yml).
"""

from __future__ import annotations

import ast
import html
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from docs.execution import PAGES, blocks, executed, outputs  # noqa: E402

PACKAGES = ("priors", "bayes", "pfn", "nas")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_REFERENCE = re.compile(r"<!-- reference (\w[\w.]*) -->")


def on_files(files: Any, config: Any) -> Any:
    """Add the figures that pages made when they were run, and the changelog."""
    for page in sorted(PAGES.rglob("*.md")):
        folder = executed(page)
        for figure in sorted(folder.glob("*.png")):
            place = page.relative_to(PAGES).with_suffix("") / figure.name
            files.append(
                File.generated(config, f"figures/{place.as_posix()}", abs_src_path=str(figure))
            )
    files.append(
        File.generated(config, "changelog.md", content=(ROOT / "CHANGELOG.md").read_text())
    )
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put outputs and figures under their blocks; fill in the map and the reference."""
    source = Path(page.file.abs_src_path) if page.file.abs_src_path else None
    if source is not None and source.is_relative_to(PAGES):
        markdown = _with_outputs(markdown, source)
    if "<!-- map -->" in markdown:
        markdown = markdown.replace("<!-- map -->", "\n".join(_map()))
    return _REFERENCE.sub(lambda found: _reference(found[1]), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers know: no script, nothing from elsewhere."""

    def formula(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        return convert(html.unescape(found[2]), display=display)

    return _FORMULA.sub(formula, content)


def _with_outputs(markdown: str, source: Path) -> str:
    found = blocks(markdown)
    if not found:
        return markdown
    printed = outputs(source)
    if printed is None:
        raise PluginError(
            f"{source.name} changed since it was run; `make docs` runs pages before the build."
        )
    up = "../" * (len(source.relative_to(PAGES).parts) - 1)
    name = source.relative_to(PAGES).with_suffix("").as_posix()
    for block, output in reversed(list(zip(found, printed, strict=True))):
        added = f'\n\n```{{.text .output title="Output"}}\n{output}\n```' if output else ""
        added += "".join(f"\n\n![]({up}figures/{name}/{figure})" for figure in block.figures)
        markdown = markdown[: block.end] + added + markdown[block.end :]
    return markdown


def _first_sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.split("\n\n")[0].replace("\n", " ")


def _map() -> list[str]:
    """Folders and files with the first paragraphs of their docstrings."""
    lines = []
    for package in PACKAGES:
        lines += [f"\n## `{package}`\n", _first_sentence(ROOT / package / "__init__.py"), ""]
        rooms = sorted((ROOT / package).iterdir(), key=lambda room: (room.is_file(), room.name))
        for room in rooms:
            face = room / "__init__.py" if room.is_dir() else room
            if face.suffix == ".py" and face.exists() and room.name != "__init__.py":
                name = f"{room.name}/" if room.is_dir() else room.name
                lines.append(f"* `{name}`: {_first_sentence(face)}")
                for part in sorted(room.glob("*.py")) if room.is_dir() else ():
                    if part.name != "__init__.py":
                        lines.append(f"    * `{part.name}`: {_first_sentence(part)}")
    return lines


def _path(package: str, name: str) -> str:
    """Where a public name is; `nas.search` is a function, and would be found as its module."""
    hidden = (ROOT / package.replace(".", "/") / f"{name}.py").exists()
    return f"{package}.{name}.{name}" if hidden else f"{package}.{name}"


def _reference(package: str) -> str:
    """One entry for each public name of a package or module."""
    place = ROOT / package.replace(".", "/")
    face = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    tree = ast.parse(face.read_text())
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            names = [name for name in ast.literal_eval(statement.value) if name != "__version__"]
            return "\n\n".join(f"::: {_path(package, name)}" for name in names)
    raise PluginError(f"{package} has no __all__.")
