"""The contract of inference methods."""

from bayes import NUTS, MeanField
from bayes.testing import InferenceMethodContract


class TestNUTS(InferenceMethodContract):
    def make_method(self, seed):
        return NUTS(num_samples=100, num_warmup=60, num_chains=1, progress=False, seed=seed)


class TestMeanField(InferenceMethodContract):
    effective = 1.0

    def make_method(self, seed):
        return MeanField(num_draws=1000, num_steps=800, progress=False, seed=seed)
