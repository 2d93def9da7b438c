"""What one sees of an object in a notebook: a few lines of words and sizes, no tensors."""

import math

import optuna
import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from torch import nn
from torch.distributions import InverseGamma, LogNormal, MultivariateNormal, Uniform

import bayes
import nas
import pfn
import priors
from bayes.inference.draws import Draws
from nas import Architecture, Node, spaces
from priors.diagnostics.generalisation import Risk
from priors.diagnostics.monte_carlo import MonteCarloKernels
from priors.kernels.random_features import FeatureError
from priors.representation import as_distribution, as_tensor, count, shortened

X = torch.rand(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = X.sum(-1, keepdim=True).sin()


def network(depth=1):
    hidden = [layer for _ in range(depth - 1) for layer in (nn.Linear(8, 8), nn.ReLU())]
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), *hidden, nn.Linear(8, 1))


def process(kind=bayes.GaussianProcess):
    return kind(X, Y, priors.NNGPKernel(network()))


def mixture(X, Y, kernel):
    return bayes.ScaleMixtureProcess(X, Y, kernel, scale=InverseGamma(2.0, 3.0))


def small_pfn(classes=0):
    torch.manual_seed(0)
    sizes = pfn.ArchitectureConfig(
        max_features=3, embedding=8, layers=1, heads=1, hidden=8, thinking_rows=1, classes=classes
    )
    borders = None if classes else torch.linspace(-3, 3, 21)
    return pfn.PFN(sizes, borders, metadata={"max_context": 64}).eval()


def conditioned(classes=0):
    y = (Y > 1).float() if classes else Y.float()
    return small_pfn(classes).condition(X.float(), y, check=False)


def certificate():
    row = pfn.certificate.CertificateRow(
        tasks=1200, nll=1.5, gap=0.125, gap_error=0.01, gap_worst=1.0, lower=math.nan,
        lower_error=math.nan, coverage50=0.5, coverage80=0.8, coverage90=0.875,
        coverage95=0.9, accuracy=math.nan,
    )  # fmt: skip
    return pfn.Certificate("a prior", "exact", 0, {5: row, 20: row}, {})


def residual():
    return spaces.MLPSpace(4, 2).network([16, 16], "relu", residual=True)


def cell():
    return spaces.CellSpace().from_string(
        "|none~0|+|nor_conv_3x3~0|skip_connect~1|+|skip_connect~0|nor_conv_1x1~1|avg_pool_3x3~2|"
    )


SMALL = priors.TaskSize(max_features=3, max_context=8)
FUNCTIONS = priors.GaussianProcessPrior(priors.NNGPKernel(network()))
DRAWS = torch.zeros(5, 2, 1)
ZEROS = torch.zeros(300, 300)

# what makes the object, and what its repr must say
SAID = {
    "infinite network": (lambda: priors.InfiniteNetwork(network()), ["inputs [3]", "weight_var"]),
    "standard parameterization": (
        lambda: priors.InfiniteNetwork(network(), parameterization="standard"),
        ["standard parameterization"],
    ),
    "network of any input": (
        lambda: priors.InfiniteNetwork(nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 1))),
        ["inputs [any]"],
    ),
    "deep network": (
        lambda: priors.InfiniteNetwork(network(40)),
        ["... 30 more", "\n  0 ", "\n  80 "],
    ),
    "batch of networks": (
        lambda: priors.InfiniteNetwork(network(), batch_shape=torch.Size([2])),
        ["batch [2]"],
    ),
    "network prior": (lambda: priors.NetworkPrior(network()), ["41 weights", "bias_var"]),
    "maximal updates": (
        lambda: priors.NetworkPrior(network(), parameterization="mup"),
        ["maximal updates"],
    ),
    "kernel": (lambda: priors.NNGPKernel(network()), ["NNGPKernel(inputs [3])"]),
    "many length scales": (
        lambda: priors.NTKKernel(
            nn.Sequential(nn.Linear(500, 4), nn.ReLU(), nn.Linear(4, 1)), ard_num_dims=500
        ),
        ["lengthscale by feature: 1, 1", "..."],
    ),
    "kernel of some columns": (
        lambda: priors.NTKKernel(network(), active_dims=(0, 1, 2)),
        ["active_dims [0, 1, 2]"],
    ),
    "wrapped kernel": (lambda: ScaleKernel(priors.NNGPKernel(network())), ["NNGPKernel(inputs"]),
    "empirical kernel": (
        lambda: priors.EmpiricalNTKKernel(network()),
        ["inputs [3]", "41 weights", "ntk parameterization", "output mean"],
    ),
    "empirical kernel without a prior": (
        lambda: priors.EmpiricalNTKKernel(network(), parameterization="standard", output=0),
        ["41 weights", "standard parameterization", "output 0"],
    ),
    "features": (
        lambda: priors.UniversalFeatures(3, 16, max_norm=2.0, tolerance=0.2, max_degree=8),
        ["3 inputs", "features"],
    ),
    "feature error": (
        lambda: FeatureError(torch.arange(3), DRAWS, DRAWS),
        ["sizes=int64 [3]", "float32 [5, 2, 1]"],
    ),
    "infinite depth": (
        lambda: priors.InfiniteDepthClassifier(torch.relu).fit(X, Y[:, 0] > Y.median()),
        ["12 rows", "2 classes"],
    ),
    "function prior": (lambda: FUNCTIONS, ["GaussianProcessPrior(NNGPKernel("]),
    "scale mixture": (
        lambda: priors.ScaleMixturePrior(
            RBFKernel(), InverseGamma(torch.tensor(2.0), torch.tensor(3.0))
        ),
        ["variance from InverseGamma(concentration 2, rate 3)", "RBFKernel"],
    ),
    "Gaussian process": (process, ["12 rows, 3 inputs, 1 output", "noise_covar.noise: 0.1"]),
    "heteroscedastic process": (
        lambda: bayes.HeteroscedasticGaussianProcess(
            X.repeat(4, 1) + torch.linspace(0, 1, 48)[:, None], Y.repeat(4, 1), RBFKernel()
        ),
        [
            "HeteroscedasticGaussianProcess(48 rows, 3 inputs, 1 output",
            "noise_covar.log_mean: -2",
            "noise_covar.whitened: 48 numbers from 0 to 0",
        ],
    ),
    "variational process": (
        lambda: bayes.VariationalGaussianProcess(
            X, Y, priors.NNGPKernel(network()), likelihood="student_t", num_inducing=5
        ),
        ["VariationalGaussianProcess(12 rows, 3 inputs, 1 output", "5 inducing points", "df"],
    ),
    "process of features": (
        lambda: bayes.WeightSpaceProcess(X, Y, priors.NNGPKernel(network()), num_features=20),
        ["WeightSpaceProcess(12 rows, 3 inputs, 1 output", "features)", "noise: 0.1"],
    ),
    "Gaussian process classifier": (
        lambda: bayes.GaussianProcessClassifier(
            X, (Y > Y.median()).double(), RBFKernel(), likelihood="dirichlet"
        ),
        ["GaussianProcessClassifier(dirichlet, 2 classes)", "GaussianProcess(12 rows"],
    ),
    "scale mixture classifier": (
        lambda: bayes.ScaleMixtureClassifier(
            X, (Y > Y.median()).double(), RBFKernel(), num_inducing=5
        ),
        ["ScaleMixtureClassifier(12 rows", "5 inducing points", "scale concentration: 2"],
    ),
    "t process": (lambda: process(bayes.StudentTProcess), ["StudentTProcess(12 rows"]),
    "scale mixture process": (
        lambda: process(mixture),
        [
            "ScaleMixtureProcess(12 rows",
            "scale of the kernel: InverseGamma(concentration 2, rate 3)",
        ],
    ),
    "posterior of a scale": (
        lambda: process(mixture).scale_posterior(),
        ["ScaleNodes(t=float64 [", "error="],
    ),
    "Bayesian network": (
        lambda: bayes.BayesianNetwork(X, Y, priors.NetworkPrior(network())),
        ["12 rows, 3 inputs, 1 output; not fitted", "NetworkPrior(inputs [3], 41 weights)"],
    ),
    "draws": (
        lambda: Draws({"w": torch.zeros(2, 50, 41)}, {"lp": torch.zeros(2, 50)}),
        ["2 chains of 50 draws", "w [41]", "statistics lp"],
    ),
    "no draws": (lambda: Draws({}, {}), ["Draws()"]),
    "Gaussian posterior": (
        lambda: process().posterior(X[:2]),
        ["GaussianPosterior(2 points, 1 output, float64)"],
    ),
    "t posterior": (
        lambda: process(bayes.StudentTProcess).posterior(X[:2].expand(5, 2, 3)),
        ["df 16", "5 x 2 points"],
    ),
    "drawn posterior": (lambda: priors.EmpiricalPosterior(DRAWS), ["5 draws, 2 points, 1 output"]),
    "mixture posterior": (
        lambda: priors.MixturePosterior([priors.EmpiricalPosterior(DRAWS)]),
        ["1 component,"],
    ),
    "Gaussian mixture": (
        lambda: priors.GaussianMixturePosterior(DRAWS, DRAWS + 1),
        ["5 components, 2 points"],
    ),
    "reweighted": (
        lambda: pfn.ReweightedPosterior(DRAWS, torch.zeros(5), 0.25),
        ["5 draws", "worth 5", "Pareto shape 0.25"],
    ),
    "network": (
        small_pfn,
        ["PFN(regression", "64 context rows and 3 features", "parameters", "no certificate"],
    ),
    "classifying network": (lambda: small_pfn(4), ["up to 4 classes"]),
    "conditioned network": (
        conditioned,
        ["PFNModel(12 rows, 3 inputs, 1 output, float32; regression;", "parameters)"],
    ),
    "conditioned classifier": (lambda: conditioned(4), ["4 classes at most"]),
    "network's posterior": (
        lambda: conditioned().posterior(X[:2].float()),
        ["TransformedPosterior(JointBarPosterior through AffineTransform, 2 points"],
    ),
    "class probabilities": (
        lambda: conditioned(4).posterior(X[:2].float()),
        ["2 points, 4 classes, float32"],
    ),
    "bars": (lambda: small_pfn().bars, ["21 nodes from -3 to 3", "index 5"]),
    "acquisition": (
        lambda: priors.ExpectedImprovement(conditioned(), best_f=0.0),
        ["(model): PFNModel(12 rows"],
    ),
    "certificate": (
        certificate,
        ["gap 0.125 nats", "90% intervals cover 87.5%", "2,400 tasks of 5, 20 context rows"],
    ),
    "certificate's row": (lambda: certificate().by_context[5], ["tasks=1200", "gap=0.125"]),
    "task": (
        lambda: priors.LinearTaskPrior(SMALL).sample(2, generator=torch.Generator().manual_seed(0)),
        ["2 tasks of", "context)", "regression with noise-free values"],
    ),
    "classification task": (
        lambda: priors.ClassificationTaskPrior(priors.LinearTaskPrior(SMALL)).sample(1),
        ["1 task of", "classification"],
    ),
    **{
        kind.__name__: (kind, [kind.__name__ + "(size="])
        for kind in (
            priors.CausalTaskPrior,
            priors.LearningCurveTaskPrior,
            priors.LinearTaskPrior,
            priors.NetworkTaskPrior,
            priors.OptimizationTaskPrior,
            priors.RandomKernelTaskPrior,
            priors.TreeTaskPrior,
        )
    },
    "table": (
        lambda: priors.Tabular(priors.LinearTaskPrior(SMALL)),
        ["Tabular(prior=LinearTaskPrior("],
    ),
    "mixture of tasks": (
        lambda: priors.MixtureTaskPrior([priors.LinearTaskPrior(), priors.TreeTaskPrior()], [1, 2]),
        ["\n  1 x LinearTaskPrior(", "\n  2 x TreeTaskPrior("],
    ),
    "tasks of functions": (
        lambda: priors.FunctionTaskPrior(
            FUNCTIONS,
            inputs=Uniform(torch.zeros(3), torch.ones(3)),
            num_points=20,
            noise_var=LogNormal(-2.0, 1.0),
        ),
        [
            "NNGPKernel(weight_var 1, 2; bias_var 0.1 (2 layers))",
            "noise variance LogNormal(loc -2, scale 1)",
            "inputs Uniform(low 0 [3], high 1 [3])",
        ],
    ),
    "summary of a prior": (
        lambda: priors.prior_summary(priors.NNGPKernel(network()), direction=torch.ones(3)),
        ["zero_crossings=", "functions=float"],
    ),
    "Monte Carlo kernels": (
        lambda: MonteCarloKernels(ZEROS, ZEROS, None, None),
        ["nngp=float32 [300, 300]", "ntk=None"],
    ),
    "risk": (lambda: Risk(ZEROS, ZEROS, ZEROS), ["test=float32 [300, 300]"]),
    "calibration": (
        lambda: bayes.calibration(process().posterior(X, observation_noise=True), Y),
        ["12 targets", "mean coverage error", "0.9 intervals cover"],
    ),
    "comparison": (
        lambda: bayes.compare({"GP": process()}, [(X, Y, X, Y)], progress=False),
        ["1 model, 1 split", "NLPD", "\nGP"],
    ),
    "scores": (
        lambda: priors.score(process().posterior(X, observation_noise=True), Y),
        ["Scores(rmse=0."],
    ),
    "MLP space": (lambda: spaces.MLPSpace(4, 2), ["MLPSpace(4, 2, depth=(1, 4), widths=(16, "]),
    "cell space": (lambda: spaces.CellSpace(), ["CellSpace(10, in_channels=3, image_size=32"]),
    "architecture": (
        residual,
        ["a = input(4) -> linear(16) -> relu; b = a -> linear(16) -> relu; c = a + b -> linear(2)"],
    ),
    "node": (
        lambda: Node.of("linear", 0, out_features=2),
        ["Node.of('linear', 0, out_features=2)"],
    ),
    "sampler": (
        lambda: nas.BayesianSampler(
            spaces.MLPSpace(4, 2),
            hyperparameters={"lr": optuna.distributions.FloatDistribution(0.1, 1.0)},
        ),
        [
            "BayesianSampler(MLPSpace(4, 2",
            "hyperparameters=['lr']",
            "surrogate=gp",
            "acquisition=logei",
        ],
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_an_object_says_what_it_is(name):
    make, said = SAID[name]
    text = repr(make())
    for words in said:
        assert words in text
    assert text.count("\n") <= 15
    assert len(text) < 1200
    assert "tensor(" not in text
    assert " object at 0x" not in text


def test_nodes_and_spaces_can_be_made_again_from_their_representations():
    names = {**vars(spaces), "Node": Node, "Architecture": Architecture}
    for made in (spaces.MLPSpace(4, 2, widths=(8, 16)), spaces.CellSpace(num_cells=2)):
        assert eval(repr(made), names).parameters() == made.parameters()
        assert repr(eval(repr(made), names)) == repr(made)
    node = Node.of("linear", 3, out_features=2)
    assert eval(repr(node), names) == node


def test_a_repeated_cell_is_described_once():
    text = str(cell())
    assert text.count("nor_conv_3x3") == 1
    assert text.splitlines()[0].count("5 x cell") == 3
    assert text.splitlines()[1] == "cell:"
    assert "  h = f + g + e" in text
    assert "\n" not in repr(cell())


def test_two_cells_have_names_of_their_own():
    first = Architecture((Node.of("input"), Node.of("relu", 0)))
    second = Architecture((Node.of("input"), Node.of("repeat", 0, body=first, count=2)))
    nodes = (
        Architecture.input((4,)),
        Node.of("repeat", 0, body=second, count=3),
        Node.of("repeat", 1, body=first, count=4),
    )
    assert str(Architecture(nodes)).splitlines() == [
        "input(4) -> 3 x cell A -> 4 x cell B",
        "cell A:",
        "  input -> 2 x cell B",
        "cell B:",
        "  input -> relu",
    ]


def test_printing_a_network_shows_its_certificate_within_a_page():
    network = small_pfn()
    network.certificate = certificate()
    printed = str(network)
    assert "context" in printed
    assert "0.1250" in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_tables_say_all_where_they_are_printed():
    variances = priors.InfiniteNetwork(network(40)).variances
    assert len(str(variances).splitlines()) == 42
    assert len(variances.table(12).splitlines()) == 13


def test_parts():
    assert [count(n, "class") for n in (0, 1, 2500)] == ["0 classes", "1 class", "2,500 classes"]
    assert as_tensor(torch.tensor(1 / 3)) == "0.3333"
    assert as_tensor(torch.zeros(2, 3)) == "float32 [2, 3]"
    lines = [str(k) for k in range(10)]
    assert shortened(lines, 10) == lines
    assert shortened(lines, 4) == ["0", "1", "... 7 more", "9"]
    assert as_distribution(0.5) == "0.5"
    law = MultivariateNormal(torch.zeros(2), torch.eye(2))
    assert as_distribution(law) == ("MultivariateNormal(loc 0 [2], covariance_matrix float32 [4])")
