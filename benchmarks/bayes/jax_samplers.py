"""The JAX side of `benchmarks networks`: run by the environment of `make blackjax`, alone.

Reads a problem as JSON from standard input; prints draws, gradients and processor seconds. Imports
nothing of this package.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from jax.scipy import stats
from numpyro.infer import MCMC, NUTS

jax.config.update("jax_enable_x64", True)

_Y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
_S = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def problem_of(told):
    """Log density over R^d, d, and what is asked of positions."""
    if told["problem"] == "eight schools":

        def log_prob(x):
            mu, log_tau, theta = x[0], x[1], x[2:]
            tau = jnp.exp(log_tau)
            return (
                stats.norm.logpdf(mu, 0, 5)
                - jnp.log1p((tau / 5) ** 2)
                + log_tau
                + stats.norm.logpdf(theta).sum()
                + stats.norm.logpdf(_Y, mu + tau * theta, _S).sum()
            )

        return log_prob, 10, lambda x: x.at[1].set(jnp.exp(x[1]))
    if told["problem"] == "SAAS":
        return saas(told)
    X, Y = jnp.array(told["X"]), jnp.array(told["Y"])
    stds, shapes = told["stds"], told["shapes"]
    sizes = [int(np.prod(shape)) for shape in shapes]
    ends = np.cumsum(sizes)

    def network(x, X):
        parts = [
            std * x[end - size : end].reshape(shape)
            for std, size, end, shape in zip(stds, sizes, ends, shapes, strict=True)
        ]
        for weight, bias in zip(parts[:-2:2], parts[1:-2:2], strict=True):
            X = jnp.tanh(X @ weight.T + bias)
        return X @ parts[-2].T + parts[-1]

    def log_prob(x):
        f = network(x, X)
        return (
            stats.norm.logpdf(Y, f, jnp.exp(0.5 * x[-1])).sum()
            + stats.norm.logpdf(x[:-1]).sum()
            + stats.norm.logpdf(x[-1], -2.0, 1.5)
        )

    def asked(x):
        return jnp.concatenate([network(x, X[:10])[:, 0], x[-1:]])

    return log_prob, int(ends[-1]) + 1, asked


def saas(told):
    """Of logarithms: output scale, length scales, tau and noise above its bound."""
    X, Y = jnp.array(told["X"]), jnp.array(told["Y"])
    n, d = X.shape
    square = (X[:, None] - X) ** 2

    def log_prob(u):
        scale, length, tau = jnp.exp(u[0]), jnp.exp(u[1 : 1 + d]), jnp.exp(u[1 + d])
        noise = told["lower"] + jnp.exp(u[-1])
        r = jnp.sqrt(5 * (square / length**2).sum(-1) + 1e-20)
        K = scale * (1 + r + r**2 / 3) * jnp.exp(-r) + noise * jnp.eye(n)
        root = jnp.linalg.cholesky(K)
        white = jax.scipy.linalg.solve_triangular(root, Y, lower=True)
        likelihood = -0.5 * (white**2).sum() - jnp.log(jnp.diagonal(root)).sum()
        prior = jnp.log(scale) - 0.15 * scale - jnp.log1p((tau / told["shrinkage"]) ** 2)
        prior += (jnp.log(tau) - jnp.log1p((length**2 * tau) ** 2) + jnp.log(length)).sum()
        prior += stats.norm.logpdf(jnp.log(noise), *told["noise"]) - jnp.log(noise)
        return likelihood + prior + u.sum()

    return log_prob, d + 3, lambda u: u


def numpyro_nuts(log_prob, start, key, draws):
    """Vectorised chains."""
    kernel = NUTS(potential_fn=lambda x: -log_prob(x))
    sampler = MCMC(
        kernel,
        num_warmup=draws,
        num_samples=draws,
        num_chains=len(start),
        chain_method="vectorized",
        progress_bar=False,
    )
    sampler.run(key, init_params=start, extra_fields=("num_steps",))
    steps = sampler.get_extra_fields(group_by_chain=True)["num_steps"]
    # NumPyro tells no steps of the warm-up: taken as many as of the draws
    return sampler.get_samples(group_by_chain=True), float(steps.sum()), 2 * float(steps.sum())


def blackjax_nuts(log_prob, start, key, draws):
    """Window adaptation for each chain, then NUTS."""

    def chain(key, x):
        first, second = jax.random.split(key)
        warm = blackjax.window_adaptation(blackjax.nuts, log_prob)
        (state, parameters), info = warm.run(first, x, draws)
        kernel = blackjax.nuts(log_prob, **parameters)

        def one(state, key):
            state, told = kernel.step(key, state)
            return state, (state.position, told.num_integration_steps)

        _, (positions, steps) = jax.lax.scan(one, state, jax.random.split(second, draws))
        return positions, steps.sum(), info.info.num_integration_steps.sum()

    keys = jax.random.split(key, len(start))
    positions, steps, before = jax.jit(jax.vmap(chain))(keys, start)
    return positions, float(steps.sum()), float(steps.sum() + before.sum())


def blackjax_chees(log_prob, start, key, draws):
    """All chains together, with deviations of the coordinates learnt, as it does when asked."""
    first, second = jax.random.split(key)
    warm = blackjax.chees_adaptation(log_prob, len(start), mass_matrix_estimation="diagonal")
    (states, parameters), info = warm.run(first, start, 0.1, optax.adam(0.025), draws)
    kernel = blackjax.dynamic_hmc(log_prob, **parameters)

    def one(states, key):
        states, told = jax.vmap(kernel.step)(jax.random.split(key, len(start)), states)
        return states, (states.position, told.num_integration_steps)

    _, (positions, steps) = jax.jit(
        lambda states, key: jax.lax.scan(one, states, jax.random.split(key, draws))
    )(states, second)
    before = float(info.info.num_integration_steps.sum())
    return positions.swapaxes(0, 1), float(steps.sum()), float(steps.sum()) + before


def blackjax_adjusted_mclmc(log_prob, start, key, draws, num_steps):
    """Each chain tunes itself, over as many transitions as are kept; a step has two gradients.

    It finds the step size for a mean number of steps, which is the user's to choose.
    """
    algorithm = blackjax.mcmc.adjusted_mclmc_dynamic
    kernel = algorithm.build_kernel(
        integration_steps_fn=algorithm.make_random_trajectory_length_fn(True)
    )

    def chain(key, x):
        first, second, third = jax.random.split(key, 3)
        state = algorithm.init(x, log_prob, first)
        state, told, before = blackjax.adjusted_mclmc_find_L_and_step_size(
            mclmc_kernel=kernel,
            logdensity_fn=log_prob,
            num_steps=draws,
            state=state,
            rng_key=second,
            target=0.9,
            frac_tune1=0.35,
            frac_tune2=0.3,
            target_num_integration_steps=num_steps,
        )

        def one(state, key):
            state, info = kernel(
                key,
                state,
                log_prob,
                told.step_size,
                inverse_mass_matrix=told.inverse_mass_matrix,
                integration_steps_params=(told.L / told.step_size,),
            )
            return state, (state.position, info.num_integration_steps)

        _, (positions, steps) = jax.lax.scan(one, state, jax.random.split(third, draws))
        return positions, steps.sum(), before

    positions, steps, before = jax.jit(jax.vmap(chain))(jax.random.split(key, len(start)), start)
    return positions, 2 * float(steps.sum()), 2 * float(steps.sum() + before.sum())


def main() -> None:
    """One run."""
    told = json.load(sys.stdin)
    log_prob, dimension, asked = problem_of(told)
    key = jax.random.key(told["seed"])
    first, second = jax.random.split(key)
    start = jax.random.uniform(first, (told["chains"], dimension), minval=-2, maxval=2)
    run = {
        "numpyro NUTS": numpyro_nuts,
        "blackjax NUTS": blackjax_nuts,
        "blackjax ChEES": blackjax_chees,
        **{
            f"blackjax adjusted MCLMC {n}": partial(blackjax_adjusted_mclmc, num_steps=float(n))
            for n in (2, 4, 8)
        },
    }[told["method"]]
    numpyro.set_host_device_count(1)
    before = time.process_time()
    positions, gradients, every = run(log_prob, start, second, told["draws"])
    jax.block_until_ready(positions)
    seconds = time.process_time() - before
    values = jax.vmap(jax.vmap(asked))(positions)
    lp = jax.vmap(jax.vmap(log_prob))(positions)
    values = jnp.concatenate([values, lp[..., None]], -1)
    found = {"gradients": gradients, "all": every, "seconds": seconds}
    print(json.dumps({**found, "values": np.asarray(values).tolist()}))


if __name__ == "__main__":
    main()
