"""Kernels between architectures: motifs by hand, positive definiteness, lookup, learning."""

import math
from collections import Counter

import pytest
import torch
from botorch.acquisition import qLogExpectedImprovement
from botorch.optim import optimize_acqf_discrete
from torch import Generator

from bayes import GaussianProcess
from nas import Architecture, Node
from nas.kernels import (
    ArchitectureTable,
    BudgetKernel,
    CodeKernel,
    DescriptorKernel,
    LinearKernel,
    WeisfeilerLehmanKernel,
    architecture_kernel,
    dense,
)
from nas.kernels.computation import computation
from nas.kernels.motifs import MotifStore
from nas.kernels.weisfeiler_lehman import motif_counts, unary
from nas.spaces import CellSpace, MLPSpace

CELLS = CellSpace(num_cells=1, channels=4, image_size=8)


def cells(number, seed=0):
    generator = Generator().manual_seed(seed)
    found = {}
    while len(found) < number:
        found[CELLS.random(generator)] = None
    return list(found)


def chain(*operations):
    nodes = [Architecture.input((4,))]
    nodes += [Node.of(name, index) for index, name in enumerate(operations)]
    return Architecture(tuple(nodes))


def levels_of(table):
    """The levels of all architectures of a table."""
    numbers = torch.arange(len(table))
    return table.gram(numbers, numbers)


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def test_motifs_of_a_small_graph_by_hand():
    """relu twice in a row: input, relu(input), relu(relu); no argument anywhere."""
    counts = motif_counts([computation(chain("relu", "relu").nodes)], 2, with_arguments=False)
    assert [sorted(level.values()) for level in counts] == [[1, 2], [1, 1, 1], [1, 1, 1]]
    other = motif_counts([computation(chain("relu", "tanh").nodes)], 2, with_arguments=False)
    shared = [sum((a & b).values()) for a, b in zip(counts, other, strict=True)]
    assert shared == [2, 2, 2]  # input and a relu; they, the relu being fed by the input; likewise


def test_gram_matrices_of_two_chains_by_hand():
    """Counts of input, relu, tanh: (1, 2, 0) and (1, 1, 1), inner product 3 of lengths 5 and 3.

    At level 1 the motifs are input, relu(input), relu(relu) against input, relu(input), tanh(relu):
    2 of lengths 3 and 3. Smaller counts share 2 of 3 nodes at each level. The only paths differ.
    """
    pair = [chain("relu", "relu"), chain("relu", "tanh")]
    plain = ArchitectureTable(pair, depth=1, assignment=False)
    expected = {0: 3 / math.sqrt(15), 1: 2 / 3}
    found = levels_of(plain)[:, 0, 1].tolist()
    assert found == pytest.approx([expected[0], expected[1], 0.0])
    matched = ArchitectureTable(pair, depth=1)
    assert levels_of(matched)[:, 0, 1].tolist() == pytest.approx(
        [2 / 3, 0.0]
    )  # both levels of motifs are equal
    diagonal = levels_of(matched).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(diagonal, torch.ones(2, 2, dtype=torch.float64))


def test_unary_features_give_the_sum_of_smaller_counts():
    one, two = Counter(a=3, b=1), Counter(a=2, c=5, b=4)
    first, second = unary(one), unary(two)
    assert sum(first[k] * second.get(k, 0) for k in first) == 2 + 1


def test_empty_operations_are_taken_out():
    """Node 2 is reached by a skip connection only, and node 1 by nothing that works."""
    text = "|none~0|+|skip_connect~0|nor_conv_1x1~1|+|nor_conv_3x3~0|avg_pool_3x3~1|nor_conv_3x3~2|"
    body = next(node.body for node in CELLS.from_string(text).nodes if node.body)
    steps = computation(body.nodes)
    assert [(step.name, step.inputs) for step in steps] == [
        ("input", ()),
        ("nor_conv_3x3", (0,)),
        ("nor_conv_3x3", (0,)),
        ("sum", (1, 2)),
    ]
    nothing = CELLS.from_string("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    body = next(node.body for node in nothing.nodes if node.body)
    assert [step.name for step in computation(body.nodes)] == ["input"]


@pytest.mark.parametrize("assignment", [False, True])
def test_gram_matrices_are_positive_semidefinite(assignment):
    table = ArchitectureTable(cells(30), assignment=assignment)
    smallest = torch.linalg.eigvalsh(levels_of(table)).min()
    assert smallest > -1e-10
    assert levels_of(table).max() <= 1 + 1e-12
    X = column(*range(30))
    for kernel in (
        WeisfeilerLehmanKernel(table),
        WeisfeilerLehmanKernel(table, linear=True),
        DescriptorKernel(table),
        LinearKernel(table),
        architecture_kernel(table),
    ):
        gram = kernel.double()(X).to_dense().detach()
        assert torch.linalg.eigvalsh(gram).min() > -1e-10
        torch.testing.assert_close(gram, gram.T)
        torch.testing.assert_close(kernel(X, diag=True), gram.diagonal())
        batch = kernel(X[:6].reshape(2, 3, 1), X[6:12].reshape(2, 3, 1)).to_dense()
        torch.testing.assert_close(batch[1].detach(), gram[3:6, 9:12])


def test_added_architectures_have_the_entries_that_they_would_have_had():
    every = cells(12)
    whole, grown = ArchitectureTable(every[:6]), ArchitectureTable(every[:6])
    whole.numbers(every)
    for architecture in every[6:]:
        grown.numbers([architecture])
        levels_of(grown)
    assert grown.numbers(every) == list(range(12))
    torch.testing.assert_close(levels_of(whole), levels_of(grown), rtol=0, atol=0)
    torch.testing.assert_close(whole.descriptors(), grown.descriptors(), rtol=0, atol=0)


def test_levels_that_say_nothing_are_left_out():
    """Cells differ, the network around them does not; operations of cells have no arguments."""
    table = ArchitectureTable(cells(20), depth=2)
    assert table.levels == [6, 7, 8, 13]
    space = MLPSpace(4, 2, depth=(2, 2), widths=(8, 16), activations=("relu",), residual=False)
    widths = ArchitectureTable(space.members(10), depth=0)
    assert widths.levels == [1]  # by name and argument


def test_descriptors_by_hand():
    space = MLPSpace(4, 2, depth=(1, 2), widths=(8, 16), activations=("relu",), residual=False)
    members = space.members(10)
    table = ArchitectureTable(members)
    assert table.operations == ("linear", "relu")
    rows = torch.tensor(
        [
            [
                math.log1p(a.num_parameters),
                math.log1p(a.flops),
                a.depth,
                math.log1p(a.operation_counts()["linear"]),
                math.log1p(a.operation_counts()["relu"]),
            ]
            for a in members
        ],
        dtype=torch.float64,
    )
    expected = (rows - rows.mean(0)) / rows.std(0, correction=0)
    torch.testing.assert_close(table.descriptors(), expected)


def test_descriptor_kernel_is_a_sum_of_matern_kernels():
    from gpytorch.kernels import MaternKernel

    table = ArchitectureTable(cells(8))
    kernel = DescriptorKernel(table).double()
    with torch.no_grad():
        kernel.raw_weights.copy_(torch.randn(len(kernel.raw_weights)))
        kernel.raw_lengths.copy_(torch.randn(len(kernel.raw_lengths)))
    X = column(*range(8))
    expected = 0
    for place, (weight, length) in enumerate(zip(kernel.weights, kernel.lengths, strict=True)):
        matern = MaternKernel(nu=2.5).double()
        matern.lengthscale = length.detach()
        values = table.descriptors()[:, place : place + 1]
        expected = expected + weight * matern(values).to_dense()
    torch.testing.assert_close(kernel(X).to_dense(), expected)


def test_the_choices_of_a_flat_space_have_one_weight_each():
    """Two cells differ on edges 1 and 4: two columns of each, of weights 0.3 and 0.7."""
    names = ["nor_conv_3x3"] * 6
    changed = ["nor_conv_3x3", "skip_connect", *names[2:4], "avg_pool_3x3", names[5]]
    pair = [
        CELLS.from_parameters(dict(zip(CELLS.parameters(), each, strict=True)))
        for each in (names, changed)
    ]
    store = MotifStore(code=CELLS.encode, code_sizes=CELLS.code_sizes())
    kernel = CodeKernel(ArchitectureTable(pair, store=store)).double()
    assert kernel.weights.shape == (6,)
    weights = torch.tensor([0.1, 0.3, 0.2, 0.5, 0.7, 0.4], dtype=torch.float64)
    with torch.no_grad():
        kernel.raw_weights.copy_(kernel.raw_weights_constraint.inverse_transform(weights))
    gram = kernel(column(0, 1)).to_dense()
    assert gram[0, 1].item() == pytest.approx(math.exp(-2 * (0.3 + 0.7)))
    assert (
        len(CodeKernel(ArchitectureTable(pair, store=MotifStore(code=CELLS.encode))).weights) == 30
    )


def test_dense_matrices_are_those_of_gpytorch():
    """Of a sum times two kernels of further columns, whole and diagonal."""
    table = ArchitectureTable(
        cells(8), store=MotifStore(code=CELLS.encode, code_sizes=CELLS.code_sizes())
    )
    kernel = architecture_kernel(table, (1, 1), num_earlier=1).double()
    generator = Generator().manual_seed(0)
    points = torch.rand(8, 2, generator=generator, dtype=torch.float64)
    X = torch.cat([column(*range(8)), points, column(0, 0, 0, 0, 0, 1, 1, 1)], 1)
    torch.testing.assert_close(dense(kernel, X[:5], X), kernel(X[:5], X).to_dense())
    torch.testing.assert_close(dense(kernel, X, X, diag=True), kernel(X, diag=True))


@pytest.mark.parametrize("size", [2, 6])
def test_small_blocks_of_many_batches(size):
    """Entry by entry where they have few of them, else from one matrix of all numbers."""
    table = ArchitectureTable(cells(12))
    kernel = architecture_kernel(table).double()
    X = column(*range(12)).reshape(-1, size, 1)
    expected = torch.stack([kernel(rows).to_dense() for rows in X])
    torch.testing.assert_close(kernel(X).to_dense(), expected)


def test_budget_kernel_is_the_mixture_of_decays():
    """By quadrature over the rate, a gamma law of shape a and rate b."""
    kernel = BudgetKernel().double()
    shape, scale, share = kernel.shape, kernel.scale, kernel.share
    times = torch.tensor([[0.0], [0.3], [1.0]], dtype=torch.float64)
    rates = torch.linspace(1e-6, 80, 400_001, dtype=torch.float64)
    density = torch.distributions.Gamma(shape, scale).log_prob(rates).exp()
    total = times + times.T
    decay = (-rates * total[..., None]).exp()
    mixture = torch.trapezoid(decay * density, rates)
    expected = (1 - share) + share * mixture
    torch.testing.assert_close(kernel(times).to_dense(), expected, rtol=1e-4, atol=1e-4)
    assert torch.linalg.eigvalsh(kernel(times).to_dense()).min() > 0


def test_what_matters_is_learnt():
    """A function of the number of 3x3 convolutions is predicted for cells that were not seen."""
    every = cells(60)
    values = torch.tensor([float(a.operation_counts().get("nor_conv_3x3", 0)) for a in every])
    table = ArchitectureTable(every[:40])
    X, Y = column(*table.numbers(every)), values.double()[:, None]
    model = GaussianProcess(
        X[:40], Y[:40], architecture_kernel(table).double(), input_transform=None
    ).fit()
    predicted = model.posterior(X[40:]).mean[:, 0]
    correlation = torch.corrcoef(torch.stack([predicted, Y[40:, 0]]).detach())[0, 1]
    assert correlation > 0.9


def test_acquisition_functions_of_botorch_take_graphs():
    every = cells(12)
    table = ArchitectureTable(every[:8])
    X = column(*table.numbers(every))
    Y = torch.randn(8, 1, generator=Generator().manual_seed(0), dtype=torch.float64)
    kernel = architecture_kernel(table).double()
    model = GaussianProcess(X[:8], Y, kernel, input_transform=None).eval()
    acquisition = qLogExpectedImprovement(model, Y.max(), X_pending=X[8:9])
    chosen, _ = optimize_acqf_discrete(acquisition, q=2, choices=X[8:], X_avoid=X[8:9])
    assert set(chosen[:, 0].tolist()) < {9.0, 10.0, 11.0}


def test_wrong_tables():
    with pytest.raises(ValueError, match="depth"):
        ArchitectureTable(cells(2), depth=-1)
    with pytest.raises(ValueError, match="training rows"):
        ArchitectureTable([])
