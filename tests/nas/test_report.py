"""The report and the command line."""

import base64
import re

import optuna
import pytest
from matplotlib.figure import Figure

from nas import Section, architecture_of, search, write_report
from nas.__main__ import main
from nas.studies.plots import plot_hyperparameters, plot_progress, plot_sizes
from nas.testing import SyntheticObjective
from priors.objects import load_object

OBJECTIVE = SyntheticObjective()
SCRIPT = """
from nas.testing import SyntheticObjective
objective = SyntheticObjective()
hyperparameters = objective.hyperparameters
def broken(trial):
    raise RuntimeError("no <b>memory</b>")
number = 3
"""


@pytest.fixture(scope="module")
def study():
    def sometimes(trial):
        value = OBJECTIVE(trial)
        if trial.number == 2:
            raise RuntimeError("<script>alert(1)</script>")
        return float("inf") if trial.number == 4 else value

    return search(
        sometimes,
        OBJECTIVE.space,
        hyperparameters=OBJECTIVE.hyperparameters,
        num_trials=6,
        seed=0,
        show_progress=False,
    )


def test_page_is_self_contained_and_escaped(study, tmp_path):
    figure = Figure()
    figure.subplots().plot([0, 1])
    extra = Section(
        "Against <random>", text="a & b", columns=("who", "loss"), rows=[("x", 0.123456)],
        figures=[figure],
    )  # fmt: skip
    path = write_report(study, tmp_path / "new" / "report.html", extra_sections=[extra])
    page = path.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "Against &lt;random&gt;" in page
    assert "a &amp; b" in page
    assert "<td>0.1235</td>" in page
    assert "://" not in page
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    # progress, cost, best architecture, hyperparameters, sizes, timeline, extra
    assert len(images) == 7
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)
    assert str(architecture_of(study.best_trial)).splitlines()[0].replace("->", "→") in page
    assert page.count('<tr class="COMPLETE') == 5
    assert page.count('<tr class="FAIL') == 1
    assert page.count("best") >= 1
    assert f"Best trial: {study.best_trial.number}" in page
    headings = re.findall(r"<th[^>]*>([^<]*)</th>", page)
    assert headings.count("depth") == headings.count("weight layers") == 1
    assert study.best_trial.params["depth"] == study.best_trial.user_attrs["depth"] - 1
    rows = re.findall(r"<td[^>]*>(depth|weight layers)</td>\s*<td>([^<]*)</td>", page)
    assert dict(rows) == {
        "depth": str(study.best_trial.params["depth"]),
        "weight layers": str(study.best_trial.user_attrs["depth"]),
    }


def test_progress_draws_the_incumbent(study):
    ax = plot_progress(study).axes[0]
    values = [t.value for t in study.trials if t.value is not None]
    incumbent = next(line for line in ax.lines if line.get_label() == "best so far")
    assert incumbent.get_ydata().tolist() == [min(values[: n + 1]) for n in range(len(values))]
    failed = next(line for line in ax.lines if line.get_label() == "failed")
    assert failed.get_xdata().tolist() == [2]
    # four finite values, the infinite one at the edge, the best again
    assert [c.get_offsets().shape[0] for c in plot_sizes(study).axes[0].collections] == [4, 1, 1]


def test_a_study_without_trials_has_a_report(tmp_path):
    empty = optuna.create_study(study_name="empty")
    page = write_report(empty, tmp_path / "report.html").read_text()
    assert "Study empty" in page
    assert "No trials yet" in page
    assert "<img" not in page
    assert plot_hyperparameters(empty) is None
    assert plot_sizes(empty) is None


@pytest.fixture
def script(tmp_path, request):
    path = tmp_path / f"objective_{abs(hash(request.node.name))}.py"
    path.write_text(SCRIPT)
    return path


def command(script, storage, *more, objective="objective", trials=3):
    return [
        "search", "--objective", f"{script}:{objective}", "--space", "mlp", "--in-features", "64",
        "--out-features", "10", "--storage", str(storage), "--trials", str(trials), "--seed", "0",
        "--no-progress", *more,
    ]  # fmt: skip


def test_search_status_report(script, tmp_path, capsys):
    storage, out = tmp_path / "study.db", tmp_path / "report.html"
    assert main(command(script, storage, "--hyperparameters", f"{script}:hyperparameters")) == 0
    assert main(command(script, storage, objective="broken", trials=1)) == 1
    capsys.readouterr()
    assert main(["status", "--storage", str(storage)]) == 0
    printed = capsys.readouterr().out
    assert "complete   3" in printed
    assert "failed     1" in printed
    assert "last error trial 3: RuntimeError: no <b>memory</b>" in printed
    assert "learning_rate = " in printed
    assert "  activation = " in printed
    assert "input(64) -> linear(" in printed
    assert main(["report", "--storage", str(storage), "--out", str(out)]) == 0
    assert "no &lt;b&gt;memory" in out.read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--objective": "nowhere.py:objective"}, "no file nowhere.py"),
        ({"--objective": "no_such_module:f"}, "Cannot import 'no_such_module'"),
        ({"--objective": "nas"}, "must have the form package.module:name"),
        ({"--objective": "nas.spaces:nothing"}, "has no 'nothing'"),
        ({"--objective": "{script}:number"}, "is not callable"),
        ({"--space": "{script}:number"}, "int, not a nas.spaces.Space"),
        ({"--space": "cell", "--storage": "{folder}"}, "Cannot write the study storage"),
    ],
)
def test_bad_input_is_said_in_one_line(script, tmp_path, capsys, changes, message):
    arguments = command(script, tmp_path / "study.db")
    for option, value in changes.items():
        place = arguments.index(option) + 1
        arguments[place] = value.format(script=script, folder=tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("nas search: ")
    assert error.count("\n") == 1


def test_mlp_needs_its_sizes(script, tmp_path, capsys):
    arguments = command(script, tmp_path / "study.db")
    del arguments[arguments.index("--in-features") : arguments.index("--out-features")]
    assert main(arguments) == 1
    assert "needs --in-features" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["search"], ["search", "--trials", "0"], ["fly"], ["resume", "--timeout", "-1"]],
)
def test_wrong_usage_exits_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["search", "resume", "status", "report", "export"])
def test_help_says_what_every_option_is(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "(default: search)" in text
    options = re.findall(r"^  (--?\S.*)$((?:\n {10,}\S.*)*)", text, re.MULTILINE)
    assert len(options) >= 3
    for option, more in options:
        assert re.search(r"\S {2,}\S", option) or more, option


def test_status_of_what_is_not_there(script, tmp_path, capsys):
    assert main(["status", "--storage", str(tmp_path / "absent.db")]) == 1
    assert "no study storage" in capsys.readouterr().err
    assert not (tmp_path / "absent.db").exists()
    main(command(script, tmp_path / "study.db", trials=1))
    assert main(["report", "--storage", str(tmp_path / "study.db"), "--study", "b",
                 "--out", str(tmp_path / "r.html")]) == 1  # fmt: skip
    assert "has no study 'b'; it has ['search']" in capsys.readouterr().err


def test_interrupt_exits_with_130(script, tmp_path, capsys, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("nas.__main__.search", interrupted)
    assert main(command(script, tmp_path / "study.db")) == 130
    assert "resumes" in capsys.readouterr().err


def test_a_file_named_like_a_module_is_refused(tmp_path):
    (tmp_path / "optuna.py").write_text(SCRIPT)
    with pytest.raises(ValueError, match="same name as another module"):
        load_object(f"{tmp_path / 'optuna.py'}:objective")
