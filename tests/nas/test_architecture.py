"""Architectures: identity, errors, and that a graph computes what it says."""

import pytest
import torch
from torch import nn

from nas import Architecture, Node, register_operation
from nas.architectures import operations
from nas.spaces import CellSpace, MLPSpace


def chain(*nodes):
    return Architecture((Architecture.input((4,)), *nodes))


def test_argument_order_does_not_matter_and_graphs_differ():
    first = Node("linear", (0,), (("out_features", 3),))
    assert chain(first) == chain(Node.of("linear", 0, out_features=3))
    assert chain(first) != chain(Node.of("linear", 0, out_features=5))
    assert len({chain(first), chain(first)}) == 1


def test_a_graph_computes_what_it_says():
    graph = chain(
        Node.of("linear", 0, out_features=3),
        Node.of("tanh", 1),
        Node.of("projection", 0, out_features=3),
        Node.of("sum", 2, 3, 3),
    )
    network = graph.build()
    linear, _, projection, _ = network.layers
    x = torch.randn(5, 4)
    expected = torch.tanh(x @ linear.weight.T + linear.bias) + 2 * x @ projection.weight.T
    torch.testing.assert_close(network(x), expected)
    assert graph.depth == 1
    assert graph.num_parameters == 3 * 4 + 3 + 3 * 4
    assert graph.flops == 2 * (3 * 4 + 3 * 4)


def test_repeat_is_that_many_copies_with_weights_of_their_own():
    body = Architecture(
        (Node.of("input"), Node.of("linear", 0, out_features=4), Node.of("relu", 1))
    )
    graph = chain(Node.of("repeat", 0, body=body, count=3))
    network = graph.build()
    x = torch.randn(2, 4)
    expected = x
    for copy in network.layers[0]:
        expected = torch.relu(copy.layers[0](expected))
    torch.testing.assert_close(network(x), expected)
    assert graph.depth == 3
    assert graph.num_parameters == 3 * 20
    assert Architecture.from_json(graph.to_json()) == graph


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_trace_to_plain_layers(residual, dtype):
    """The traced graph has leaf modules and sums only, and the same values."""
    space = MLPSpace(6, 2, widths=(8, 16))
    network = space.network([8, 16, 16], "gelu", residual=residual).build().to(dtype)
    traced = torch.fx.symbolic_trace(network)
    leaves = [m for n, m in traced.named_modules() if n and not list(m.children())]
    assert {type(m) for m in leaves} == {nn.Linear, nn.GELU}
    calls = [node for node in traced.graph.nodes if node.op == "call_function"]
    assert len(calls) == (2 if residual else 0)
    x = torch.randn(3, 6, dtype=dtype)
    torch.testing.assert_close(traced(x), network(x))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([Node.of("convolution", 0)], "unknown operation 'convolution'"),
        ([Node.of("relu", 1)], "only read nodes 0 to 0"),
        ([Node.of("relu")], "reads no node"),
        ([Node.of("repeat", 0, count=2)], "a repeat must have a body"),
        ([Node.of("input")], "one input"),
    ],
)
def test_impossible_graphs_are_refused(nodes, message):
    with pytest.raises(ValueError, match=message):
        chain(*nodes)


def test_operations_that_do_not_fit_name_themselves():
    with pytest.raises(ValueError, match=r"'nor_conv_3x3'.*channels, height, width"):
        chain(Node.of("nor_conv_3x3", 0)).build()
    with pytest.raises(ValueError, match=r"'sum'.*one shape"):
        chain(Node.of("linear", 0, out_features=3), Node.of("sum", 0, 1)).build()
    with pytest.raises(ValueError, match=r"'linear'.*width"):
        chain(Node.of("linear", 0, width=3)).build()


@pytest.mark.parametrize("text", ["", "{}", "[]", '[["input",[],3]]', "[1]", '{"a": 1}'])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match=r"architecture"):
        Architecture.from_json(text)


def test_cell_forward_against_the_sums_by_hand():
    """One cell in double precision: node 3 written out edge by edge."""
    space = CellSpace(num_classes=2, in_channels=1, image_size=8, channels=4, num_cells=1)
    text = "|nor_conv_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
    cell = space.from_string(text).build().double().layers[1][0].eval()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    edge = iter(layer for layer in cell.layers if type(layer).__name__ != "Sum")
    conv01, _, conv12, _, _, conv23 = edge

    def nor_conv(layer, z):
        _, conv, norm = layer
        kernel = conv.kernel_size[0]
        y = nn.functional.conv2d(z.clamp_min(0), conv.weight, padding=kernel // 2)
        return y / (1 + norm.eps) ** 0.5  # fresh running statistics: mean 0, variance 1

    def pool(z):
        padded = nn.functional.pad(z, (1, 1, 1, 1))
        ones = nn.functional.pad(torch.ones_like(z), (1, 1, 1, 1))
        windows = [(i, j) for i in range(3) for j in range(3)]
        total = sum(padded[..., i : i + 8, j : j + 8] for i, j in windows)
        return total / sum(ones[..., i : i + 8, j : j + 8] for i, j in windows)

    node1 = nor_conv(conv01, x)
    node2 = pool(x) + nor_conv(conv12, node1)
    node3 = x + nor_conv(conv23, node2)
    torch.testing.assert_close(cell(x), node3)


def permuted(graph, order):
    """The same graph with its nodes listed in another topological order."""
    place = {old: new for new, old in enumerate(order)}
    nodes = []
    for old in order:
        node = graph.nodes[old]
        reads = tuple(place[source] for source in node.inputs)
        nodes.append(Node(node.operation, reads, node.arguments, node.body))
    return Architecture(tuple(nodes))


def two_branches(last="sum"):
    return chain(
        Node.of("linear", 0, out_features=3),
        Node.of("tanh", 1),
        Node.of("projection", 0, out_features=3),
        Node.of(last, 2, 3),
    )


def test_the_order_in_which_nodes_are_listed_does_not_matter():
    graph = two_branches()
    other = permuted(graph, [0, 3, 1, 2, 4])
    assert graph.nodes != other.nodes
    assert graph == other
    assert hash(graph) == hash(other)
    assert graph.fingerprint == other.fingerprint
    swapped = chain(*graph.nodes[1:4], Node.of("sum", 3, 2))
    assert swapped == graph


def test_the_order_of_inputs_counts_where_it_means_something(monkeypatch):
    monkeypatch.setattr(operations, "OPERATIONS", dict(operations.OPERATIONS))
    register_operation("difference", lambda shapes: (nn.Identity(), shapes[0]))
    graph = two_branches("difference")
    assert chain(*graph.nodes[1:4], Node.of("difference", 3, 2)) != graph


def test_one_branch_read_twice_is_not_two_branches():
    """What each computes from the input looks alike; the weights are not."""
    linear = Node.of("linear", 0, out_features=3)
    once = chain(linear, Node.of("relu", 1), Node.of("relu", 1), Node.of("sum", 2, 3))
    twice = chain(linear, linear, Node.of("relu", 1), Node.of("relu", 2), Node.of("sum", 3, 4))
    shared = chain(linear, linear, Node.of("relu", 1), Node.of("relu", 1), Node.of("sum", 3, 4))
    assert len({once, twice, shared}) == 3


def test_graphs_of_one_fingerprint_are_compared_node_by_node(monkeypatch):
    """Two circles of three and one of six, which refinement cannot tell apart."""

    def rings(*sizes):
        nodes, start = [], 1
        for _ in range(sum(sizes)):
            nodes.append(Node.of("relu", 0))
        for size in sizes:
            for place in range(size):
                reads = start + place, start + (place + 1) % size
                nodes.append(Node.of("sum", *reads))
            start += size
        first = 1 + sum(sizes)
        return chain(*nodes, Node.of("sum", *range(first, first + sum(sizes))))

    assert rings(3, 3).fingerprint == rings(6).fingerprint
    assert rings(3, 3) != rings(6)
    assert rings(3, 3) == rings(3, 3)


def test_costs_of_a_repeated_body_and_counts_of_operations():
    body = Architecture((Node.of("input"), Node.of("linear", 0, out_features=4)))
    graph = chain(Node.of("repeat", 0, body=body, count=3), Node.of("relu", 1))
    built = sum(parameter.numel() for parameter in graph.build().parameters())
    assert graph.num_parameters == built == 3 * 20
    assert graph.flops == 3 * 2 * 4 * 4
    assert graph.output_shape == (4,)
    assert graph.operation_counts() == {"linear": 3, "relu": 1}
