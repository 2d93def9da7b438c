"""Our surrogates, acquisitions and proxies satisfy the contracts of an outsider's."""

import pytest
from botorch.models import SingleTaskGP

from nas.proposals.acquisitions import ACQUISITIONS
from nas.proxies import PROXIES
from nas.surrogates import GraphProcess, PathEnsemble
from nas.testing import AcquisitionContract, ProxyContract, SurrogateContract

pytestmark = pytest.mark.usefixtures("few_candidates", "quiet_optuna")


class TestGraphs(SurrogateContract):
    def make_surrogate(self):
        return GraphProcess(max_iter=5)


class TestEnsemble(SurrogateContract):
    def make_surrogate(self):
        return PathEnsemble(num_members=4, num_steps=30)


def unfitted(X, Y, num_architecture):
    """A model of BoTorch, as a callable."""
    return SingleTaskGP(X, Y, outcome_transform=None).eval()


class TestCallable(SurrogateContract):
    def make_surrogate(self):
        return unfitted


@pytest.mark.slow
class TestNetwork(SurrogateContract):
    def make_surrogate(self):
        return "network"


@pytest.mark.slow
class TestVectors(SurrogateContract):
    def make_surrogate(self):
        return "vectors"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The network 'bo' uses the 10 columns")
class TestFittedNetwork(SurrogateContract):
    def make_surrogate(self):
        return "pfn"


class TestAcquisitions(AcquisitionContract):
    @pytest.fixture(autouse=True, params=sorted(ACQUISITIONS))
    def _name(self, request):
        self.name = request.param

    def make_acquisition(self):
        return ACQUISITIONS[self.name]


class TestProxies(ProxyContract):
    @pytest.fixture(autouse=True, params=sorted(PROXIES))
    def _name(self, request):
        self.name = request.param

    def make_proxy(self):
        return PROXIES[self.name]
