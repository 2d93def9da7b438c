"""The contracts of inference methods."""

import pytest

from bayes import HMC, MCLMC, NUTS, SGHMC, ChEES, LangevinEnsemble, MeanField
from bayes.testing import InferenceMethodContract, SamplerContract


class TestNUTS(InferenceMethodContract):
    def make_method(self, seed):
        return NUTS(num_samples=100, num_warmup=60, num_chains=1, progress=False, seed=seed)


class TestMeanField(InferenceMethodContract):
    effective = 1.0

    def make_method(self, seed):
        return MeanField(
            num_draws=1000, num_steps=300, learning_rate=0.1, progress=False, seed=seed
        )


# Many short chains: an iteration costs hardly more for them.
MANY = {"num_samples": 20, "num_warmup": 100, "num_chains": 128, "progress": False}


class TestHMC(InferenceMethodContract):
    def make_method(self, seed):
        return HMC(**MANY, seed=seed)


@pytest.mark.slow
class TestChainsOfHMC(SamplerContract):
    """ChEES, of the same kernel, is there for it among the fast tests."""

    def make_method(self, seed):
        return HMC(**MANY, seed=seed)


class TestChEES(InferenceMethodContract, SamplerContract):
    def make_method(self, seed):
        return ChEES(**MANY, seed=seed)


@pytest.mark.slow
class TestAdjustedMCLMC(InferenceMethodContract, SamplerContract):
    def make_method(self, seed):
        return MCLMC(adjusted=True, **MANY, seed=seed)


@pytest.mark.slow
class TestMCLMC(InferenceMethodContract, SamplerContract):
    discretisation = 0.02

    def make_method(self, seed):
        return MCLMC(energy_var=1e-4, num_steps=3, **MANY, seed=seed)


@pytest.mark.slow
class TestLangevinEnsemble(InferenceMethodContract, SamplerContract):
    discretisation = 0.02
    decades = 0.0  # its coordinates are not scaled

    def make_method(self, seed):
        return LangevinEnsemble(
            energy_var=1e-4,
            num_steps=3,
            num_training_steps=60,
            learning_rate=0.1,
            **MANY,
            seed=seed,
        )


@pytest.mark.slow
class TestSGHMC(InferenceMethodContract, SamplerContract):
    discretisation = 0.03

    def make_method(self, seed):
        return SGHMC(step_size=0.1, friction=0.1, num_steps=10, **MANY, seed=seed)
