"""Every code block of README and of the documentation runs, as it stands and in order."""

import re
from pathlib import Path

import pytest

from docs.execution import (
    EXAMPLES,
    PAGES,
    ROOT,
    PageError,
    blocks,
    guides,
    is_slow,
    notebook,
    pages,
    run,
    script,
)

SHELL = re.compile(r"^```(?:console|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def parameters():
    for page in pages():
        slow = [pytest.mark.slow] if is_slow(page.read_text()) else []
        yield pytest.param(page, marks=slow, id=page.relative_to(ROOT).as_posix())


@pytest.mark.parametrize("page", list(parameters()))
def test_the_blocks_of_a_page_run(page, tmp_path):
    printed = run(page, tmp_path)
    found = blocks(page.read_text())
    assert len(printed) == len(found)
    for block in found:
        assert all((tmp_path / figure).stat().st_size > 1000 for figure in block.figures)


def test_a_failing_block_is_told_with_the_line_of_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n```python\nx = 1\n```\n\n```sh\ntrue\n```\n\n```python\n\nx / 0\n```\n"
    )
    assert script(page.read_text()).splitlines()[12] == "x / 0"
    with pytest.raises(PageError, match=r"line 13[\s\S]*ZeroDivisionError"):
        run(page, tmp_path / "run")


def test_a_warning_in_a_block_is_a_failure(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nimport warnings\nwarnings.warn('this way')\n```\n")
    with pytest.raises(PageError, match="this way"):
        run(page, tmp_path / "run")


def test_examples_are_those_of_the_guides():
    made = {example: notebook(page) for example, page in guides().items()}
    assert set(EXAMPLES.glob("*.py")) == set(made)
    for example, text in made.items():
        assert example.read_text() == text, "run `python docs/execution.py --examples`"
        compile(text, example.name, "exec")
        assert text.count("# %%\n") == len(blocks(guides()[example].read_text()))


def test_every_target_of_make_that_is_named_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES.rglob("*.md")]:
        for block in SHELL.findall(page.read_text()):
            named = set(re.findall(r"^make ([\w-]+)", block, re.MULTILINE))
            assert named <= targets, (page, named - targets)


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES.rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", page.read_text()):
            if "://" not in link and link != "changelog.md":
                assert (page.parent / Path(link)).exists(), (page, link)
