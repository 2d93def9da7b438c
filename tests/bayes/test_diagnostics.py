import math

import matplotlib
import pytest
import torch
from botorch.models import SingleTaskGP
from botorch.models.transforms.outcome import Log
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import RBFKernel

from bayes.diagnostics import calibration, compare, plot_posterior, plot_predictions
from bayes.diagnostics.memory import peak_memory
from bayes.processes.gaussian_process import GaussianProcess
from bayes.processes.student_t_process import StudentTProcess
from priors.posteriors.gaussian import GaussianPosterior, as_predictive
from priors.posteriors.scores import score

matplotlib.use("Agg")


def normal(n=4000, std=1.0):
    mean = torch.zeros(n, dtype=torch.float64)
    return GaussianPosterior(MultivariateNormal(mean, std**2 * torch.eye(n, dtype=torch.float64)))


def targets(n=4000):
    return torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def splits(num=3):
    made = []
    for seed in range(num):
        generator = torch.Generator().manual_seed(seed)
        X = torch.rand(30, 1, dtype=torch.float64, generator=generator)
        noise = torch.randn(30, 1, dtype=torch.float64, generator=generator)
        Y = torch.sin(6 * X) + 0.1 * noise
        made.append((X[:20], Y[:20], X[20:], Y[20:]))
    return made


def test_calibration_of_a_true_a_narrow_and_a_wide_predictive():
    Y = targets(1500)
    good = calibration(normal(1500), Y)
    assert torch.allclose(good.pit, torch.special.ndtr(Y[:, 0]))
    error = (good.nominal * (1 - good.nominal) / 1500).sqrt()
    assert ((good.empirical - good.nominal).abs() < 4 * error).all()
    narrow, wide = calibration(normal(1500, 0.5), Y), calibration(normal(1500, 2.0), Y)
    # Coverage of N(0, 1) by the central interval of N(0, s^2) is erf(s erfinv(p)).
    for found, std in ((narrow, 0.5), (wide, 2.0)):
        truth = torch.erf(std * torch.erfinv(found.nominal))
        assert ((found.empirical - truth).abs() < 4 * (0.25 / 1500) ** 0.5).all()
    assert narrow.error > 5 * good.error
    assert wide.error > 5 * good.error
    with pytest.raises(ValueError, match="must agree"):
        calibration(normal(10), Y)


def test_compare_scores_everything_on_the_same_splits():
    fixed = GaussianProcess(*splits()[0][:2], RBFKernel())
    table = compare(
        {
            "GP": lambda X, Y: GaussianProcess(X, Y, RBFKernel()),
            "t process": lambda X, Y: StudentTProcess(X, Y, RBFKernel()),
            "BoTorch": SingleTaskGP,
            "fitted": fixed,
        },
        splits(),
        progress=False,
    )
    records = {row["model"]: row for row in table.records()}
    expected = []
    for X, Y, test_X, test_Y in splits():
        posterior = GaussianProcess(X, Y, RBFKernel()).posterior(test_X, observation_noise=True)
        expected.append(score(posterior, test_Y).nlpd)
    expected = torch.tensor(expected, dtype=torch.float64)
    assert records["GP"]["nlpd"] == pytest.approx(expected.mean().item())
    assert records["GP"]["nlpd_error"] == pytest.approx((expected.std() / 3**0.5).item())
    # BoTorch's own Gaussian, scored by its own marginals.
    X, Y, test_X, test_Y = splits()[0]
    plain = SingleTaskGP(X, Y).posterior(test_X, observation_noise=True)
    truth = torch.distributions.Normal(plain.mean, plain.variance.sqrt()).log_prob(test_Y)
    assert table.scores["BoTorch"]["nlpd"][0].item() == pytest.approx(-truth.mean().item())
    mean, error = table.difference("GP", "t process")
    paired = table.scores["GP"]["nlpd"] - table.scores["t process"]["nlpd"]
    assert (mean, error) == pytest.approx((paired.mean().item(), (paired.std() / 3**0.5).item()))
    assert (table.scores["GP"]["seconds"] > 0).all()
    lines = str(table).splitlines()
    assert lines[0].split() == [
        "model", "RMSE", "NLPD", "CRPS", "90%", "interval", "score", "50%", "coverage", "90%",
        "coverage", "95%", "coverage", "seconds", "peak", "MiB",
    ]  # fmt: skip
    assert [line.split("  ")[0] for line in lines[2:]] == list(records)
    assert len({len(line) for line in lines}) == 1  # aligned on the right
    assert list(table.to_pandas().index) == list(records)


def test_compare_scores_intervals_and_the_whole_distribution():
    X, Y, test_X, test_Y = splits()[0]
    model = GaussianProcess(X, Y, RBFKernel())
    table = compare({"GP": model}, [(X, Y, test_X, test_Y)], level=0.8, progress=False)
    found = {name: values.item() for name, values in table.scores["GP"].items()}
    posterior = model.posterior(test_X, observation_noise=True)
    lower, upper = posterior.quantile(torch.tensor([0.1, 0.9], dtype=torch.float64))
    missed = torch.where(test_Y < lower, lower - test_Y, (test_Y - upper).clamp_min(0))
    expected = (upper - lower + 2 / 0.2 * missed).mean().item()
    assert found["interval_score"] == pytest.approx(expected)
    assert found["crps"] == pytest.approx(posterior.crps(test_Y).mean().item())
    for level, name in ((0.5, "coverage_50"), (0.8, "coverage"), (0.95, "coverage_95")):
        tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        lower, upper = posterior.quantile(tails)
        inside = ((lower <= test_Y) & (test_Y <= upper)).double().mean().item()
        assert found[name] == pytest.approx(inside)


def test_memory_is_that_of_the_work():
    with peak_memory(torch.device("cpu")) as peak:
        torch.ones(2**24, dtype=torch.float64)  # 128 MiB
    assert math.isnan(peak.mib) or 100 < peak.mib < 1_000


def test_compare_draws_its_scores():
    table = compare({"GP": lambda X, Y: GaussianProcess(X, Y, RBFKernel())}, splits(2))
    figure = table.plot()
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert labels[:4] == ["RMSE", "NLPD", "CRPS", "90% interval score"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["GP"]
    assert len(table.plot(["nlpd", "coverage"]).axes) == 2


def test_compare_with_one_split_has_no_standard_error():
    table = compare({"GP": lambda X, Y: GaussianProcess(X, Y, RBFKernel())}, splits(1))
    assert math.isnan(table.records()[0]["rmse_error"])
    assert "±" not in str(table)


def test_compare_leaves_out_a_model_that_fails_and_names_it():
    def sometimes(X, Y):
        if torch.equal(X, splits()[1][0]):
            raise RuntimeError("no luck")
        return GaussianProcess(X, Y, RBFKernel())

    models = {"bad": sometimes, "GP": lambda X, Y: GaussianProcess(X, Y, RBFKernel())}
    with pytest.warns(UserWarning, match=r"'bad', on split 1 with RuntimeError: no luck"):
        table = compare(models, splits(3), progress=False)
    bad, good = table.scores["bad"], table.scores["GP"]
    assert bad["nlpd"].isnan().tolist() == [False, True, False]
    assert bad["nlpd"][[0, 2]].tolist() == pytest.approx(good["nlpd"][[0, 2]].tolist())
    assert all(values[1].isnan() for values in bad.values())
    assert table.failures == {"bad": "split 1 with RuntimeError: no luck"}
    assert str(table).endswith("bad failed on split 1 with RuntimeError: no luck")
    assert math.isnan(table.records()[0]["rmse"])
    table.plot()
    with (
        pytest.warns(UserWarning, match="'bad', on split 0"),
        pytest.raises(RuntimeError, match="all models failed: bad on split 0 with RuntimeError"),
    ):
        compare({"bad": sometimes}, splits(3)[1:2], progress=False)


def test_compare_refuses_what_it_cannot_score():
    with pytest.raises(ValueError, match=r"a list of splits.*got Tensors; put a single split"):
        compare({"a": lambda X, Y: GaussianProcess(X, Y, RBFKernel())}, splits()[0])
    with pytest.raises(ValueError, match="at least one model and one split"):
        compare({}, splits())
    with pytest.raises(TypeError, match="a fitted model .* or a factory"):
        compare({"bad": lambda X, Y: 3}, splits(), progress=False)
    X, Y, test_X, _ = splits()[0]
    with pytest.raises(ValueError, match="of four tensors, split 1 has 3"):
        compare({"a": lambda X, Y: GaussianProcess(X, Y, RBFKernel())}, [splits()[0], (X, Y, X)])
    logarithmic = SingleTaskGP(X, ((Y - Y.mean()) / Y.std()).exp(), outcome_transform=Log())
    with pytest.raises(TypeError, match="no exact marginal density"):
        as_predictive(logarithmic.posterior(test_X))


def test_plots_show_what_they_claim():
    import matplotlib.pyplot as plt

    X, Y, test_X, test_Y = splits()[0]
    model = GaussianProcess(X, Y, RBFKernel())
    ax = plot_posterior(model, num_samples=3)
    median = next(line for line in ax.lines if line.get_label() == "median")
    grid = torch.as_tensor(median.get_xdata()).unsqueeze(-1)
    assert grid.min() < X.min()
    assert grid.max() > X.max()
    expected = model.posterior(grid).mean[:, 0].detach()
    assert torch.allclose(torch.as_tensor(median.get_ydata()), expected)
    assert len(ax.collections) == 2
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "90% interval of y", "50% interval of y", "median", "sampled functions f", "data",
    ]  # fmt: skip
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("input x", "outcome y")
    ax = plot_posterior(model, observation_noise=False, ax=plt.figure().subplots())
    assert ax.get_ylabel() == "function f(x)"
    assert "90% interval of f" in [text.get_text() for text in ax.get_legend().get_texts()]
    posterior = model.posterior(test_X, observation_noise=True)
    for against in ("rank", "target"):
        ax = plot_predictions(posterior, test_Y, against=against)
        held, missed = (part.get_segments() for part in ax.collections)
        assert len(held) + len(missed) == len(test_Y)
        scores = score(posterior, test_Y)
        assert len(held) / len(test_Y) == pytest.approx(scores.coverage)
        assert "90% interval, target outside" in ax.get_legend_handles_labels()[1]
    ax = calibration(posterior, test_Y).plot(label="GP")
    assert len(ax.lines) == 2
    calibration(posterior, test_Y).plot(ax, label="again")
    assert ax.get_legend_handles_labels()[1] == ["95% of calibrated models", "GP", "again"]
    assert len({line.get_color() for line in ax.lines}) == 3
    own = plt.figure().subplots()
    assert calibration(posterior, test_Y).plot(own) is own
    plt.close("all")
    with pytest.raises(ValueError, match="against"):
        plot_predictions(posterior, test_Y, against="time")
    with pytest.raises(ValueError, match="a single input"):
        plot_posterior(model, torch.rand(5, 2, dtype=torch.float64))
