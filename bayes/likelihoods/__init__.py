"""How outcomes arise from a network's outputs, one kind of outcome per file."""

from bayes.likelihoods.base import Likelihood, NormalPrior
from bayes.likelihoods.categorical import Categorical
from bayes.likelihoods.gaussian import Gaussian, Heteroscedastic
from bayes.likelihoods.named import from_description, named
from bayes.likelihoods.ordinal import Ordinal
from bayes.likelihoods.poisson import Poisson
from bayes.likelihoods.student_t import HeteroscedasticStudentT, StudentT

__all__ = [
    "Categorical",
    "Gaussian",
    "Heteroscedastic",
    "HeteroscedasticStudentT",
    "Likelihood",
    "NormalPrior",
    "Ordinal",
    "Poisson",
    "StudentT",
    "from_description",
    "named",
]
