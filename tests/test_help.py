"""The docstring of a class is enough: it names the methods that users need, and they exist.

`help` of a class goes on with a thousand lines that torch, GPyTorch and BoTorch bring.
"""

import inspect
import pydoc
import re

import pytest

import bayes
import pfn
import priors

SECTION = re.compile(r"^Methods:\n((?:    .*\n?)+)", re.MULTILINE)
CLASSES = (
    bayes.BayesianNetwork,
    bayes.GaussianProcess,
    bayes.GaussianProcessClassifier,
    bayes.HeteroscedasticGaussianProcess,
    bayes.ScaleMixtureClassifier,
    bayes.StudentTProcess,
    bayes.VariationalGaussianProcess,
    bayes.WeightSpaceProcess,
    pfn.PFN,
    pfn.PFNModel,
    priors.InfiniteNetwork,
    priors.NetworkPrior,
)


def listed(cls):
    section = SECTION.search(inspect.getdoc(cls))
    assert section is not None
    return [name for name in re.findall(r"^    (\w+): ", section[1], re.MULTILINE)]


@pytest.mark.parametrize("cls", CLASSES)
def test_methods_that_a_docstring_lists_exist_and_are_documented(cls):
    for name in listed(cls):
        assert callable(getattr(cls, name))
        assert inspect.getdoc(getattr(cls, name))


@pytest.mark.parametrize("cls", CLASSES)
def test_a_docstring_lists_the_public_methods_that_a_class_defines(cls):
    plumbing = {"train", "load_state_dict", "fitted_draws", "parameter_mean"}
    plumbing |= {"targets", "transformed_inputs"}
    own = {
        name
        for name, value in vars(cls).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    assert own - plumbing - {"condition_on_observations", "fantasize"} <= {*listed(cls)}


@pytest.mark.parametrize("cls", [*CLASSES, priors.NNGPKernel])
def test_help_begins_with_all_that_one_needs(cls):
    lines = pydoc.render_doc(cls, renderer=pydoc.plaintext).splitlines()
    start = next(k for k, line in enumerate(lines) if "Method resolution order" in line)
    assert start < 75
    assert "All else is" in " ".join(line.strip(" |") for line in lines[:start])
