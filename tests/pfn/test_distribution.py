"""The output distribution against numerical integration of its own density, and its accuracy."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad_vec
from scipy.stats import kstest
from torch.utils._python_dispatch import TorchDispatchMode

from pfn import BarDistribution
from pfn.distribution import binning_error, choose_num_nodes, place_nodes

BORDERS = torch.tensor([-2.0, -1.2, -0.9, -0.1, 0.0, 0.4, 1.1, 2.5], dtype=torch.float64)
PROBABILITIES = [1e-9, 1e-5, 1e-3, 0.01, 0.2, 0.5, 0.77, 0.99, 0.999, 1 - 1e-5, 1 - 1e-9]


@pytest.fixture
def bars():
    return BarDistribution(BORDERS, tail_scale=0.7)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(3, 8, generator=generator, dtype=torch.float64)


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def integral(bars, logits, f, low=-math.inf, high=math.inf):
    """Integrals of f times the densities, `[3]`, piece by piece and tails to their end."""

    def integrand(y):
        return (f(y) * bars.log_prob(logits, double(y)).exp()).numpy()

    inner = [b for b in BORDERS.tolist() if low < b < high]
    total = torch.zeros(3, dtype=torch.float64)
    for a, b in zip([low, *inner], [*inner, high], strict=True):
        total += torch.tensor(quad_vec(integrand, a, b, epsabs=0, epsrel=1e-12)[0])
    return total


def assert_relative(found, expected, rtol=1e-8):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0)


def test_density_integrates_to_one_and_to_the_moments(bars, logits):
    total = integral(bars, logits, lambda y: 1.0)
    assert_relative(total, torch.ones_like(total), 1e-10)
    mean = integral(bars, logits, lambda y: y)
    torch.testing.assert_close(bars.mean(logits), mean, rtol=0, atol=1e-9)
    assert_relative(bars.variance(logits), integral(bars, logits, lambda y: (y - mean) ** 2))


@pytest.mark.fast_for("-300.0", "-2.0", "0.2", "50.0")
@pytest.mark.parametrize("y", [-300.0, -3.0, -2.0, -1.0, 0.0, 0.2, 2.0, 2.5, 4.0, 50.0])
def test_cdf_and_survival_are_integrals_also_far_out(bars, logits, y):
    below = integral(bars, logits, lambda _: 1.0, high=y)
    above = integral(bars, logits, lambda _: 1.0, low=y)
    assert_relative(bars.cdf(logits, double(y)), below)
    assert_relative(bars.log_excess(logits, double(y), 0, above=False).exp(), below)
    assert_relative(bars.log_excess(logits, double(y), 0).exp(), above)


@pytest.mark.fast_for("True--40.0", "True--2.0", "False-0.35", "False-80.0")
@pytest.mark.parametrize("at", [-40.0, -2.5, -2.0, -1.0, 0.0, 0.35, 2.5, 6.0, 80.0])
@pytest.mark.parametrize("above", [True, False])
def test_partial_moments_are_integrals_in_both_directions(bars, logits, at, above):
    sign, point = (1.0 if above else -1.0), double(at)
    limits = {"low": at} if above else {"high": at}
    for order in (0, 1):
        moment = integral(bars, logits, lambda y, k=order: (sign * (y - at)) ** k, **limits)
        assert_relative(bars.log_excess(logits, point, order, above).exp(), moment)


def test_density_is_continuous(bars, logits):
    steps = torch.tensor([-1e-12, 0.0, 1e-12], dtype=torch.float64)
    density = bars.log_prob(logits[:, None, None], BORDERS[:, None] + steps).exp()
    assert (density - density[..., 1:2]).abs().max() < 1e-9


def test_density_at_the_nodes_interpolates(bars, logits):
    # the mixture: weights over the areas of the hat functions, 1/5 of the scale for each tail
    area = torch.tensor([0.4 + 0.14, 0.55, 0.55, 0.45, 0.25, 0.55, 1.05, 0.7 + 0.14]).double()
    height = logits.softmax(-1) / area
    torch.testing.assert_close(
        bars.log_prob(logits[:, None].expand(3, 8, 8), BORDERS.expand(3, 8)), height.log()
    )
    between = bars.log_prob(logits, double(0.1).expand(3)).exp()
    torch.testing.assert_close(between, 0.75 * height[:, 4] + 0.25 * height[:, 5])
    tail = bars.log_prob(logits, double(3.2).expand(3)).exp()
    torch.testing.assert_close(tail, height[:, -1] * 2**-6)


def test_quantile_inverts_cdf_also_in_the_tails(bars, logits):
    p = double(PROBABILITIES).expand(3, -1)
    rows = logits[:, None].expand(*p.shape, -1)
    y = bars.quantile(logits[:, None], p)
    assert (y.diff(dim=-1) > 0).all()
    torch.testing.assert_close(bars.cdf(rows, y), p, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(bars.log_excess(rows, y, 0).exp(), 1 - p, atol=1e-15, rtol=1e-9)
    # one distribution, many probabilities
    torch.testing.assert_close(bars.quantile(logits[0], p[0]), y[0])


@pytest.mark.parametrize("slope", [0.0, 1e-12, -1e-12, 30.0, -30.0, 700.0, -700.0])
def test_quantile_where_the_density_is_flat_or_very_steep(slope):
    # equal steps: the density is exp(slope) times larger at each next node
    bars = BarDistribution(torch.arange(4.0).double(), tail_scale=5.0)
    area = torch.tensor([1.5, 1.0, 1.0, 1.5], dtype=torch.float64)
    logits = (slope * torch.arange(4.0).double() + area.log()).requires_grad_()
    p = double([1e-6, 0.1, 0.3, 0.5, 0.6, 0.9, 1 - 1e-6])
    y = bars.quantile(logits, p)
    torch.testing.assert_close(bars.cdf(logits.expand(7, 4), y), p, atol=1e-12, rtol=1e-9)
    y.sum().backward()
    assert logits.grad.isfinite().all()


@given(
    st.lists(st.floats(-40, 40), min_size=8, max_size=8),
    st.floats(1e-8, 1 - 1e-8),
    st.floats(-30, 30),
)
@settings(max_examples=60, deadline=None)
def test_parts_agree_for_any_logits(values, level, y):
    bars, row = BarDistribution(BORDERS, tail_scale=0.7), double(values)
    point, p = double(y).requires_grad_(), double(level)
    cdf, survival = bars.cdf(row, point), bars.log_excess(row, point, 0).exp()
    assert (cdf + survival).item() == pytest.approx(1, abs=1e-12)
    (density,) = torch.autograd.grad(cdf, point)
    expected = bars.log_prob(row, point).exp().item()
    assert density.item() == pytest.approx(expected, rel=1e-8, abs=1e-14)
    assert bars.cdf(row, bars.quantile(row, p)).item() == pytest.approx(level, abs=1e-9)
    gain, loss = (bars.log_excess(row, point, 1, above).exp() for above in (True, False))
    assert (gain - loss).item() == pytest.approx((bars.mean(row) - y).item(), abs=1e-10)
    # d/dy E[(v - y)+] = -P(v > y)
    (slope,) = torch.autograd.grad(gain, point)
    assert -slope.item() == pytest.approx(survival.item(), rel=1e-8, abs=1e-14)


def test_samples_follow_the_distribution(bars, logits):
    generator = torch.Generator().manual_seed(3)
    y = bars.rsample(logits, torch.Size([20_000]), generator)
    assert y.shape == (20_000, 3)
    for sample, row in zip(y.T, logits, strict=True):
        law = kstest(sample.numpy(), lambda v, r=row: bars.cdf(r, torch.as_tensor(v)).numpy())
        assert law.pvalue > 1e-3


@pytest.mark.parametrize("maximize", [True, False])
def test_improvement_far_beyond_all_nodes(logits, maximize):
    for dtype, rtol in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        bars = BarDistribution(BORDERS.to(dtype), tail_scale=0.7)
        weight = logits.log_softmax(-1)[:, -1 if maximize else 0]
        weight = weight + math.log(0.14 / ((0.7 if maximize else 0.4) + 0.14))  # of the tail
        for reach in (1e4, 1e20):
            far = torch.full((3,), reach if maximize else -reach, dtype=dtype)
            distance = math.log1p((reach - (2.5 if maximize else 2.0)) / 0.7)
            chance = bars.log_excess(logits.to(dtype), far, 0, maximize)
            torch.testing.assert_close(chance.double(), weight - 5 * distance, rtol=rtol, atol=0)
            gain = bars.log_excess(logits.to(dtype), far, 1, maximize)
            exact = weight + math.log(0.7 / 4) - 4 * distance
            torch.testing.assert_close(gain.double(), exact, rtol=rtol, atol=0)


def test_single_precision_agrees_with_double_also_where_weights_underflow(logits):
    single = BarDistribution(BORDERS.float(), tail_scale=0.7)
    bars = BarDistribution(BORDERS.float().double(), tail_scale=0.7)
    row = torch.tensor([-300.0, -250, -200, 0, 1, 0, -200, -300], dtype=torch.float64)
    for weights in (*logits, row):
        y = torch.tensor([-50.0, -2.3, -1.1, -0.05, 0.2, 1.0, 1.9, 2.5, 30.0])
        rows = weights.expand(9, -1)
        found, exact = single.log_prob(rows.float(), y), bars.log_prob(rows, y.double())
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
        for order, above in product((0, 1), (True, False)):
            exact = bars.log_excess(rows, y.double(), order, above)
            found = single.log_excess(rows.float(), y, order, above).double()
            torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
        for name in ("mean", "variance"):
            found = getattr(single, name)(weights.float()).double()
            torch.testing.assert_close(found, getattr(bars, name)(weights), rtol=1e-5, atol=1e-5)
    p = torch.tensor([1e-7, 1e-3, 0.3, 0.5, 0.9, 1 - 1e-6])
    y, exact = (
        single.quantile(logits.float()[:, None], p),
        bars.quantile(logits[:, None], p.double()),
    )
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_everywhere(logits, dtype):
    bars = BarDistribution(BORDERS.to(dtype), tail_scale=0.7)
    near = torch.stack([torch.nextafter(b, b + i) for b in bars.borders for i in (-1, 0, 1)])
    y = torch.cat([near, torch.tensor([-1e20, -1e3, -3, 3, 1e3, 1e20, 1e-38, -1e-42])]).to(dtype)
    alternating = torch.tensor([-300.0, 300] * 4).double()
    for row in (*logits, *(scale * alternating for scale in (0.1, 1, -1))):
        weights = row.to(dtype).expand(len(y), -1).clone().requires_grad_()
        point = y.clone().requires_grad_()
        p = torch.linspace(0.001, 0.999, len(y)).to(dtype).requires_grad_()
        values = [bars.log_prob(weights, point), bars.quantile(weights, p)]
        values += [bars.cdf(weights, point)]
        for order, above in product((0, 1), (True, False)):
            values.append(bars.log_excess(weights, point, order, above))
        for value in values:
            assert value.isfinite().all()
            inputs = (weights, p) if value is values[1] else (weights, point)
            for gradient in torch.autograd.grad(value.sum(), inputs, retain_graph=True):
                assert gradient.isfinite().all()


def test_gradients(bars, logits):
    logits.requires_grad_()
    y = torch.tensor([-3.0, 0.13, 4.2], dtype=torch.float64, requires_grad=True)
    node = torch.tensor([-1.2, 0.0, 1.1], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([0.003, 0.4, 0.998], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(bars.log_prob, (logits, y))
    torch.autograd.gradcheck(lambda v: bars.log_prob(v, node.detach()), logits)
    torch.autograd.gradcheck(bars.quantile, (logits, p))
    torch.autograd.gradcheck(lambda v: (bars.mean(v), bars.variance(v)), logits)
    for point in (y, node):
        torch.autograd.gradcheck(bars.cdf, (logits, point))
        for order, above in product((0, 1), (True, False)):
            torch.autograd.gradcheck(
                lambda v, b, k=order, a=above: bars.log_excess(v, b, k, a), (logits, point)
            )


@pytest.mark.parametrize(
    ("rows", "values"),
    [((), (5,)), ((3,), (2, 3)), ((3, 1), (3, 5)), ((2, 1, 3), (4, 1, 5, 3)), ((3,), (0, 3))],
)
def test_broadcasting_is_a_loop(bars, rows, values):
    """Values and gradients, with dimensions that the logits lack before and between theirs."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(*rows, 8, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    shape = torch.broadcast_shapes(rows, values)
    for method in (bars.log_prob, bars.cdf, bars.quantile):
        at = torch.rand(values, generator=generator, dtype=torch.float64)
        at = (at if method == bars.quantile else 8 * at - 4).requires_grad_()
        every = zip(
            logits.expand(*shape, 8).flatten(0, -2), at.expand(shape).flatten(), strict=True
        )
        expected = [method(row, value) for row, value in every]
        expected = torch.stack(expected).reshape(shape) if expected else at
        found = method(logits, at)
        torch.testing.assert_close(found, expected)
        weights = torch.rand(shape, generator=generator, dtype=torch.float64)
        gradients = torch.autograd.grad((weights * found).sum(), (logits, at))
        if len(expected):
            wanted = torch.autograd.grad((weights * expected).sum(), (logits, at))
            torch.testing.assert_close(gradients, wanted)


class LargestTensor(TorchDispatchMode):
    """Counts the numbers of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.untyped_storage().nbytes() // value.itemsize)
        return made


def test_memory_does_not_grow_with_values_times_nodes():
    bars = BarDistribution(torch.linspace(-3, 3, 200), tail_scale=0.7)
    logits = torch.randn(7, 200, generator=torch.Generator().manual_seed(0)).requires_grad_()
    p = torch.rand(100, 7, generator=torch.Generator().manual_seed(1))
    for method in (bars.quantile, bars.log_prob, bars.cdf):
        with LargestTensor() as largest:
            method(logits, p).sum().backward()
        assert largest.numel <= 2 * logits.numel()  # and not 100 times them


def test_gradient_at_a_node_is_one_sided(bars, logits):
    y = BORDERS.clone().requires_grad_()
    log_p = bars.log_prob(logits[0].expand(8, -1), y)
    (slope,) = torch.autograd.grad(log_p.sum(), y)
    beside = [bars.log_prob(logits[0].expand(8, -1), BORDERS + h) for h in (-1e-7, 1e-7)]
    sides = torch.stack([(beside[0] - log_p) / -1e-7, (beside[1] - log_p) / 1e-7])
    assert ((sides - slope).abs().amin(0) < 1e-4 * (1 + slope.abs())).all()


def test_half_precision_logits_are_widened(logits):
    bars, y = BarDistribution(BORDERS.float(), tail_scale=0.7), torch.tensor([0.1, 0.2, 5.0])
    half = logits.bfloat16()
    torch.testing.assert_close(bars.log_prob(half, y), bars.log_prob(half.float(), y))


def test_bad_arguments(bars):
    for borders in (
        [0.0, 0.0, 1.0],
        [1.0, 0.0],
        [0.0],
        [0.0, math.inf],
        [0.0, math.nan],
        [[0.0, 1.0]],
    ):
        with pytest.raises(ValueError, match="strictly increasing"):
            BarDistribution(torch.tensor(borders), tail_scale=1.0)
    for scale, index in ((1.0, 2.0), (0.0, 5.0), (math.inf, 5.0), (math.nan, 5.0)):
        with pytest.raises(ValueError, match="index > 2"):
            BarDistribution(torch.tensor([0.0, 1.0]), tail_scale=scale, tail_index=index)
    with pytest.raises(ValueError, match="expected 8 logits, one per node, got 9"):
        bars.mean(torch.zeros(9))


# Accuracy. Posteriors N(mean, sd^2) in units of a standard normal distribution of the targets.
MEANS, SDS = double([0, 0, 0, 1.5, 2.5]), double([1, 0.1, 0.01, 0.01, 0.05])


def error_of_bars(edges, mean, sd):
    """Least KL(N(mean, sd^2) || piecewise constant): every bar has the normal's mass."""
    inner = torch.special.ndtr((edges - mean) / sd).diff()
    constant = torch.special.xlogy(inner, inner / edges.diff()).sum()
    return (-0.5 * math.log(2 * math.pi * math.e * sd**2) - constant).item()


# The published floors of bars: K equal-mass bars of N(0, 1), the last ones up to the extremes of
# a sample of about 10^4 targets, 3.7; they enter the first and the last column.
@pytest.mark.parametrize(
    ("K", "bars", "hats"),
    [
        (100, [0.020, 0.003, 0.257, 0.686, 2.43], [0.0026, 1e-5, 0.0178, 0.978, 1.442]),
        (300, [0.006, 0.0003, 0.029, 0.279, 0.579], [0.0005, 1e-6, 0.0009, 0.0277, 0.200]),
        (1000, [0.0015, 0.0, 0.003, 0.024, 0.060], [0.0001, 1e-7, 1e-5, 0.0006, 0.0061]),
    ],
)
def test_floors_of_bars_and_of_hats(K, bars, hats):
    edges = torch.special.ndtri(torch.linspace(0, 1, K + 1, dtype=torch.float64)[1:-1])
    closed = torch.cat([double([-3.7]), edges, double([3.7])])
    for i in (1, 2, 3, 4) if K > 100 else (1, 2, 3):
        found = error_of_bars(closed, MEANS[i].item(), SDS[i].item())
        assert found == pytest.approx(bars[i], rel=0.08, abs=0.0006)
    found = binning_error(BarDistribution(edges, tail_scale=1.0), MEANS, SDS)
    torch.testing.assert_close(found, double(hats), rtol=0.05, atol=1e-4)


@pytest.mark.parametrize(
    ("mean", "sd"),
    [
        (0.2, 0.05),
        (3.4, 0.3),
        pytest.param(0.2, 0.4, marks=pytest.mark.slow),
        pytest.param(1.3, 1.0, marks=pytest.mark.slow),
    ],
)
def test_binning_error_is_the_minimum(mean, sd):
    nodes = torch.linspace(-3, 3, 25, dtype=torch.float64)
    bars = BarDistribution(nodes, tail_scale=0.4)
    y = mean + sd * torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    log_p = torch.distributions.Normal(mean, sd).log_prob(y)
    mass = log_p.exp() / log_p.exp().sum()
    logits = (-0.5 * ((nodes - mean) / (sd + 0.2)).square()).requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        error = (mass * (log_p - bars.log_prob(logits.expand(len(y), -1), y))).sum()
        error.backward()
        return error

    optimizer.step(closure)
    least = closure().item()
    found = binning_error(bars, double(mean), double(sd), iterations=200).item()
    assert found == pytest.approx(least, abs=2e-5)
    default = binning_error(bars, double(mean), double(sd)).item()
    assert found - 1e-9 <= default < found + 1e-3


def targets(kind, size=20_000):
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(size, generator=generator, dtype=torch.float64)
    if kind == "heavy":
        return z / torch.randn(size, 3, generator=generator).double().square().mean(-1).sqrt()
    return {"normal": z, "atoms": z.round(), "two": (z > 0).double(), "small": z[:30]}[kind]


@pytest.mark.covering
@pytest.mark.parametrize("kind", ["normal", "heavy", "atoms", "two", "small"])
@pytest.mark.parametrize("num", [2, 64, 300])
def test_placed_nodes_make_a_distribution(kind, num):
    z = targets(kind).float()
    nodes, scale = place_nodes(z, num)
    assert nodes.shape == (num,)
    assert nodes.dtype == torch.float32
    bars = BarDistribution(nodes, tail_scale=scale)
    inside = ((z >= nodes[0]) & (z <= nodes[-1])).double().mean()
    assert inside > 0.85
    assert nodes.diff().max() <= 2.1 * (nodes[-1] - nodes[0]) / (num - 1)
    assert bars.log_prob(torch.zeros(len(z), num), z).isfinite().all()


def test_tail_scale_is_that_of_the_law_of_the_targets():
    # targets whose tails are Lomax laws of index 5 and scale 0.6 beyond 1
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(200_000, generator=generator, dtype=torch.float64)
    tail = 1 + 0.6 * (torch.rand(200_000, generator=generator).double() ** (-1 / 5) - 1)
    z = torch.where(u < 0.8, 2.5 * u - 1, torch.where(u < 0.9, tail, -tail))
    nodes, scale = place_nodes(z, 50, tail_mass=0.02)
    # beyond the quantile q of a Lomax law lies one of scale s + (q - 1)
    assert scale == pytest.approx(0.6 + (nodes[-1] - 1).item(), rel=0.05)


def test_enough_nodes_resolve_the_narrowest_posteriors():
    z, means, sds = targets("normal"), double([0, 1.5, -2.5]), double([0.02, 0.05, 0.05])
    num = choose_num_nodes(z, means, sds)
    assert 100 < num < 400

    def error(n):
        nodes, scale = place_nodes(z, n)
        return binning_error(BarDistribution(nodes, tail_scale=scale), means, sds).mean()

    assert error(num) <= 0.003 < error(int(num / 1.25))
    with pytest.raises(ValueError, match="64 nodes leave"):
        choose_num_nodes(z, means, sds / 10, largest=64)


def test_bad_targets():
    for z in ([1.0], [1.0, 1.0], [1.0, math.nan], [1.0, math.inf]):
        with pytest.raises(ValueError, match="two different targets"):
            place_nodes(torch.tensor(z), 10)
    with pytest.raises(ValueError, match="num >= 2"):
        place_nodes(torch.tensor([0.0, 1.0]), 1)
    bars = BarDistribution(BORDERS, tail_scale=1.0)
    with pytest.raises(ValueError, match="positive standard deviations"):
        binning_error(bars, double([0.0]), double([0.0]))
