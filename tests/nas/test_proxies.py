"""Proxies against their definitions, written out for tiny networks."""

import math
import pickle

import numpy as np
import optuna
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from torch import nn

import nas
from nas.kernels import ArchitectureTable, DescriptorKernel
from nas.proxies import (
    PROXIES,
    ProxyScores,
    flops,
    label_alignment,
    naswot,
    nngp_evidence,
    ntk_condition,
    ntk_evidence,
    parameters,
    predicted_error,
    synflow,
)
from nas.proxies.kernel_scores import candidate_kernel
from nas.surrogates import GraphProcess, surrogate_of
from nas.testing import SyntheticObjective

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(12, 3, generator=GENERATOR, dtype=torch.float64)
Y = torch.stack([X[:, 0] * X[:, 1], X[:, 2].sin()], 1)
CLASSES = torch.arange(12) % 3
LINEAR = nn.Linear(3, 1, bias=False)
MLP = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))


class Unknown(nn.Module):
    """No limit is known of it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.3, 0.0]]))

    def forward(self, x):
        return (x @ self.weight.T).sort(-1).values.cumsum(-1)


def standardised(targets):
    centred = targets - targets.mean(0)
    return centred / (centred**2).mean() ** 0.5


def normalised(matrix):
    return matrix / matrix.diagonal().mean()


def test_kernels_of_a_linear_network_are_inner_products():
    gram = normalised(X @ X.T)
    for kind in ("nngp", "ntk"):
        torch.testing.assert_close(candidate_kernel(LINEAR, X, kind), gram)


def test_the_finite_tangent_kernel_stands_in_where_no_limit_is_known():
    """Its Jacobian, output by output, by autograd."""
    network = Unknown().double()
    gram = torch.zeros(12, 12, dtype=torch.float64)
    for output in range(2):
        rows = [
            torch.autograd.grad(network(x[None])[0, output], network.weight)[0].flatten() for x in X
        ]
        gram += torch.stack(rows) @ torch.stack(rows).T / 2
    for kind in ("nngp", "ntk"):
        torch.testing.assert_close(candidate_kernel(network, X, kind), normalised(gram))


def test_the_module_is_left_as_it_is():
    network = MLP.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for proxy in PROXIES.values():
        proxy(network, X, CLASSES)
    assert network.training
    after = network.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(("proxy", "kind"), [(nngp_evidence, "nngp"), (ntk_evidence, "ntk")])
@pytest.mark.parametrize("y", [Y, CLASSES])
def test_evidence_is_the_greatest_gaussian_likelihood(proxy, kind, y):
    columns = y if y.is_floating_point() else torch.eye(3, dtype=torch.float64)[y]
    columns = standardised(columns).numpy()
    matrix = candidate_kernel(MLP, X, kind).numpy()

    def loss(logs):
        scale, noise = np.exp(logs)
        law = multivariate_normal(cov=scale * (matrix + noise * np.eye(12)))
        return -sum(law.logpdf(column) for column in columns.T) / columns.size

    found = min(
        minimize(loss, start, bounds=[(-8, 8), np.log([1e-4, 100])], method="L-BFGS-B").fun
        for start in ([0.0, -2.0], [0.0, 1.0])
    )
    value = proxy(MLP, X, y)
    assert value <= -found + 1e-6
    assert value == pytest.approx(-found, abs=1e-3)  # its noises are a grid


def test_condition_number():
    eigenvalues = np.linalg.eigvalsh(candidate_kernel(MLP, X, "ntk").numpy())
    assert ntk_condition(MLP, X, Y) == pytest.approx(np.log(eigenvalues[-1] / eigenvalues[0]))
    # rank 3 of 12 rows
    assert 35 < ntk_condition(LINEAR, X, Y) < 37


def test_alignment():
    gram = (X @ X.T).numpy()
    centring = np.eye(12) - 1 / 12
    gram = centring @ gram @ centring
    targets = standardised(Y).numpy()
    wanted = targets @ targets.T
    truth = (gram * wanted).sum() / np.linalg.norm(gram) / np.linalg.norm(wanted)
    assert label_alignment(LINEAR, X, Y) == pytest.approx(truth)
    # the targets of a one-dimensional linear network are aligned with it
    assert label_alignment(nn.Linear(1, 1, bias=False), X[:, :1], X[:, :1]) == pytest.approx(1)


def test_predicted_error_orders_targets_by_how_well_they_are_learnt():
    rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = rows - rows.mean(0)  # the network has no constant
    easy, hard = rows[:, :1], (7 * rows).sin()[:, :1]
    assert predicted_error(LINEAR, rows, easy) < 0.01
    assert predicted_error(LINEAR, rows, hard) > 0.5
    share = float(hard.var() / (easy.var() + hard.var()))
    both = predicted_error(LINEAR, rows, torch.cat([easy, hard], 1))
    # one ridge for both columns is at best as good as one for each
    apart = share * predicted_error(LINEAR, rows, hard)
    apart += (1 - share) * predicted_error(LINEAR, rows, easy)
    assert apart - 1e-9 <= both < 1.15 * apart


def test_naswot_counts_units_that_agree():
    """Four rows and three units whose codes are 011, 010, 111, 000."""
    network = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1))
    network[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    rows = torch.tensor([[-1.0, 2.0], [-2.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    agree = np.array([[3, 2, 2, 1], [2, 3, 1, 2], [2, 1, 3, 0], [1, 2, 0, 3]])
    assert naswot(network, rows, None) == pytest.approx(np.log(np.linalg.det(agree)))
    assert naswot(network, rows[[0, 0, 1]], None) == -math.inf
    with pytest.raises(ValueError, match="activation modules"):
        naswot(LINEAR, X, None)


def test_synaptic_flow_is_conserved_by_layers():
    """Each matrix of a chain has the flow 1^T |W3| |W2| |W1| 1."""
    sizes = (3, 5, 4, 2)
    layers = [nn.Linear(a, b, bias=False) for a, b in zip(sizes, sizes[1:], strict=False)]
    product = torch.ones(3, dtype=torch.float64)
    for layer in layers:
        product = layer.weight.detach().double().abs() @ product
    chain = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    assert synflow(chain, X, None) == pytest.approx(math.log(3 * float(product.sum())))


def test_sizes():
    assert parameters(MLP, X, None) == pytest.approx(math.log(4 * 6 + 7 * 4 + 5 * 2))
    assert flops(MLP, X, None) == pytest.approx(math.log(2 * (3 * 6 + 6 * 4 + 4 * 2)))


def test_an_architecture_is_scored_with_weights_of_its_own_seed():
    graph = nas.spaces.MLPSpace(3, 2, widths=(8, 16)).random(GENERATOR)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    once = {name: proxy(graph, X, CLASSES) for name, proxy in PROXIES.items()}
    assert torch.equal(torch.get_rng_state(), before)
    again = {name: proxy(graph, X, CLASSES) for name, proxy in PROXIES.items()}
    assert again == pytest.approx(once, rel=1e-8)  # rounding depends on where tensors lie
    assert once["parameters"] == pytest.approx(math.log(graph.num_parameters))
    assert once["flops"] == pytest.approx(math.log(graph.flops))


def test_images_of_a_cell_are_scored():
    space = nas.spaces.CellSpace(3, in_channels=1, image_size=4, channels=2, num_cells=1)
    graph = space.random(torch.Generator().manual_seed(0))
    images = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    scores = ProxyScores(("ntk_evidence", "naswot", "synflow"), images, torch.arange(4) % 3)
    assert all(math.isfinite(score) for score in scores(graph))


class TestScores:
    def test_rows_are_drawn_once_and_scores_kept(self):
        calls = []

        def counted(candidate, inputs, targets):
            calls.append(len(inputs))
            return float(len(calls))

        scores = ProxyScores(["parameters", counted], X, Y, max_rows=5)
        graph = nas.spaces.MLPSpace(3, 2).random(GENERATOR)
        assert scores.names == ("parameters", "counted")
        assert scores(graph) == scores(graph) == (pytest.approx(parameters(graph, X, Y)), 1.0)
        assert calls == [5]
        rows = {tuple(row) for row in X.tolist()}
        assert all(tuple(row) in rows for row in scores.X.tolist())

    def test_what_fails_is_missing(self):
        def fails(candidate, inputs, targets):
            raise ValueError("no")

        scores = ProxyScores([fails, lambda *_: math.inf], X, Y)
        assert all(math.isnan(s) for s in scores(nas.spaces.MLPSpace(3, 2).random(GENERATOR)))

    def test_pickled_without_its_memory(self):
        scores = ProxyScores(["naswot"], X, Y)
        graph = nas.spaces.MLPSpace(3, 2).random(GENERATOR)
        assert pickle.loads(pickle.dumps(scores))(graph) == scores(graph)

    @pytest.mark.parametrize("names", [(), ("nothing",), "naswot"])
    def test_names_are_checked(self, names):
        with pytest.raises(ValueError, match="must be a list of names in"):
            ProxyScores(names, X, Y)


class TestAsDescriptor:
    graphs = [
        nas.spaces.MLPSpace(3, 2, depth=(2, 2), widths=(4, 5, 6, 7)).random(
            torch.Generator().manual_seed(seed)
        )
        for seed in range(12)
    ]

    def test_it_is_a_column_of_the_table(self):
        traits = {
            graph: (float(k), math.nan if k == 3 else 2.0) for k, graph in enumerate(self.graphs)
        }
        plain = ArchitectureTable(self.graphs)
        table = ArchitectureTable(self.graphs, traits=traits.__getitem__)
        count = plain.descriptors().shape[1]
        rows = table.descriptors()
        torch.testing.assert_close(rows[:, :count], plain.descriptors())
        numbers = torch.tensor(
            [traits[g][0] for g in table.store.architectures], dtype=torch.float64
        )
        expected = (numbers - numbers.mean()) / numbers.std(correction=0)
        torch.testing.assert_close(rows[:, count], expected)
        assert not rows[:, count + 1].any()  # one value, and a missing one at the mean
        assert DescriptorKernel(table).weights.shape == (count + 2,)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:The fit of DenseProcess was stopped by max_iter")
    def test_a_useless_proxy_gets_less_weight_than_a_useful_one(self):
        graphs = list(dict.fromkeys(
            nas.spaces.MLPSpace(3, 2).random(torch.Generator().manual_seed(seed))
            for seed in range(60)
        ))  # fmt: skip
        noise = torch.randn(len(graphs), 2, generator=torch.Generator().manual_seed(0)).double()
        traits = {graph: tuple(row) for graph, row in zip(graphs, noise.tolist(), strict=True)}
        surrogate = GraphProcess(proxies=traits.__getitem__)
        from nas.encoding.candidates import Candidate
        from nas.encoding.hyperparameters import HyperparameterCube

        rows = [Candidate(graph) for graph in graphs]
        space = nas.spaces.MLPSpace(3, 2)
        encoder = surrogate.encoder(space, HyperparameterCube({}), rows)
        value = (2 * noise[:, :1]).sin()
        model = surrogate.fit(encoder(rows), (value - value.mean()) / value.std(), encoder)
        (kernel,) = (m for m in model.modules() if isinstance(m, DescriptorKernel))
        useful, useless = kernel.weights[-2:].tolist()
        assert useful > 5 * useless

    def test_a_search_uses_it(self, few_candidates):
        objective = SyntheticObjective()
        rows = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
        scores = ProxyScores(["synflow"], rows, rows[:, 0])
        sampler = nas.BayesianSampler(
            objective.space, hyperparameters=objective.hyperparameters, proxies=scores,
            num_initial=3, seed=0,
        )  # fmt: skip
        assert "gp with ['synflow']" in repr(sampler)
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=5)
        assert len(scores._scores) > 5
        assert all(trial.value is not None for trial in study.trials)

    def test_only_the_graph_surrogate_reads_proxies(self):
        scores = ProxyScores(["synflow"], X, Y)
        with pytest.raises(ValueError, match="'gp' reads proxies, 'pfn' does not"):
            surrogate_of("pfn", scores)
