import matplotlib
import pytest
import torch
from torch import nn

from bayes import BayesianNetwork, MeanField, calibration, compare, plot_posterior
from bayes.diagnostics import reliability
from priors import CategoricalPosterior, ClassProbabilityPosterior, PoissonMixturePosterior
from priors.networks.finite import NetworkPrior
from priors.posteriors.gaussian import as_predictive
from priors.posteriors.scores import class_scores

matplotlib.use("Agg")


def drawn(size, sharpness=1.0, classes=3, seed=0):
    """Predictions and targets that follow them, or the predictions' powers."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=generator, dtype=torch.float64)
    Y = logits.softmax(-1).multinomial(1, generator=generator).double()
    return CategoricalPosterior(sharpness * logits), Y


def test_reliability_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.45, 0.55], [1.0, 0.0]], dtype=torch.float64)
    Y = torch.tensor([[0.0], [0.0], [1.0], [0.0]])
    found = reliability(CategoricalPosterior(p.log()), Y, num_bins=5)
    assert found.counts.tolist() == [0, 0, 1, 1, 2]
    assert torch.allclose(
        found.confidence[2:], torch.tensor([0.55, 0.8, 0.95], dtype=torch.float64)
    )
    assert found.accuracy[2:].tolist() == [1, 0, 1]
    assert found.ece == pytest.approx((0.45 + 0.8 + 2 * 0.05) / 4)
    scores = class_scores(CategoricalPosterior(p.log()), Y)
    assert scores.accuracy == 0.75
    assert scores.nlpd == pytest.approx(-torch.tensor([0.9, 0.2, 0.55, 1.0]).log().mean())
    assert scores.brier == pytest.approx(2 * (0.01 + 0.64 + 0.2025) / 4)


def test_a_calibrated_classifier_has_the_expected_error_and_others_more():
    found = [calibration(*drawn(2000, seed=seed), num_levels=10) for seed in range(30)]
    errors = torch.tensor([one.ece for one in found])
    expected = torch.tensor([one.expected_ece for one in found])
    difference = errors - expected
    assert difference.mean().abs() < 4 * difference.std() / 30**0.5
    for sharpness in (0.3, 3.0):  # accuracy is that of sharpness 1
        other = calibration(*drawn(2000, sharpness))
        assert other.ece > 4 * other.expected_ece
        gap = (other.accuracy - other.confidence)[other.counts > 100]
        assert ((gap > 0) == (sharpness < 1)).all()


def test_draws_of_probabilities_are_judged_by_their_mean():
    draws = torch.randn(6, 50, 3, dtype=torch.float64).softmax(-1)
    Y = drawn(50)[1]
    one, other = (
        calibration(posterior, Y)
        for posterior in (
            ClassProbabilityPosterior(draws),
            CategoricalPosterior(draws.mean(0).log()),
        )
    )
    assert torch.equal(one.counts, other.counts)
    assert one.ece == pytest.approx(other.ece)


def test_shapes_are_checked():
    posterior, Y = drawn(10)
    with pytest.raises(ValueError, match=r"class numbers of these predictions have \(10, 1\)"):
        calibration(posterior, Y[:5])
    with pytest.raises(ValueError, match=r"class numbers are \[\.\.\., n, 1\]"):
        class_scores(posterior, Y[:, 0])
    with pytest.raises(TypeError, match="of classes, which have no intervals"):
        as_predictive(posterior)
    with pytest.raises(ValueError, match="num_bins >= 1"):
        reliability(posterior, Y, num_bins=0)


def test_reliability_diagram():
    import matplotlib.pyplot as plt

    ax = calibration(*drawn(500)).plot(label="right")
    calibration(*drawn(500, 3.0)).plot(ax, label="sharp")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [label.split(" (ECE")[0] for label in labels] == ["right", "sharp"]
    assert ax.get_ylabel() == "share of right predictions"
    assert len({line.get_color() for line in ax.lines}) == 3
    plt.close("all")


def test_counts_have_uniform_integral_transforms():
    size = 1500
    log_rates = torch.randn(size, 1, generator=torch.Generator().manual_seed(1)).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Y = torch.poisson(log_rates.exp())
    found = calibration(PoissonMixturePosterior(log_rates[None]), Y)
    error = (found.nominal * (1 - found.nominal) / size).sqrt()
    assert ((found.empirical - found.nominal).abs() < 4 * error).all()
    assert abs(float(found.pit.mean()) - 0.5) < 4 * (1 / 12 / size) ** 0.5


def test_classifiers_are_compared_by_their_own_scores():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    Y = (X[:, :1] > 0).double()

    class Knowing:
        def posterior(self, X, observation_noise=False):
            return CategoricalPosterior(torch.cat([-5 * X[:, :1], 5 * X[:, :1]], dim=-1))

    class Guess:
        def posterior(self, X, observation_noise=False):
            return CategoricalPosterior(torch.zeros(len(X), 2, dtype=X.dtype))

    splits = [(X[:40], Y[:40], X[40:], Y[40:])]
    table = compare({"knowing": Knowing(), "guess": Guess()}, splits, progress=False)
    assert set(table.scores["knowing"]) == {
        "accuracy", "nlpd", "brier", "ece", "seconds", "memory",
    }  # fmt: skip
    assert table.scores["guess"]["brier"].item() == pytest.approx(0.5)
    assert table.difference("knowing", "guess")[0] < 0
    assert table.difference("knowing", "guess", "accuracy")[0] > 0
    assert str(table).split()[:6] == ["model", "accuracy", "NLPD", "Brier", "ECE", "seconds"]

    def regression(X, Y):
        single = NetworkPrior(nn.Linear(2, 1))
        return BayesianNetwork(X, Y, single).fit(MeanField(5, num_draws=3, progress=False))

    with pytest.raises(ValueError, match="regressors or classifiers, got both"):
        compare({"guess": Guess(), "line": regression}, splits, progress=False)


def test_every_call_has_the_same_bins():
    posterior, Y = drawn(200)
    assert calibration(posterior, Y).ece == pytest.approx(reliability(posterior, Y).ece)
    assert len(calibration(posterior, Y, num_levels=7).counts) == 7


def test_probabilities_of_a_class_are_drawn_beside_its_rows():
    X = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    Y = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])[:, None]
    model = BayesianNetwork(X, Y, NetworkPrior(nn.Linear(1, 3)), likelihood="categorical")
    model.fit(MeanField(5, num_draws=6, progress=False))
    ax = plot_posterior(model, observation_noise=False, output=2)
    (points,) = (line for line in ax.lines if line.get_label() == "data")
    assert points.get_ydata().tolist() == [0] * 6 + [1] * 3
