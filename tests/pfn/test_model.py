"""The network and the models it makes: invariances, units, files, BoTorch."""

import copy
import dataclasses
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from botorch.acquisition import qLogExpectedImprovement
from botorch.models.transforms.input import Normalize
from botorch.optim import optimize_acqf
from botorch.sampling.normal import SobolQMCNormalSampler
from torch import nn
from torch.distributions.transforms import AffineTransform, ExpTransform, PowerTransform

import pfn
from pfn import PFN, ArchitectureConfig, BarDistribution, BarPosterior
from pfn.familiarity import context_score
from priors import LogExpectedImprovement, TailCompression
from priors.posteriors.transforms import of_outputs
from priors.random_state import seeded
from priors.testing import ModelContract, PosteriorContract

SMALL = ArchitectureConfig(
    max_features=4, embedding=16, layers=3, heads=2, hidden=24, thinking_rows=3, bars=21
)


KINDS = {
    "slots": {},
    "cells": {"cell_layers": 2, "cell_embedding": 16, "inducing": 3, "summaries": 2},
    "decoupled": {"decoupled_values": True},
}


def random_network(kind="slots", inputs="standardised", targets="standardised", **changes):
    """A random network in which every part matters: no output projection is zero."""
    architecture = dataclasses.replace(SMALL, **KINDS[kind], **changes)
    borders = None if architecture.classes else torch.linspace(-2.5, 2.5, 21)
    known = {"max_buffer": 6, "missing": True, "categorical": True}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = PFN(
            architecture, borders, tail_scale=0.7, inputs=inputs, targets=targets, metadata=known
        )
        for parameter in made.network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return made.double().eval()


@pytest.fixture
def network():
    return random_network()


@pytest.fixture(params=KINDS)
def each_network(request):
    return random_network(request.param)


def data(n, d=3, batch=(), dtype=torch.float64, seed=0, m=1):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(*batch, n, d, generator=generator, dtype=dtype)
    y = 3 + 2 * torch.randn(*batch, n, m, generator=generator, dtype=dtype)
    return X, y


class TestBarPosteriorContract(PosteriorContract):
    def make_posterior(self, dtype):
        generator = torch.Generator().manual_seed(1)
        logits = torch.randn(3, 2, 1, 11, generator=generator, dtype=torch.float64).to(dtype)
        borders = torch.tensor([-3, -2, -1.2, -0.5, -0.1, 0, 0.3, 0.8, 1.5, 2, 4], dtype=dtype)
        return BarPosterior(BarDistribution(borders, tail_scale=0.6), logits)

    def test_density_integrates_to_one_and_is_the_derivative_of_the_cdf(self):
        # Trapezia are no good for a density that jumps; its cdf has an exact derivative.
        posterior = self.make_posterior(torch.float64)
        points = torch.cat([torch.linspace(-9.97, 9.97, 301), torch.tensor([-1e8, 1e8])])
        for y in points.double():
            values = y.expand(3, 2, 1).clone().requires_grad_()
            total = posterior.cdf(values)
            (slope,) = torch.autograd.grad(total.sum(), values)
            torch.testing.assert_close(slope, posterior.log_prob(values).exp())
        torch.testing.assert_close(total, torch.ones_like(total))  # at 1e8
        assert (posterior.cdf(torch.full((3, 2, 1), -1e8).double()) < 1e-12).all()


def answers(model, X):
    posterior = model.posterior(X, observation_noise=True)
    return torch.stack([posterior.mean, posterior.variance, posterior.quantile(torch.tensor(0.9))])


class TestModelContract(ModelContract):
    def make_model(self, dtype):
        return random_network().condition(*data(12, dtype=dtype))

    def make_X(self, dtype):
        return data(4, batch=(3,), dtype=dtype, seed=1)[0]

    def test_noise_widens(self):
        pytest.skip("two separate heads: in a random network neither is wider by construction")


def test_order_of_the_context_does_not_matter(each_network):
    network = each_network
    X, y = data(20)
    Q, _ = data(7, seed=1)
    order = torch.randperm(20)
    torch.testing.assert_close(
        answers(network.condition(X[order], y[order]), Q), answers(network.condition(X, y), Q)
    )
    # and the context does matter
    assert (
        answers(network.condition(X, -y), Q) - answers(network.condition(X, y), Q)
    ).abs().max() > 0.1


def test_queries_do_not_see_each_other(each_network):
    network = each_network
    X, y = data(9)
    Q, _ = data(6, seed=1)
    model = network.condition(X, y)
    torch.testing.assert_close(answers(model, Q)[:, :1], answers(model, Q[:1]))


def test_a_padded_context_equals_the_unpadded(each_network):
    network = each_network
    X, y = data(5, batch=(2,))
    Q, _ = data(4, batch=(2,), seed=1)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[:, 5:] = False
    padding_X, padding_y = data(3, batch=(2,), seed=2)
    full = network.encode(
        torch.cat([X, 9 * padding_X], 1), torch.cat([y, padding_y], 1)[..., 0], mask=mask
    )
    own = network.encode(X, y[..., 0])
    torch.testing.assert_close(full.location, own.location)
    torch.testing.assert_close(full.scale, own.scale)
    more = data(2, batch=(2,), seed=3)
    longer = [network.append(e, more[0], more[1][..., 0]) for e in (full, own)]
    for one, other in ((full, own), longer):
        for a, b in zip(network.decode(one, Q), network.decode(other, Q), strict=True):
            torch.testing.assert_close(a, b)


def test_column_seeds_draw_the_order_of_the_slots(network):
    X, y = data(9)
    Q, _ = data(5, seed=1)
    natural = answers(network.condition(X, y), Q)
    assert torch.equal(answers(network.condition(X, y, column_seed=0), Q), natural)
    orders = {
        order: answers(network.condition(X[:, list(order)], y), Q[:, list(order)])
        for order in itertools.permutations(range(3))
    }
    met = set()
    for seed in range(1, 40):
        found = answers(network.condition(X, y, column_seed=seed), Q)
        equal = [order for order, value in orders.items() if torch.allclose(found, value)]
        assert len(equal) == 1
        met.update(equal)
    assert met == set(orders)  # all of them, so that their law is invariant


@pytest.mark.parametrize("seed", [0, 3])
def test_features_beyond_the_slots_are_left_out_with_a_warning(network, seed):
    X, y = data(9, d=6)
    Q, _ = data(5, d=6, seed=1)
    X[2, 1] = Q[3, 4] = math.nan
    kind = torch.tensor([False, True, False, False, True, False])
    with pytest.warns(UserWarning, match="up to 4 features and got 6; it uses 4 of them"):
        model = network.condition(X, y, column_seed=seed, categorical=kind)
    used = list(range(4))
    if seed:
        used = torch.randperm(6, generator=torch.Generator().manual_seed(seed))[:4].tolist()
    direct = network.condition(X[:, used], y, categorical=kind[used])
    torch.testing.assert_close(answers(model, Q), answers(direct, Q[:, used]))
    more, values = data(2, d=6, seed=5)
    model = model.condition_on_observations(more, values)
    direct = direct.condition_on_observations(more[:, used], values)
    torch.testing.assert_close(answers(model, Q), answers(direct, Q[:, used]))


def test_zero_features_slots_equal_missing_ones_only_with_the_same_count(network):
    X, y = data(6, d=2)
    wide = torch.cat([X, torch.zeros_like(X)], dim=-1)
    Q, _ = data(3, d=2, seed=1)
    a = network.condition(X, y)
    b = network.condition(wide, y)
    difference = answers(a, Q) - answers(b, torch.cat([Q, torch.zeros_like(Q)], -1))
    assert difference.abs().max() > 1e-3  # the network is told how many features there are


@pytest.mark.parametrize("observation_noise", [True, False])
def test_affine_equivariance_under_the_default_transforms(network, observation_noise):
    X, y = data(12)
    Q, _ = data(5, seed=1)
    one = network.condition(X, y).posterior(Q, observation_noise=observation_noise)
    two = network.condition(100 + 7 * X, 5 - 0.01 + 30 * y).posterior(
        100 + 7 * Q, observation_noise=observation_noise
    )
    torch.testing.assert_close(two.mean, 5 - 0.01 + 30 * one.mean)
    torch.testing.assert_close(two.variance, 900 * one.variance)
    y_test = one.mean + 0.3
    log_jacobian = torch.tensor(30.0, dtype=torch.float64).log()
    torch.testing.assert_close(
        two.log_prob(5 - 0.01 + 30 * y_test), one.log_prob(y_test) - log_jacobian
    )


def test_density_in_units_of_y_integrates_to_one_and_has_the_stated_mean(network):
    X, y = data(15)
    Q, _ = data(2, seed=1)
    posterior = network.condition(X, y).posterior(Q, observation_noise=True)
    grid = torch.linspace(-400, 400, 800_001, dtype=torch.float64)
    density = posterior.log_prob(grid[:, None, None]).exp()
    step = grid[1] - grid[0]
    torch.testing.assert_close(density.sum(0) * step, torch.ones(2, 1).double(), rtol=1e-3, atol=0)
    mean = (density * grid[:, None, None]).sum(0) * step
    torch.testing.assert_close(mean, posterior.mean, rtol=2e-3, atol=2e-3)


def test_batches_of_data_sets_and_of_queries_equal_loops(each_network):
    network = each_network
    X, y = data(8, batch=(2, 3))
    Q, _ = data(5, batch=(4, 1, 3), seed=1)
    together = answers(network.condition(X, y), Q)
    assert together.shape == (3, 4, 2, 3, 5, 1)
    for i in range(2):
        for j in range(3):
            one = answers(network.condition(X[i, j], y[i, j]), Q[:, 0, j])
            torch.testing.assert_close(together[:, :, i, j], one)


def test_queries_broadcast_over_data_sets_wherever_their_dimensions_are(network):
    X, y = data(8, batch=(2, 1), m=2)
    Q, _ = data(5, batch=(3,), seed=1)
    model = network.condition(X, y)
    together = answers(model, Q)  # [quantities, 2, 3, 5, 2]
    joint = model.posterior(Q, observation_noise=True).rsample(torch.Size([2]))
    assert joint.shape == (2, 2, 3, 5, 2)
    for i, j in itertools.product(range(2), range(3)):
        one = answers(network.condition(X[i, 0], y[i, 0]), Q[j])
        torch.testing.assert_close(together[:, i, j], one)
    chosen = model.posterior(Q, output_indices=[1]).mean
    torch.testing.assert_close(chosen, model.posterior(Q).mean[..., 1:])
    assert model.posterior(Q[:0]).mean.shape == (2, 0, 5, 2)


def test_several_outputs_equal_one_by_one(each_network):
    network = each_network
    X, y = data(8, m=3)
    Q, _ = data(5, seed=1)
    model = network.condition(X, y)
    together = answers(model, Q)
    for k in range(3):
        torch.testing.assert_close(
            together[..., k : k + 1], answers(network.condition(X, y[:, k]), Q)
        )
    chosen = model.posterior(Q, output_indices=[2, 0], observation_noise=True)
    torch.testing.assert_close(chosen.mean, together[0][..., [2, 0]])


def test_query_chunks_do_not_change_anything(network):
    X, y = data(8)
    Q, _ = data(50, seed=1)
    model = network.condition(X, y)
    expected = answers(model, Q)
    model._rows_at_once = 7
    torch.testing.assert_close(answers(model, Q), expected)


@pytest.mark.parametrize("targets", ["raw", "given", "standardised"])
def test_an_empty_context_gives_the_prior(targets):
    network = random_network(targets=targets)
    network.prior_location, network.prior_scale = 3.0, 2.0
    X, y = data(0)
    Q, _ = data(5, seed=1)
    posterior = network.condition(X, y).posterior(Q)
    assert posterior.mean.shape == (5, 1)
    assert posterior.variance.isfinite().all()
    location, scale, told = network.units(y[None, :, 0])
    assert (location.item(), scale.item()) == (3.0, 2.0)
    assert told.tolist() == [[3.0, pytest.approx(math.log(2.0))]]


def test_units_of_the_targets():
    y = torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64)
    network = random_network(targets="given")
    network.prior_location, network.prior_scale = 7.0, 4.0
    location, scale, told = network.units(y)
    assert location.item() == pytest.approx(16 / 4)
    assert scale.item() == pytest.approx(((9 + 4 + 4 + 16) / 4) ** 0.5)
    assert told[0].tolist() == [location.item(), scale.log().item()]
    network = random_network(targets="raw")
    assert torch.equal(network.units(y)[0], network.units(100 * y)[0])


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_standardised_units_follow_the_targets_and_what_is_told_does_not(n):
    network = random_network(targets="standardised")
    network.prior_location, network.prior_scale = 0.3, 2.0
    y = torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    location, scale, told = network.units(y)
    factor = 1.0 if n == 1 else 50.0  # one point has the deviation of the prior
    moved = network.units(factor * y - 7)
    torch.testing.assert_close(moved[0], factor * location - 7)
    torch.testing.assert_close(moved[1], factor * scale)
    torch.testing.assert_close(moved[2], told)
    mask = torch.arange(n + 2).expand(2, -1) < n
    padded = torch.cat([y, torch.full((2, 2), 1e9, dtype=y.dtype)], dim=1)
    for masked, plain in zip(network.units(padded, mask), (location, scale, told), strict=True):
        torch.testing.assert_close(masked, plain)


def test_raw_units_are_not_invariant_and_given_ones_know_the_scale():
    """A fixed prior stays that prior: what was asked in absolute units is answered in them."""
    X, y = data(12)
    Q, _ = data(5, seed=1)
    for options in ({"inputs": "raw", "targets": "raw"}, {"inputs": "raw", "targets": "given"}):
        network = random_network(**options)
        one = network.condition(X, y).posterior(Q)
        for X2, y2, Q2, back in ((2 * X, y, 2 * Q, 1.0), (X, 3 * y, Q, 3.0)):
            two = network.condition(X2, y2).posterior(Q2)
            assert (two.mean / back - one.mean).abs().max() > 1e-3


class TestMissingAndCategorical:
    def test_missing_values_are_seen_as_missing(self, each_network):
        X, y = data(9)
        Q, _ = data(5, seed=1)
        holes = X.clone()
        holes[2, 1] = float("nan")
        answer = answers(each_network.condition(holes, y), Q)
        assert answer.isfinite().all()
        filled = X.clone()
        filled[2, 1] = holes[:, 1].nanmean()  # 0 in the network's units, but not missing
        assert (answer - answers(each_network.condition(filled, y), Q)).abs().max() > 1e-5

    def test_a_column_without_values(self, each_network):
        X, y = data(9)
        X[:, 1] = float("nan")
        assert answers(each_network.condition(X, y), X).isfinite().all()

    def test_networks_trained_without_them_refuse(self, network):
        X, y = data(9)
        X[2, 1] = float("nan")
        network.metadata["missing"] = False
        with pytest.raises(ValueError, match="NaN"):
            network.condition(X, y)

    def test_categorical_columns_are_told_apart(self, each_network):
        X, y = data(9)
        kind = torch.tensor([True, False, False])
        a = answers(each_network.condition(X, y), X)
        b = answers(each_network.condition(X, y, categorical=kind), X)
        assert (a - b).abs().max() > 1e-4
        with pytest.raises(ValueError, match=r"mask \[3\]"):
            each_network.condition(X, y, categorical=kind[:2])
        each_network.metadata["categorical"] = False
        with pytest.raises(ValueError, match="without categorical columns"):
            each_network.condition(X, y, categorical=kind)


class TestColumns:
    def test_order_of_features_is_exactly_that_of_the_codes(self):
        """Permuting features and codes together changes nothing: invariance in distribution."""
        network = random_network("cells")
        X, y = data(9, d=4)
        Q, _ = data(5, d=4, seed=1)
        order = torch.tensor([2, 0, 3, 1])
        codes = network.network.codes(4, X)
        one = network.encode(X[None], y[None, :, 0], codes=codes)
        two = network.encode(X[None][..., order], y[None, :, 0], codes=codes[:, order])
        a, b = network.decode(one, Q[None])[0], network.decode(two, Q[None][..., order])[0]
        torch.testing.assert_close(a, b)
        other = network.encode(X[None], y[None, :, 0], column_seed=1)
        assert (network.decode(other, Q[None])[0] - a).abs().max() > 1e-4

    def test_more_features_than_in_training_warn(self):
        network = random_network("cells")
        X, y = data(9, d=6)
        with pytest.warns(UserWarning, match="up to 4 features and got 6"):
            model = network.condition(X, y)
        assert answers(model, X).isfinite().all()


class TestAppending:
    """Rows appended to an encoded context."""

    def test_one_by_one_equals_together(self, each_network):
        X, y = data(10)
        Q, _ = data(4, seed=1)
        model = each_network.condition(X[:7], y[:7])
        together = model.condition_on_observations(X[7:], y[7:])
        single = model
        for i in range(7, 10):
            single = single.condition_on_observations(X[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(answers(single, Q), answers(together, Q))
        assert torch.equal(single.train_X, X)

    def test_append_equals_recompute(self, each_network):
        """By definition: every row attends to the encoded rows, itself and those before it."""
        X, y = data(9)
        Q, _ = data(4, seed=1)
        first = each_network.encode(X[None, :7], y[None, :7, 0])
        appended = each_network.append(first, X[None, 7:], y[None, 7:, 0])
        by_hand = first
        for i in (7, 8):
            by_hand = each_network.append(by_hand, X[None, i : i + 1], y[None, i : i + 1, 0])
        for a, b in zip(appended.context.keys, by_hand.context.keys, strict=True):
            torch.testing.assert_close(a, b)
        # A query is a row that nobody attends to: what it sees of appended rows is all of them.
        a, b = each_network.decode(appended, Q[None])[0], each_network.decode(first, Q[None])[0]
        assert (a - b).abs().max() > 1e-4
        torch.testing.assert_close(each_network.decode(by_hand, Q[None])[0], a)

    def test_one_layer_sees_appended_rows_like_encoded_ones(self):
        """In one layer rows are keys as they were embedded, whatever they attend to themselves."""
        network = random_network(inputs="raw", targets="raw", layers=1)
        X, y = data(9)
        Q, _ = data(4, seed=1)
        first = network.encode(X[None, :6], y[None, :6, 0])
        appended = network.append(first, X[None, 6:], y[None, 6:, 0])
        recomputed = network.encode(X[None], y[None, :, 0])
        for a, b in zip(
            network.decode(appended, Q[None]), network.decode(recomputed, Q[None]), strict=True
        ):
            torch.testing.assert_close(a, b)

    def test_beyond_the_trained_buffer_all_is_encoded_anew(self, each_network):
        X, y = data(14)
        Q, _ = data(4, seed=1)
        model = each_network.condition(X[:7], y[:7])
        model = model.condition_on_observations(X[7:10], y[7:10])
        longer = model.condition_on_observations(X[10:], y[10:])
        whole = each_network.condition(X, y)
        torch.testing.assert_close(answers(longer, Q), answers(whole, Q))

    @pytest.mark.covering
    @pytest.mark.parametrize("n", [0, 1, 2])
    def test_units_that_no_longer_fit_are_taken_anew(self, each_network, n):
        """From few rows on, in units far from the prior's: as if all had been there at once."""
        X, y = data(6)
        y = 1000 * y
        Q, _ = data(4, seed=1)
        model = each_network.condition(X[:n], y[:n])
        grown = model.condition_on_observations(X[n:], y[n:])
        whole = each_network.condition(X, y)
        torch.testing.assert_close(answers(grown, Q), answers(whole, Q))
        inputs = torch.cat([X[:1], 100 + 50 * X[1:]])
        grown = each_network.condition(inputs[:3], y[:3])
        grown = grown.condition_on_observations(1e4 * inputs[3:], y[3:])
        assert grown._encoded.num_appended == 0

    def test_batches_broadcast(self, each_network):
        X, y = data(10)
        Q, _ = data(4, seed=1)
        model = each_network.condition(X[:7], y[:7])
        one = answers(model.condition_on_observations(X[7:], y[7:]), Q)
        batched = model.condition_on_observations(X[7:].expand(2, 3, 3), y[7:].expand(2, 3, 1))
        assert batched.batch_shape == (2,)
        torch.testing.assert_close(answers(batched, Q)[:, 1], one)

    def test_gradients_through_appended_rows(self, network):
        X, y = data(6)
        new = data(2, seed=1)[0].requires_grad_()
        model = network.condition(X, y)

        def mean(x):
            return model.condition_on_observations(x, x[:, :1]).posterior(X[:2]).mean

        torch.autograd.gradcheck(mean, new)

    def test_the_original_is_left_alone(self, network):
        X, y = data(6)
        model = network.condition(X, y)
        before = answers(model, X)
        model.condition_on_observations(X, y)
        assert torch.equal(answers(model, X), before)


@pytest.mark.covering
@pytest.mark.parametrize("index", [[0, 1, 1, 0, 1, 0], [1, 0, 0], [1, 1, 1, 1]])
@pytest.mark.parametrize("masked", [True, False])
def test_copies_of_an_encoding_share_it_and_compute_the_same(each_network, index, masked):
    X, y = data(7, batch=(2,))
    y = y[..., 0]
    mask = torch.arange(7).expand(2, 7) < torch.tensor([[7], [4]]) if masked else None
    encoding = each_network.encode(X, y, mask=mask)
    copies = encoding.select(torch.tensor(index))
    assert copies.context.shared[0].keys is encoding.context.keys
    k = len(index)
    more, told = data(3, batch=(k,), seed=1)
    Q, _ = data(4, batch=(k,), seed=2)

    def grown(encoding, chosen):
        """By two rows, and then by one."""
        for rows in (slice(0, 2), slice(2, 3)):
            encoding = each_network.append(
                encoding, more[chosen, rows], told[chosen, rows, 0], noise_var=None
            )
        return each_network.decode(encoding, Q[chosen])

    found = grown(copies, slice(None))
    again = grown(
        copies.select(torch.arange(k).flip(0)).select(torch.arange(k).flip(0)), slice(None)
    )
    for i, which in enumerate(index):
        alone = grown(encoding.select(torch.tensor([which])), slice(i, i + 1))
        for one, all_of, repeated in zip(alone, found, again, strict=True):
            torch.testing.assert_close(all_of[i], one[0])
            torch.testing.assert_close(repeated[i], one[0])


class TestJoint:
    """Samples and densities over several points by the chain rule."""

    def test_samples_follow_the_chain_rule(self, each_network):
        X, y = data(8)
        Q, _ = data(3, seed=1)
        model = each_network.condition(X, y)
        posterior = model.posterior(Q)
        base = torch.randn(5, 3, 1, generator=torch.Generator().manual_seed(0), dtype=X.dtype)
        samples = posterior.rsample_from_base_samples(torch.Size([5]), base)
        p = torch.special.ndtr(base)
        told = model
        for i in range(3):
            marginal = told.posterior(Q[i : i + 1])
            cdf = marginal.cdf(samples[:, i : i + 1])
            torch.testing.assert_close(cdf, p[:, i : i + 1], atol=1e-6, rtol=0)
            # one sample at a time from here on: condition on the first
            if i == 0:
                samples, p = samples[:1], p[:1]
            value = samples[0, i : i + 1]
            told = told.condition_on_observations(
                Q[i : i + 1], value, noise=torch.zeros(1, 1).double()
            )

    def test_density_integrates_to_that_of_the_first_point(self, each_network):
        X, y = data(8)
        Q, _ = data(2, seed=1)
        posterior = each_network.condition(X, y).posterior(Q)
        grid = torch.linspace(-60, 66, 4_001, dtype=torch.float64)
        first = torch.full_like(grid, 3.3)
        density = posterior.joint_log_prob(torch.stack([first, grid], -1)[..., None]).exp()
        total = density.sum() * (grid[1] - grid[0])
        expected = posterior.log_prob(torch.full((2, 1), 3.3).double())[0, 0].exp()
        torch.testing.assert_close(total, expected, rtol=5e-3, atol=0)

    def test_joint_density_of_one_point_is_the_marginal(self, network):
        X, y = data(8)
        Q, target = data(1, seed=1)
        posterior = network.condition(X, y).posterior(Q, observation_noise=True)
        torch.testing.assert_close(
            posterior.joint_log_prob(target), posterior.log_prob(target)[0, 0]
        )

    def test_shapes_batches_and_chunks(self, network):
        X, y = data(8, batch=(2,), m=2)
        Q, _ = data(3, batch=(4, 2), seed=1)
        model = network.condition(X, y)
        posterior = model.posterior(Q)
        base = torch.randn(2, 1, 1, 3, 2, generator=torch.Generator().manual_seed(0)).double()
        samples = posterior.rsample_from_base_samples(torch.Size([2]), base)
        assert samples.shape == (2, 4, 2, 3, 2)
        model._numbers_at_once = 1
        again = model.posterior(Q).rsample_from_base_samples(torch.Size([2]), base)
        torch.testing.assert_close(again, samples)
        alone = network.condition(X[1], y[1, :, 1]).posterior(Q[3, 1])
        one = alone.rsample_from_base_samples(torch.Size([2]), base[:, 0, 0, :, 1:])
        torch.testing.assert_close(one, samples[:, 3, 1, :, 1:])
        chosen = model.posterior(Q, output_indices=[1])
        first = chosen.rsample_from_base_samples(torch.Size([2]), base[..., 1:])
        torch.testing.assert_close(first, samples[..., 1:])
        assert chosen.joint_log_prob(first[0]).shape == (4, 2)

    def test_orders_take_turns_over_all_samples(self, network):
        """Whatever the shape of the samples."""
        X, y = data(8)
        Q, _ = data(3, seed=1)
        posterior = network.condition(X, y, num_orders=2).posterior(Q)
        base = torch.randn(4, 3, 1, generator=torch.Generator().manual_seed(0)).double()
        flat = posterior.rsample_from_base_samples(torch.Size([4]), base)
        nested = posterior.rsample_from_base_samples(torch.Size([1, 4]), base[None])
        torch.testing.assert_close(nested[0], flat)
        assert posterior.rsample(torch.Size([0])).shape == (0, 3, 1)

    def test_densities_broadcast_over_data_sets(self, network):
        X, y = data(8, batch=(2,))
        Q, Y = data(3, seed=1)
        posterior = network.condition(X, y).posterior(Q)
        torch.testing.assert_close(
            posterior.joint_log_prob(Y), posterior.joint_log_prob(Y.expand(2, 3, 1))
        )

    def test_orders_are_averaged(self, network):
        X, y = data(8)
        Q, _ = data(3, seed=1)
        target = data(3, seed=2)[1]
        several = network.condition(X, y, num_orders=5).posterior(Q)
        density = several.joint_log_prob(target)
        singles = []
        from pfn.joint import _orders

        for order in _orders(3, 5, torch.device("cpu")):
            one = network.condition(X, y).posterior(Q[order])
            singles.append(one.joint_log_prob(target[order]))
        expected = torch.stack(singles).logsumexp(0) - torch.tensor(5.0).log()
        torch.testing.assert_close(density, expected)
        assert several.rsample(torch.Size([10])).shape == (10, 3, 1)

    def test_gradients_of_samples(self, network):
        X, y = data(5)
        Q = data(2, seed=1)[0].requires_grad_()
        model = network.condition(X, y)
        base = torch.randn(2, 2, 1, generator=torch.Generator().manual_seed(0), dtype=X.dtype)

        def sample(x):
            return model.posterior(x).rsample_from_base_samples(torch.Size([2]), base)

        torch.autograd.gradcheck(sample, Q, atol=1e-4)

    def test_gradients_in_parts_are_those_of_the_whole(self, network):
        X, y = data(5)
        base = torch.randn(6, 3, 1, generator=torch.Generator().manual_seed(0), dtype=X.dtype)
        found = []
        for most in (2**26, 1):
            Q = data(3, seed=1)[0].requires_grad_()
            model = network.condition(X, y)
            model._numbers_at_once = most
            samples = model.posterior(Q).rsample_from_base_samples(torch.Size([6]), base)
            found.append(torch.autograd.grad(samples.square().sum(), Q)[0])
        torch.testing.assert_close(found[0], found[1])
        assert model.posterior(Q[:0]).rsample(torch.Size([4])).shape == (4, 0, 1)

    @pytest.mark.covering
    @pytest.mark.parametrize("noise", [False, True])
    def test_points_that_a_batch_begins_with_are_sampled_once(self, each_network, noise):
        """As each element alone, and as if nothing had been sampled before."""
        X, y = data(5, m=2)
        leading, rest = data(3, seed=1)[0], data(2, batch=(4,), seed=2)[0]
        Q = torch.cat([leading.expand(4, 3, -1), rest], dim=1)
        base = torch.randn(6, 1, 5, 2, generator=torch.Generator().manual_seed(0)).double()
        model = each_network.condition(X, y)
        noises = torch.full((2,), 0.1).double() if noise else True

        def samples(model, points, base=base):
            posterior = model.posterior(points, observation_noise=noises)
            base = base.expand(6, *points.shape[:-2], *base.shape[-2:])
            return posterior.rsample_from_base_samples(torch.Size([6]), base)

        found = samples(model, Q)
        for b in (0, 3):
            alone = samples(each_network.condition(X, y), Q[b : b + 1])
            torch.testing.assert_close(found[:, b : b + 1], alone)
        # Longer and shorter beginnings, other base samples and other data do not mix.
        longer = torch.cat([Q[:, :4], rest], dim=1)
        many = torch.cat([base[..., :4, :], base[..., 3:, :].flip(-2)], dim=-2)
        fresh = each_network.condition(X, y)
        torch.testing.assert_close(samples(model, longer, many), samples(fresh, longer, many))
        torch.testing.assert_close(samples(model, Q[:, :3], base[..., :3, :]), found[..., :3, :])
        assert not torch.equal(samples(model, Q, -base)[..., :1, :], found[..., :1, :])
        more = model.condition_on_observations(rest[0], y[:2])
        fresh = each_network.condition(X, y).condition_on_observations(rest[0], y[:2])
        torch.testing.assert_close(samples(more, Q), samples(fresh, Q))
        assert not torch.allclose(samples(more, Q), found)

    def test_gradients_go_to_points_that_a_batch_happens_to_begin_with(self, network):
        X, y = data(5)
        model = network.condition(X, y)
        base = torch.randn(3, 1, 3, 1, generator=torch.Generator().manual_seed(0)).double()

        def slope(Q):
            Q = Q.clone().requires_grad_()
            whole = torch.cat([X[:1].expand(len(Q), 1, -1), 2 * Q], dim=1)  # X[:1] has none
            samples = model.posterior(whole).rsample_from_base_samples(
                torch.Size([3]), base.expand(3, len(Q), 3, 1)
            )
            return torch.autograd.grad(samples.square().sum(), Q)[0]

        Q = data(2, batch=(2,), seed=1)[0]
        Q[1, 0] = Q[0, 0]
        together = slope(Q)
        assert (together[:, 0] != 0).any(-1).all()
        for b in range(2):
            torch.testing.assert_close(together[b : b + 1], slope(Q[b : b + 1]))

        def sample(q):
            whole = torch.cat([X[:1], q])
            posterior = model.posterior(whole)
            return posterior.rsample_from_base_samples(torch.Size([3]), base[:, 0])

        torch.autograd.gradcheck(sample, Q[0].clone().requires_grad_(), atol=1e-4)

    def test_a_context_that_grows_beyond_training_warns(self, network):
        network.metadata["max_context"] = 6
        X, y = data(5)
        posterior = network.condition(X, y).posterior(X[:3])
        with pytest.warns(UserWarning, match="up to 6 context rows and got 7"):
            posterior.rsample()

    def test_without_a_function_there_is_only_y(self, network):
        """Its head was never trained where tasks had none."""
        X, y = data(5)
        Q, _ = data(3, seed=1)
        base = torch.randn(2, 3, 1, generator=torch.Generator().manual_seed(0), dtype=X.dtype)
        assert (
            network.condition(X, y).posterior(Q).mean[0]
            != answers(network.condition(X, y), Q)[0, 0]
        )
        network.metadata["function"] = False
        model = network.condition(X, y)
        of_f, of_y = (model.posterior(Q, observation_noise=noise) for noise in (False, True))
        torch.testing.assert_close(of_f.mean, of_y.mean)
        samples = [
            posterior.rsample_from_base_samples(torch.Size([2]), base) for posterior in (of_f, of_y)
        ]
        torch.testing.assert_close(*samples)

    def test_without_training_for_it_there_is_none(self, network):
        network.metadata["max_buffer"] = 0
        X, y = data(5)
        posterior = network.condition(X, y).posterior(X)
        with pytest.raises(NotImplementedError, match="appended"):
            posterior.rsample()


class TestKnownNoise:
    def test_it_is_an_input(self, each_network):
        X, y = data(8)
        Q, _ = data(3, seed=1)
        plain = answers(each_network.condition(X, y), Q)
        small = answers(each_network.condition(X, y, train_Yvar=0.1 * torch.ones_like(y)), Q)
        large = answers(each_network.condition(X, y, train_Yvar=torch.ones_like(y)), Q)
        assert (plain - small).abs().max() > 1e-4
        assert (large - small).abs().max() > 1e-4

    def test_scales_with_the_targets(self, network):
        X, y = data(8)
        Q, _ = data(3, seed=1)
        one = network.condition(X, y, train_Yvar=0.1 * torch.ones_like(y))
        two = network.condition(X, 7 * y, train_Yvar=4.9 * torch.ones_like(y))
        for noise in (False, True):
            torch.testing.assert_close(
                two.posterior(Q, observation_noise=noise).mean,
                7 * one.posterior(Q, observation_noise=noise).mean,
            )
        a = one.posterior(Q, observation_noise=0.2 * torch.ones(3, 1).double())
        b = two.posterior(Q, observation_noise=9.8 * torch.ones(3, 1).double())
        torch.testing.assert_close(7 * a.mean, b.mean)

    def test_messages(self, network):
        X, y = data(5)
        with pytest.raises(ValueError, match="none negative"):
            network.condition(X, y, train_Yvar=-torch.ones_like(y))
        with pytest.raises(ValueError, match="train_Yvar must hold finite variances of shape"):
            network.condition(X, y, train_Yvar=torch.ones(3, 1).double())
        with pytest.raises(ValueError, match="affine"):
            network.condition(
                X,
                y.exp(),
                train_Yvar=torch.ones_like(y),
                outcome_transform=torch.distributions.ExpTransform(),
            )
        with pytest.raises(ValueError, match="none negative"):
            network.condition(X, y).posterior(X, observation_noise=-torch.ones_like(y))
        network.metadata["known_noise"] = False
        with pytest.raises(ValueError, match="without known noise"):
            network.condition(X, y, train_Yvar=torch.ones_like(y))
        with pytest.raises(ValueError, match="trained with known noise"):
            network.condition(X, y).posterior(X, observation_noise=torch.ones_like(y))

    @pytest.mark.parametrize("n", [1, 3, 6])
    def test_exact_values_have_gradients(self, network, n):
        """No noise is a limit, not NaN; equal targets have no deviation either."""
        X, y = data(n)
        for targets in (y, torch.full_like(y, 2.0)):
            x, values = X.clone().requires_grad_(), targets.clone().requires_grad_()
            model = network.condition(x, values, train_Yvar=torch.zeros_like(y), check=False)
            gradients = torch.autograd.grad(answers(model, X + 0.1).sum(), [x, values])
            assert all(bool(g.isfinite().all()) for g in gradients)
            assert gradients[1].abs().sum() > 0

    def test_a_flag_may_be_a_tensor_and_dtypes_must_agree(self, network):
        X, y = data(5)
        model = network.condition(X, y)
        for flag in (True, False):
            torch.testing.assert_close(
                model.posterior(X, observation_noise=torch.tensor(flag)).mean,
                model.posterior(X, observation_noise=flag).mean,
            )
        with pytest.raises(TypeError, match="noise variances torch.float32"):
            network.condition(X, y, train_Yvar=torch.ones_like(y).float())
        with pytest.raises(TypeError, match="noise variances torch.float32"):
            model.condition_on_observations(X, y, noise=torch.ones_like(y).float())

    def test_some_may_be_unknown(self, network):
        """A model takes the variances that it holds, and queries are told theirs one by one."""
        X, y = data(8)
        noise = torch.full_like(y, 0.3)
        noise[2:5] = math.nan
        model = network.condition(X, y, train_Yvar=noise)
        again = network.condition(model.train_X, model.train_Y, train_Yvar=model.train_Yvar)
        torch.testing.assert_close(answers(model, X), answers(again, X))
        mixed = model.posterior(X, observation_noise=noise).mean
        told = model.posterior(X, observation_noise=torch.full_like(y, 0.3)).mean
        untold = model.posterior(X, observation_noise=True).mean
        torch.testing.assert_close(mixed, torch.where(noise.isnan(), untold, told))
        torch.testing.assert_close(
            untold,
            model.posterior(X, observation_noise=np.True_).mean,  # not a variance of 1
        )


class TestClassification:
    @pytest.fixture(params=KINDS)
    def classifier(self, request):
        return random_network(request.param, classes=5)

    def test_probabilities(self, classifier):
        X, _ = data(12)
        y = torch.arange(12).remainder(3).double()
        Q, _ = data(4, seed=1)
        posterior = classifier.condition(X, y).posterior(Q)
        assert posterior.mean.shape == (4, 5)
        torch.testing.assert_close(posterior.mean.sum(-1), torch.ones(4).double())
        assert (posterior.mean[:, 3:] == 0).all()  # classes that the context does not have
        chosen = torch.tensor([[0], [1], [2], [0]])
        torch.testing.assert_close(
            posterior.log_prob(chosen), posterior.mean.gather(-1, chosen).log()
        )
        drawn = posterior.rsample(torch.Size([4000]))
        error = (drawn.mean(0) - posterior.mean) / (posterior.variance / 4000 + 1e-9).sqrt()
        assert error.abs().max() < 5

    def test_order_and_batches(self, classifier):
        X, _ = data(12, batch=(2,))
        y = torch.arange(24).remainder(3).reshape(2, 12, 1).double()
        Q, _ = data(4, seed=1)
        both = classifier.condition(X, y).posterior(Q).mean
        order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
        one = classifier.condition(X[1][order], y[1][order]).posterior(Q).mean
        torch.testing.assert_close(both[1], one)

    def test_classes_that_were_not_seen(self, classifier):
        X, _ = data(8)
        y = torch.arange(8).remainder(2)  # as integers
        told = classifier.condition(X, y, num_classes=4).posterior(X).mean
        assert (told[:, :4] > 0).all()
        assert (told[:, 4] == 0).all()
        new = torch.tensor([[2.0]]).double()
        grown = classifier.condition(X, y).condition_on_observations(X[:1], new)
        whole = classifier.condition(torch.cat([X, X[:1]]), torch.cat([y.double(), new[0]]))
        torch.testing.assert_close(grown.posterior(X).mean, whole.posterior(X).mean)
        again = classifier.condition(X, y).condition_on_observations(X[:1], new.long())
        torch.testing.assert_close(grown.posterior(X).mean, again.posterior(X).mean)
        for wrong in (1, 6):
            with pytest.raises(ValueError, match="must lie between 2"):
                classifier.condition(X, y, num_classes=wrong)
        two = classifier.condition(X, y, num_classes=2)
        with pytest.raises(ValueError, match="must lie between 3"):
            two.condition_on_observations(X[:1], new)
        with pytest.raises(NotImplementedError, match="cannot be separated"):
            two.posterior(X, output_indices=[1])

    def test_messages(self, classifier):
        X, y = data(6)
        model, sampler = classifier.condition(X, 0 * y), SobolQMCNormalSampler(torch.Size([2]))
        with pytest.raises(NotImplementedError, match="supports regression networks only"):
            model.fantasize(X, sampler)
        with pytest.raises(ValueError, match=r"classes 0 .. 4"):
            classifier.condition(X, y)
        with pytest.raises(ValueError, match="regression"):
            classifier.condition(X, torch.zeros_like(y), train_Yvar=torch.ones_like(y))


class TestInputTransforms:
    def test_they_learn_once_from_the_training_inputs(self, network):
        X, y = data(8)
        X = 10 * X
        Q, _ = data(5, seed=1)
        transform = Normalize(3)
        before = copy.deepcopy(transform.state_dict())
        model = network.condition(X, y, input_transform=transform)
        assert str(transform.state_dict()) == str(before)
        low, high = X.amin(0), X.amax(0)
        by_hand = network.condition((X - low) / (high - low), y)
        torch.testing.assert_close(answers(model, Q), answers(by_hand, (Q - low) / (high - low)))
        one = answers(model.train(), Q[:1])
        torch.testing.assert_close(one, answers(model, Q)[:, :1])
        grown = model.condition_on_observations(Q, Q[:, :1])
        expected = by_hand.condition_on_observations((Q - low) / (high - low), Q[:, :1])
        torch.testing.assert_close(answers(grown, X), answers(expected, (X - low) / (high - low)))

    def test_what_they_cannot_learn_is_refused(self, network):
        X, y = data(8)
        X[3, 1] = math.nan
        network.condition(X, y)
        with pytest.raises(ValueError, match="turned numbers into NaN"):
            network.condition(X, y, input_transform=Normalize(3))
        with pytest.raises(ValueError, match="which has no rows"):
            network.condition(X[:0], y[:0], input_transform=Normalize(3))
        bounds = torch.tensor([[-3.0], [3.0]]).double().expand(2, 3)
        network.condition(X, y, input_transform=Normalize(3, bounds=bounds))
        network.condition(X[:0], y[:0], input_transform=Normalize(3, bounds=bounds))

    def test_outcomes_outside_the_range_of_their_transform_are_refused(self, network):
        X, y = data(8)
        model = network.condition(X, y.exp(), outcome_transform=ExpTransform())
        with pytest.raises(ValueError, match="outside the range"):
            model.condition_on_observations(X[:1], -y[:1].exp())

    def test_raw_inputs_beyond_those_of_the_training_warn(self):
        network = random_network(inputs="raw")
        network.metadata["input_range"] = [0.0, 1.0]
        X, y = data(8)
        X = X.sigmoid()
        model = network.condition(X, y)
        with pytest.warns(UserWarning, match="between 0 and 1.*got"):
            model.posterior(X + 2)
        with pytest.warns(UserWarning, match="between 0 and 1.*got"):
            network.condition(100 * X, y)
        network.condition(100 * X, y, input_transform=Normalize(3))  # no warning

    def test_raw_targets_beyond_those_of_the_training_warn(self):
        network = random_network(targets="raw")
        network.metadata["target_range"] = [-3.0, 3.0]
        X, y = data(8)
        y = y / y.abs().max()
        model = network.condition(X, y)
        with pytest.warns(UserWarning, match="targets between -3 and 3.*got .* to 1e\\+03"):
            network.condition(X, 1000 * y.abs())
        with pytest.warns(UserWarning, match="targets between -3 and 3"):
            model.condition_on_observations(X[:1], 100 + y[:1])
        scale = AffineTransform(torch.zeros(1).to(y), torch.full((1,), 1000.0).to(y))
        network.condition(X, 1000 * y.abs(), outcome_transform=scale)  # no warning

    def test_more_features_than_in_training_warn(self):
        network = random_network()
        network.metadata["num_features"] = 2
        X, y = data(8)
        network.condition(X[:, :2], y)
        with pytest.warns(UserWarning, match="up to 2 features and got 3; beyond that"):
            network.condition(X, y)


def test_a_conditioned_model_stays_where_it_is(network):
    model = network.condition(*data(8))
    assert model.double() is model
    with pytest.raises(NotImplementedError, match="condition the network on data"):
        model.float()


def test_gradients_in_queries(network):
    X, y = data(6)
    Q = data(2, seed=1)[0].requires_grad_()
    model = network.condition(X, y)

    def moments(x):
        posterior = model.posterior(x)
        return posterior.mean, posterior.variance

    torch.autograd.gradcheck(moments, Q)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_has_weights_of_its_own(each_network, dtype):
    """As if deeply copied: same values, no shared memory, the network left as it was."""
    before = copy.deepcopy(each_network.state_dict())
    own = each_network.condition(*data(4, dtype=dtype), check=False).pfn
    expected = copy.deepcopy(each_network).to(dtype).eval()
    values, shared = own.state_dict(), {v.data_ptr() for v in each_network.state_dict().values()}
    assert values.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(values[name], value)
        assert values[name].dtype == value.dtype
        assert values[name].data_ptr() not in shared
    assert [str(m) for m in own.modules()] == [str(m) for m in expected.modules()]
    assert not own.training
    assert not any(p.requires_grad for p in own.parameters())
    own.metadata["changed"] = True
    with torch.no_grad():
        for value in own.state_dict().values():
            value.zero_()
    assert "changed" not in each_network.metadata
    assert any(p.requires_grad for p in each_network.parameters())
    for name, value in each_network.state_dict().items():
        assert torch.equal(value, before[name])


def test_copies_of_a_network_leave_its_last_frozen_copy(network):
    network.condition(*data(4), check=False)
    assert network._last_frozen is not None
    for copied in (copy.copy(network), copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert copied._last_frozen is None
        assert copied.state_dict().keys() == network.state_dict().keys()
    model = network.condition(*data(4), check=False)
    assert model.pfn._last_frozen is None
    assert network._last_frozen[1]._last_frozen is None


def test_dtype_follows_the_data(network):
    X, y = data(6, dtype=torch.float32)
    single = network.condition(X, y)
    assert single.posterior(X).mean.dtype == torch.float32
    double = network.condition(X.double(), y.double())
    torch.testing.assert_close(
        answers(single, X).double(), answers(double, X.double()), rtol=1e-3, atol=1e-3
    )
    assert next(network.parameters()).dtype == torch.float64
    with pytest.raises(TypeError, match="convert"):
        single.posterior(X.double())


@pytest.mark.parametrize("maximize", [True, False])
def test_expected_improvement_in_optimize_acqf(network, maximize):
    X, y = data(12)
    model = network.condition(X, y)
    best = y.max() if maximize else y.min()
    acquisition = LogExpectedImprovement(model, best_f=best, maximize=maximize)
    bounds = torch.tensor([[-2.0] * 3, [2.0] * 3], dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        candidate, value = optimize_acqf(acquisition, bounds, q=1, num_restarts=3, raw_samples=32)
    grid = 4 * torch.rand(500, 1, 3, dtype=torch.float64) - 2
    assert value >= acquisition(grid).max() - 0.05
    assert candidate.shape == (1, 3)


def test_tail_compression_reaches_the_network_and_comes_back(network):
    X, _ = data(12)
    Y = -torch.exp(3 * data(12, m=2)[1] - 9)
    Q, _ = data(5, seed=1)
    tails = TailCompression(Y)
    model = network.condition(X, Y, outcome_transform=tails)
    plain = network.condition(X, tails.inv(Y), outcome_transform=None)
    posterior, inner = model.posterior(Q), plain.posterior(Q)
    y = Y[:5]
    z = tails.inv(y)
    density = inner.log_prob(z) - tails.log_abs_det_jacobian(z, y)
    torch.testing.assert_close(posterior.log_prob(y), density)
    torch.testing.assert_close(posterior.cdf(y), inner.cdf(z))
    # One output alone is measured in its own column of the transform.
    one = model.subset_output([1])
    torch.testing.assert_close(one.posterior(Q).mean, posterior.mean[..., 1:])
    found = LogExpectedImprovement(one, best_f=Y[:, 1].max())(Q[:, None])
    scale = of_outputs(tails, [1]).affine_beyond(Y[:, 1].max(), True).scale.log()
    best = tails.inv(Y)[:, 1].max()
    expected = LogExpectedImprovement(plain.subset_output([1]), best_f=best)(Q[:, None]) + scale
    torch.testing.assert_close(found, expected.flatten())


@pytest.mark.parametrize("kind", ["inverse", "power"])
def test_outputs_keep_their_own_transforms(network, kind):
    X, y = data(8, m=2)
    Q, _ = data(5, seed=1)
    location, scale = torch.tensor([[1.0, -5.0]]).double(), torch.tensor([[2.0, 30.0]]).double()
    transform = AffineTransform(location, scale).inv
    if kind == "power":
        y, transform = y.exp(), PowerTransform(torch.tensor([[2.0, 3.0]]).double())
    model = network.condition(X, y, outcome_transform=transform)
    both = model.posterior(Q)
    for one in (model.subset_output([1]).posterior(Q), model.posterior(Q, output_indices=[1])):
        torch.testing.assert_close(
            one.quantile(torch.tensor(0.3)), both.quantile(torch.tensor(0.3))[..., 1:]
        )
    if kind == "inverse":  # affine, so that improvement is closed
        assert both.log_excess(y.amax(-2), 1).shape == (5, 2)


def test_monte_carlo_acquisition_agrees_with_the_closed_form(network):
    X, y = data(12)
    model = network.condition(X, y)
    grid = data(20, seed=3)[0][:, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        from botorch.sampling.get_sampler import get_sampler

        sampler = get_sampler(model.posterior(grid), torch.Size([4096]), seed=0)
        sampled = qLogExpectedImprovement(model, best_f=y.mean(), sampler=sampler)(grid)
    exact = LogExpectedImprovement(model, best_f=y.mean())(grid)
    torch.testing.assert_close(sampled, exact, atol=0.02, rtol=0)


class TestFiles:
    def test_round_trip(self, network, tmp_path):
        network.metadata["note"] = {"a": [1, 2.5]}
        network.save(tmp_path / "net.safetensors")
        loaded = pfn.load(tmp_path / "net.safetensors")
        assert loaded.metadata == network.metadata
        X, y = data(6)
        Q, _ = data(3, seed=1)
        assert torch.equal(answers(loaded.condition(X, y), Q), answers(network.condition(X, y), Q))

    def test_double_precision_is_kept(self, network, tmp_path):
        with torch.no_grad():
            next(network.parameters()).add_(1e-12)
        network.save(tmp_path / "net.safetensors")
        loaded = pfn.load(tmp_path / "net.safetensors").state_dict()
        for name, value in network.state_dict().items():
            assert torch.equal(loaded[name], value)

    def test_a_folder_of_the_name_hides_nothing(self, tmp_path, monkeypatch):
        (tmp_path / "regression").mkdir()
        monkeypatch.chdir(tmp_path)
        assert pfn.load("regression").architecture.max_features == 20

    def test_unknown_name(self):
        with pytest.raises(FileNotFoundError, match="neither a file nor a shipped network"):
            pfn.load("no-such-network")

    def test_truncated_and_foreign_files(self, network, tmp_path):
        path = tmp_path / "net.safetensors"
        network.save(path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            pfn.load(path)
        path.write_bytes(b"PK\x03\x04 a pickle in a zip")
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            pfn.load(path)

    def test_a_file_that_lies_about_its_sizes(self, network, tmp_path):
        wrong = copy.deepcopy(network)
        wrong.architecture = ArchitectureConfig(max_features=7)
        wrong.save(tmp_path / "net.safetensors")
        with pytest.raises(ValueError, match="does not hold the network it describes"):
            pfn.load(tmp_path / "net.safetensors")

    def test_unwritable_folder_leaves_nothing(self, network, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            network.save(tmp_path / "nowhere" / "net.safetensors")
        assert list(tmp_path.iterdir()) == []


class TestBadInput:
    def test_messages(self, network):
        X, y = data(5)
        with pytest.raises(ValueError, match="NaN"):
            network.condition(X, y * float("nan"))
        with pytest.raises(ValueError, match="same rows"):
            network.condition(X, y[:3])
        with pytest.raises(TypeError, match=r"a ndarray; torch\.as_tensor\(X\)\.float\(\)"):
            network.condition(X.numpy(), y.numpy())
        with pytest.raises(TypeError, match=r"got one of torch\.int64; X\.float\(\) makes"):
            network.condition(X.long(), y)
        with pytest.raises(ValueError, match="X has no features; this network takes 1 to 4"):
            network.condition(X[:, :0], y)
        with pytest.raises(TypeError, match="must agree"):
            network.condition(X, y.float())
        with pytest.raises(ValueError, match=r"\[..., q, 3\]"):
            network.condition(X, y).posterior(X[:, :2])

    def test_a_context_beyond_training_warns(self, network):
        X, y = data(5)
        network.metadata["max_context"] = 4
        with pytest.warns(UserWarning, match="up to 4 context rows and got 5"):
            network.condition(X, y)

    def test_appending_is_checked_like_conditioning(self, network):
        X, y = data(5)
        model = network.condition(X, y)
        with pytest.raises(TypeError, match="got X in torch.float32"):
            model.condition_on_observations(X.float(), y.float())
        with pytest.raises(ValueError, match="3 columns of X and got 2"):
            model.condition_on_observations(X[:, :2], y)
        with pytest.raises(ValueError, match="1 columns of Y and got 2"):
            model.condition_on_observations(X, torch.cat([y, y], -1))
        with pytest.raises(ValueError, match=r"X must have shape .* one row is X\[None\]"):
            model.condition_on_observations(X[0], y)
        with pytest.raises(ValueError, match=r"one column Y.unsqueeze\(-1\)"):
            model.condition_on_observations(X, y[:, 0])
        with pytest.raises(ValueError, match=r"\(2,\) of X, \(3,\) of Y"):
            model.condition_on_observations(X.expand(2, 5, 3), y.expand(3, 5, 1))
        with pytest.raises(ValueError, match="the same rows"):
            model.condition_on_observations(X[:4], y)
        with pytest.raises(ValueError, match="y has NaN or infinite"):
            model.condition_on_observations(X, y * torch.inf)
        with pytest.raises(TypeError, match="X must be a tensor"):
            model.condition_on_observations(X.numpy(), y)
        model.pfn.metadata["max_context"] = 9
        with pytest.warns(UserWarning, match="up to 9 context rows and got 10"):
            model.condition_on_observations(X, y)

    def test_architecture(self):
        with pytest.raises(ValueError, match="divide"):
            ArchitectureConfig(embedding=10, heads=3)
        with pytest.raises(ValueError, match="thinking_rows"):
            ArchitectureConfig(thinking_rows=0)


def test_models_of_one_network_share_weights_until_it_changes():
    with seeded(0):
        sizes = ArchitectureConfig(embedding=16, layers=1, heads=2, hidden=16, bars=9)
        network = PFN(sizes, torch.linspace(-2, 2, 9), tail_scale=0.3)
    X, y = torch.rand(6, 2).double(), torch.rand(6, 1).double()
    first, second = network.condition(X, y), network.condition(X, y)
    one, other = (next(model.pfn.parameters()) for model in (first, second))
    assert one.data_ptr() == other.data_ptr()
    assert next(network.condition(X.float(), y.float()).pfn.parameters()).dtype == torch.float32
    before = first.posterior(X).mean
    with torch.no_grad():
        network.network.head_f.weight.normal_()
    changed = network.condition(X, y)
    assert not torch.allclose(changed.posterior(X).mean, before)
    torch.testing.assert_close(first.posterior(X).mean, before)
    moved = network.double().condition(X, y)
    torch.testing.assert_close(moved.posterior(X).mean, changed.posterior(X).mean)
    network.metadata["name"] = "new"
    assert "name" not in moved.pfn.metadata
    assert network.condition(X, y).pfn.metadata["name"] == "new"


@pytest.mark.parametrize("n", [6, 7])
def test_scores_of_contexts_are_those_of_halves_one_by_one(n):
    with seeded(0):
        sizes = ArchitectureConfig(embedding=16, layers=2, heads=2, hidden=16, bars=9)
        units = {"inputs": "standardised", "targets": "standardised"}
        network = PFN(sizes, torch.linspace(-2, 2, 9), tail_scale=0.3, **units).double()
        X, y = torch.randn(2, n, 3).double(), torch.randn(2, n).double()
        for parameter in network.network.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    network.requires_grad_(False)
    found = context_score(network, X, y)
    for b in range(2):
        total = 0.0
        halves = slice(0, None, 2), slice(1, None, 2)
        for own, other in (halves, halves[::-1]):
            model = network.condition(X[b, own], y[b, own, None])
            posterior = model.posterior(X[b, other], observation_noise=True)
            total += float(posterior.log_prob(y[b, other, None]).sum())
        wanted = total / n + float(network.units(y)[1][b].log())
        assert float(found[b]) == pytest.approx(wanted, abs=1e-9)
