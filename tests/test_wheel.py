"""The wheel, installed outside the checkout: all packages work and the checkpoints are found."""

import subprocess
import sys
import sysconfig
import textwrap
import venv

import pytest

USE = """
    import pathlib, sys, tempfile
    import torch
    from torch import nn
    import bayes, nas, pfn, priors

    checkout = pathlib.Path(sys.argv[1])
    for package in (bayes, nas, pfn, priors):
        assert not pathlib.Path(package.__file__).is_relative_to(checkout), package.__file__
        assert package.__version__
        assert (pathlib.Path(package.__file__).parent / "py.typed").exists()

    torch.manual_seed(0)
    X = torch.rand(12, 2, dtype=torch.float64)
    Y = X.sum(-1, keepdim=True)
    network = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    model = bayes.GaussianProcess(X, Y, priors.NNGPKernel(network, ard_num_dims=2)).fit()
    assert (model.posterior(X).mean - Y).abs().max() < 0.1

    for name in ("regression", "classification", "bo", "learning-curve"):
        assert pfn.load(name).certificate is not None
    assert pfn.load("bo").condition(X, Y).posterior(X).mean.shape == (12, 1)

    space = nas.spaces.MLPSpace(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            study = nas.search(
                lambda trial: float(nas.suggest(trial, space).num_parameters), space,
                num_trials=2, storage=f"{folder}/study.db", show_progress=False,
            )
    assert len(study.trials) == 4
"""


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(pytestconfig, tmp_path):
    def run(*command, **options):
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    wheels = tmp_path / "wheels"
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "-w",
        wheels,
        cwd=pytestconfig.rootpath,
    )
    (wheel,) = wheels.glob("wideprior-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", wheel)
    # What it depends on is taken from here. Entries of a .pth file do not have theirs read, so that
    # the editable installation of the checkout is not found.
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    run(python, "-W", "ignore", "-c", textwrap.dedent(USE), pytestconfig.rootpath, cwd=tmp_path)
    for name in ("wideprior-nas", "wideprior-pfn"):
        assert "usage" in run(tmp_path / "venv" / "bin" / name, "--help", cwd=tmp_path)
