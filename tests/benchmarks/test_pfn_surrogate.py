"""Bayesian optimisation of test functions: the functions, the proposals, the summary."""

import json
import math

import numpy as np
import pytest
import scipy.optimize
import torch

from benchmarks.pfn import jobs, optimisation, surrogate
from pfn import PFN, ArchitectureConfig


def run(*regrets):
    return {"regrets": list(regrets), "seconds": [1.0, 3.0]}


@pytest.mark.parametrize("name", optimisation.FUNCTIONS)
def test_the_maximum_is_that_of_the_function(name):
    function, maximum = optimisation.problem(name)
    start = function.optimizers[0].double()
    found = scipy.optimize.minimize(
        lambda x: -float(function(torch.tensor(x))), start.numpy(), method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-14},
    )  # fmt: skip
    assert -found.fun == pytest.approx(maximum, abs=1e-7)
    assert -found.fun <= maximum + 1e-9
    assert (function.bounds[0] < start).all()
    assert (function.bounds[1] > start).all()


def test_methods_share_their_initial_points_and_regret_falls():
    runs = [optimisation.optimise("branin", m, 3, 12, "", "") for m in ("sobol", "random")]
    first, second = (r["regrets"] for r in runs)
    assert first[: optimisation.INITIAL] == second[: optimisation.INITIAL]
    assert len(first) == len(second) == 12
    assert all(a >= b > 0 for a, b in zip(first, first[1:], strict=False))
    assert optimisation.optimise("branin", "random", 3, 12, "", "") == runs[1]


# A line search may end in rounding at the maximum, of which BoTorch warns; the proposal counts.
@pytest.mark.filterwarnings("ignore:Optimization failed in:RuntimeWarning")
@pytest.mark.parametrize("method", optimisation.MODELS[2:])
def test_the_proposal_maximises_the_acquisition_function(method):
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(12, 1, generator=generator, dtype=torch.float64)
    Y = -((X - 0.6) ** 2) + 0.1 * torch.sin(20 * X)
    model, values = optimisation.fitted(method, X, Y, "")
    torch.testing.assert_close(model.posterior(X).mean, values, atol=0.05, rtol=0)  # in its units
    proposed = optimisation.propose(model, X, values, seed=0)
    acquisition = optimisation.LogExpectedImprovement(model, best_f=values.max())
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None, None]
    with torch.no_grad():
        assert acquisition(proposed[:, None]) >= acquisition(grid).max() - 1e-3


def test_summary_by_hand():
    of_methods = {
        "network": [run(1.0, 0.1), run(1.0, 1e-9)],
        "SingleTaskGP": [run(1.0, 1.0), run(1.0, 1e-5)],
        **{m: [run(1.0, 1.0)] * 2 for m in ("network, plain", "GP, tail", "noise-free GP")},
        "sobol": [run(1.0, 1.0), run(1.0, 1.0)],
        "random": [run(1.0, 0.01), run(1.0, 1.0)],
    }
    found = surrogate.summarise({"f": of_methods, "g": of_methods})
    f = found["functions"]["f"]
    assert f["log10_regret"]["network"]["mean"] == pytest.approx(-3.5)  # -1 and the floor -6
    assert f["network_minus"]["SingleTaskGP"] == {
        "mean": pytest.approx(-1.0),
        "standard_error": pytest.approx(0.0),
        "wins": 2,
    }
    gap = f["network_minus"]["random"]  # +1 and -6
    assert (gap["mean"], gap["wins"]) == (pytest.approx(-2.5), 1)
    assert gap["standard_error"] == pytest.approx(7 / math.sqrt(2) / math.sqrt(2))
    # The same seeds on both functions: their mean has the error of one.
    overall = found["overall_network_minus"]["random"]
    assert overall["standard_error"] == pytest.approx(gap["standard_error"])
    assert f["seconds_per_proposal"]["network"] == 2.0
    np.testing.assert_allclose(surrogate.log_regrets([run(-1e-8, 100.0)]), [[-6.0, 2.0]])


@pytest.mark.slow
def test_the_benchmark_runs_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    architecture = ArchitectureConfig(max_features=10, embedding=16, layers=2, heads=2, bars=21)
    torch.manual_seed(0)
    PFN(architecture, torch.linspace(-2.5, 2.5, 21), targets="standardised").save(
        tmp_path / "bo.safetensors"
    )
    arguments = ["--quick", "--network", str(tmp_path / "bo.safetensors"), "--out", str(tmp_path)]
    arguments += ["--evaluations", "13"]
    assert surrogate.main(arguments) == 0
    record = json.loads((tmp_path / "pfn_surrogate_quick.json").read_text())
    assert len(record["runs"]["branin"]["network"]) == 2
    assert len(record["runs"]["branin"]["SingleTaskGP"][0]["regrets"]) == 13
    assert (tmp_path / "pfn_surrogate_quick.png").stat().st_size > 10_000
    first = capsys.readouterr().out
    assert surrogate.main([*arguments, "--processes", "2"]) == 0  # all is there already
    assert capsys.readouterr().out == first


def test_competitors_are_those_of_an_earlier_result(tmp_path):
    path = tmp_path / "earlier.json"
    runs = {m: [run(float(s), 0.1) for s in (3, 4, 5)] for m in optimisation.METHODS}
    record = {"evaluations": 2, "seeds": [3, 4, 5], "runs": {"branin": runs, "camel": runs}}
    path.write_text(json.dumps(record))
    found = surrogate.competitors(path, ["branin"], [5, 3], 2)
    assert list(found) == ["branin"]
    assert set(found["branin"]) == set(optimisation.METHODS) - set(optimisation.NETWORKS)
    assert [r["regrets"][0] for r in found["branin"]["random"]] == [5.0, 3.0]
    with pytest.raises(ValueError, match="2 evaluations, not 3"):
        surrogate.competitors(path, ["branin"], [3], 3)
    with pytest.raises(ValueError, match="6"):
        surrogate.competitors(path, ["branin"], [6], 2)
    with pytest.raises(KeyError):
        surrogate.competitors(path, ["levy4"], [3], 2)


def test_only_some_methods():
    of_methods = {"network": [run(1.0, 0.1)], "random": [run(1.0, 1.0)]}
    found = surrogate.summarise({"f": of_methods})
    assert set(found["overall_network_minus"]) == {"random"}
    assert found["overall_network_minus"]["random"]["mean"] == pytest.approx(-1.0)
    surrogate.report(found, 1, 2)
