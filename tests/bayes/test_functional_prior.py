import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.means import ConstantMean
from torch.distributions import InverseGamma

from bayes import WeightPrior
from bayes.functional_prior import (
    MomentMatching,
    SlicedMatching,
    WassersteinMatching,
    match_functional_prior,
    match_quality,
    match_report,
)
from bayes.functional_prior.moments import _Sliced
from bayes.functional_prior.second_moments import (
    limit_is_exact,
    sampled_second_moment,
    target_second_moment,
)
from bayes.functional_prior.sliced import directions_like, sliced_wasserstein
from bayes.functional_prior.variables import Variables
from priors.functions import GaussianProcessPrior, ScaleMixturePrior
from priors.kernels.network import NNGPKernel
from priors.networks.finite import NetworkPrior
from priors.networks.infinite import InfiniteNetwork


def shallow(activation, width=20, inputs=3):
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, width), activation, torch.nn.Linear(width, 1)
    )


def inputs(n=40, d=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def rbf(lengthscale=3.0):
    kernel = ScaleKernel(RBFKernel())
    kernel.base_kernel.lengthscale = lengthscale
    kernel.outputscale = 1.0
    return GaussianProcessPrior(kernel)


@pytest.mark.parametrize("activation", [torch.nn.GELU(), torch.nn.LeakyReLU(0.3)])
def test_known_variances_are_recovered(activation):
    true = NetworkPrior(
        shallow(activation), weight_var={"0": 2.0, "2": 0.7}, bias_var={"0": 0.5, "2": 0.2}
    )
    target = GaussianProcessPrior(
        NNGPKernel(
            shallow(activation, width=3),
            weight_var={"0": 2.0, "2": 0.7},
            bias_var={"0": 0.5, "2": 0.2},
        )
    )
    start = NetworkPrior(shallow(activation), weight_var=1.0, bias_var=1.0)
    matched = match_functional_prior(start, target, inputs())
    quality = match_quality(matched, target, inputs(30, seed=1))
    assert quality.covariance_error < 1e-4
    assert quality.wasserstein < 1e-2
    if isinstance(activation, torch.nn.GELU):  # leaky ReLUs identify only products
        for kind in ("weight_var", "bias_var"):
            found, truth = getattr(matched.variances, kind), getattr(true.variances, kind)
            for layer in ("0", "2"):
                assert found[layer].item() == pytest.approx(truth[layer].item(), rel=1e-2)
    assert all(value == 1 for value in start.variances.weight_var.values())


def test_matching_an_rbf_process_improves_held_out_moments_of_the_finite_network():
    start = NetworkPrior(shallow(torch.nn.GELU(), width=4), weight_var=1.0, bias_var=1.0)
    target = rbf()
    matched = match_functional_prior(
        start, target, lambda generator: torch.randn(40, 3, generator=generator), num_sets=2
    )
    X = inputs(12, seed=1)
    before, after = match_quality(start, target, X), match_quality(matched, target, X)
    assert after.covariance_error < 0.25 * before.covariance_error
    # The claim is about the network at its own, small width: check it by drawing networks.
    generator = torch.Generator().manual_seed(0)
    size = 40_000
    f = matched.sample(X, torch.Size([size]), generator=generator)[..., 0].double()
    products = f.unsqueeze(-1) * f.unsqueeze(-2)
    error = products.std(0) / size**0.5
    limit = NNGPKernel(shallow(torch.nn.GELU()), bias_var=1.0)
    for kind in ("weight_var", "bias_var"):
        for layer, value in getattr(matched.variances, kind).items():
            getattr(limit.network.variances, kind)[layer] = value.detach()
    with torch.no_grad():
        kernel = limit.double()(X).to_dense()
    assert ((products.mean(0) - kernel).abs() < 5 * error).all()


def test_result_repeats_and_global_generator_is_left_alone():
    start = NetworkPrior(shallow(torch.nn.ReLU()), weight_var=1.0, bias_var=1.0)
    state = torch.random.get_rng_state()
    first = match_functional_prior(start, rbf(), inputs(20), seed=3)
    second = match_functional_prior(start, rbf(), inputs(20), seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_quality_of_a_perfect_and_a_scaled_match():
    module = shallow(torch.nn.ReLU())
    prior = NetworkPrior(module, weight_var=1.0, bias_var=0.5)
    X = inputs()
    same = GaussianProcessPrior(NNGPKernel(module, weight_var=1.0, bias_var=0.5))
    perfect = match_quality(prior, same, X)
    assert perfect.covariance_error < 1e-12
    # Square roots of rounding errors near zero eigenvalues remain.
    assert perfect.wasserstein < 1e-3
    fourfold = ScaleKernel(NNGPKernel(module, weight_var=1.0, bias_var=0.5))
    fourfold.outputscale = 4.0
    quality = match_quality(prior, GaussianProcessPrior(fourfold), X)
    assert quality.covariance_error == pytest.approx(0.75, rel=1e-5)
    assert quality.variance_error == pytest.approx(0.75, rel=1e-5)
    assert quality.wasserstein == pytest.approx(0.5, rel=1e-3)


def test_what_cannot_be_matched_is_refused():
    prior = NetworkPrior(shallow(torch.nn.ReLU()), weight_var=1.0, bias_var=1.0)
    with pytest.raises(ValueError, match="method must be one of"):
        match_functional_prior(prior, rbf(), inputs(), method="moment")
    for other in (MomentMatching, 3):
        with pytest.raises(TypeError, match=r"such as MomentMatching\(\)"):
            match_functional_prior(prior, rbf(), inputs(), method=other)
    mean = ConstantMean()
    mean.constant = 1.0
    with_mean = GaussianProcessPrior(RBFKernel(), mean)
    with pytest.raises(NotImplementedError, match="has a mean"):
        match_functional_prior(prior, with_mean, inputs())
    with pytest.raises(NotImplementedError, match="has a mean"):
        match_functional_prior(prior, OnlySamples(with_mean), inputs())
    with pytest.raises(TypeError, match="GaussianProcessPrior"):
        match_functional_prior(prior, RBFKernel(), inputs())
    with pytest.raises(ValueError, match="float matrix"):
        match_functional_prior(prior, rbf(), inputs()[None])
    fixed = NetworkPrior(shallow(torch.nn.ReLU()), weight_var=0.0, bias_var=0.0)
    with pytest.raises(ValueError, match="no learnable variance"):
        match_functional_prior(fixed, rbf(), inputs())
    endless = ScaleMixturePrior(RBFKernel(), InverseGamma(torch.tensor(1.0), torch.tensor(1.0)))
    with pytest.raises(ValueError, match="order=1"):
        match_functional_prior(prior, endless, inputs())
    wide = NetworkPrior(shallow(torch.nn.ReLU()), bias_var=1.0, parameterization="mup")
    with pytest.raises(NotImplementedError, match="sliced"):
        match_functional_prior(wide, rbf(), inputs())


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (MomentMatching, ("num_networks", "num_functions", "num_directions")),
        (SlicedMatching, ("num_functions", "num_directions", "target_share", "max_iter")),
        (WassersteinMatching, ("num_iterations", "critic_steps", "critic_pool", "learning_rate")),
    ],
)
def test_settings_that_cannot_be_are_refused(method, settings):
    for name in settings:
        with pytest.raises(ValueError, match=f"{method.__name__} needs {name} >"):
            method(**{name: 0})
    with pytest.raises(ValueError, match="num_corrections >= 0"):
        MomentMatching(num_corrections=-1)


@pytest.mark.parametrize("function", [match_functional_prior, match_quality, match_report])
def test_only_networks_of_gaussian_weights_are_matched(function):
    prior = WeightPrior(NetworkPrior(shallow(torch.nn.Tanh())), weights="laplace")
    with pytest.raises(TypeError, match="NetworkPrior, got WeightPrior; .* weight_prior.network"):
        function(prior, rbf(), inputs())


class OnlySamples:
    """A prior of which nothing is known but draws."""

    def __init__(self, prior):
        self.prior = prior

    def sample(self, X, sample_shape=torch.Size(), *, generator=None):  # noqa: B008
        return self.prior.sample(X, sample_shape, generator=generator)


def deep(*widths, activation=torch.nn.ReLU, inputs=3):
    layers, last = [], inputs
    for width in widths:
        layers += [torch.nn.Linear(last, width), activation()]
        last = width
    return torch.nn.Sequential(*layers, torch.nn.Linear(last, 1))


def second_moment_of_plain_draws(prior, X, size=30_000):
    f = prior.sample(X, torch.Size([size]), generator=torch.Generator().manual_seed(9))[..., 0]
    products = f.unsqueeze(-1) * f.unsqueeze(-2)
    return products.mean(0), products.std(0) / size**0.5


class Twice(torch.nn.Module):
    """Two kinds of units through the same readout."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(h) + self.last(torch.relu(h))


@pytest.mark.parametrize(
    "module",
    [
        deep(4, 3),
        torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.ReLU(), torch.nn.Linear(4, 1)
        ),
        Twice(),
    ],
    ids=["two hidden layers", "normalised", "readout used twice"],
)
def test_second_moments_of_finite_networks_against_plain_monte_carlo(module):
    prior = NetworkPrior(module, weight_var=1.5, bias_var=0.3).double()
    X = inputs(5)
    with torch.no_grad():
        found, error = sampled_second_moment(prior, X, num_networks=8000, seed=1)
        truth, spread = second_moment_of_plain_draws(prior, X)
    assert ((found - truth).abs() < 5 * (error**2 + spread**2).sqrt()).all()
    assert not limit_is_exact(prior)


def test_integrating_the_readout_out_is_worth_many_networks():
    prior = NetworkPrior(deep(30, 30), weight_var=1.5, bias_var=0.3).double()
    X = inputs(5)
    with torch.no_grad():
        _, error = sampled_second_moment(prior, X, num_networks=2000, seed=1)
        _, spread = second_moment_of_plain_draws(prior, X, 2000)
    assert (error.diagonal() < 0.5 * spread.diagonal()).all()


def test_sampled_second_moments_are_smooth_in_the_variances():
    prior = NetworkPrior(deep(4, 3, activation=torch.nn.Tanh), weight_var=1.5, bias_var=0.3)
    prior = prior.double()
    X, raw = inputs(4), prior.variances.raw_weight_var_2

    def total():
        return sampled_second_moment(prior, X, num_networks=50, seed=1)[0].sum()

    (slope,) = torch.autograd.grad(total(), raw)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            raw.add_(sign * 1e-4)
            values.append(total())
            raw.sub_(sign * 1e-4)
    assert float(slope) == pytest.approx(float(values[0] - values[1]) / 2e-4, rel=1e-6)


@pytest.mark.parametrize(
    ("module", "exact"),
    [
        (shallow(torch.nn.Tanh()), True),
        (torch.nn.Linear(3, 1), True),
        (deep(4, 4), False),
        (torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 1)),
         False),
    ],
)  # fmt: skip
def test_where_the_limit_is_exact(module, exact):
    assert limit_is_exact(NetworkPrior(module, bias_var=1.0)) == exact


@pytest.mark.slow
def test_corrections_end_where_the_sampled_objective_is_least():
    """As direct minimisation over the same networks, which costs a backward pass at every step."""
    start = NetworkPrior(deep(2, 2, activation=Erf), weight_var=2.0, bias_var=0.5)
    X = inputs(5)
    truth, _ = target_second_moment(rbf(2.0), X, num_functions=2, seed=0)

    sliced = _Sliced([truth], [directions_like(X, 1024, torch.Generator().manual_seed(0))])

    def error(prior):
        moment, _ = sampled_second_moment(prior, X, num_networks=50, seed=0)
        return sliced.distance([moment])

    found = {}
    for corrections in (0, 8):
        method = MomentMatching(num_networks=50, num_corrections=corrections)
        matched = match_functional_prior(start, rbf(2.0), X, method=method, num_restarts=1).double()
        found[corrections] = error(matched).item()
    direct = matched  # on from there
    best = Variables(direct).minimise(lambda: error(direct), max_iter=20)
    assert found[8] < found[0]
    assert found[8] - best < 0.2 * (found[0] - best)


def test_the_objective_of_moments_is_the_sliced_distance_of_gaussians():
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64)
    F, K = roots @ roots.mT
    directions = directions_like(F, 32, generator)
    sliced = _Sliced([K], [directions])
    noise = torch.randn(2, 20_000, 6, generator=generator, dtype=torch.float64)
    f, g = noise @ roots.mT
    drawn = sliced_wasserstein(f, g, directions).square() / (g @ directions).square().mean()
    assert float(sliced.distance([F])) == pytest.approx(float(drawn), rel=0.05)
    assert float(sliced.distance([K])) == 0
    assert float(sliced.distance([4 * K])) == pytest.approx(1.0)


def test_targets_of_all_kinds_have_their_second_moments():
    X, kernel = inputs(6), rbf().kernel
    truth = kernel(X).to_dense().double().detach()
    mixture = ScaleMixturePrior(kernel, InverseGamma(torch.tensor(3.0), torch.tensor(5.0)))
    shallow_one = NetworkPrior(shallow(torch.nn.GELU()), bias_var=1.0)
    cases = (
        (rbf(), truth, 0.0),
        (mixture, 2.5 * truth, 0.0),
        (OnlySamples(rbf()), truth, 0.1),
        (shallow_one, InfiniteNetwork(shallow_one).nngp(X).detach(), 0.0),
    )
    for target, expected, most in cases:
        found, error = target_second_moment(target, X, num_functions=4000, seed=0)
        assert ((found - expected).abs() <= 5 * error + 1e-6).all()
        assert float(error.max()) <= most


def test_variances_not_ratios_to_the_start_are_bounded():
    """A start at 25 may go to 30, one at 0.05 to 1e-4; readouts follow the target's variance."""
    for start in (25.0, 0.05):
        prior = NetworkPrior(shallow(torch.nn.Tanh()), weight_var=start, bias_var=start)
        variables = Variables(prior, target_variance=100.0)
        for bound, hidden, last in ((variables.low, 1e-4, 1e-2), (variables.high, 30.0, 3000.0)):
            variables.set(bound)
            assert prior.variances.weight_var["0"].item() == pytest.approx(hidden, rel=1e-4)
            assert prior.variances.bias_var["2"].item() == pytest.approx(last, rel=1e-4)


class Erf(torch.nn.Module):
    def forward(self, x):
        return torch.erf(x)


def test_length_scales_are_matched_too():
    kernel = ScaleKernel(RBFKernel(ard_num_dims=2))
    kernel.base_kernel.lengthscale = torch.tensor([2.0, 30.0])
    target = GaussianProcessPrior(kernel)
    prior = NetworkPrior(shallow(Erf(), inputs=2), weight_var=2.0, bias_var=1.0, ard_num_dims=2)
    matched = match_functional_prior(prior, target, inputs(10, 2), num_restarts=1)
    relevant, irrelevant = matched.variances.input_scale.lengthscale.flatten().tolist()
    assert irrelevant > 5 * relevant
