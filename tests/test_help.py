"""The docstring of a class is enough: it names the methods that users need, and they exist.

`help` of a class goes on with a thousand lines that torch, GPyTorch and BoTorch bring.
"""

import ast
import inspect
import pydoc
import re
import textwrap

import pytest

import bayes
import nas
import pfn
import priors

SECTION = re.compile(r"^Methods:\n((?:    .*\n?)+)", re.MULTILINE)
CLASSES = (
    bayes.BayesianNetwork,
    bayes.DeepKernelMachine,
    bayes.GaussianProcess,
    bayes.GaussianProcessClassifier,
    bayes.GradientDescentEnsemble,
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


PACKAGES = (bayes, nas, pfn, priors)
NAMES = {package.__name__ for package in PACKAGES}


def public(package):
    """Classes and functions that a package offers, by name."""
    named = {name: getattr(package, name) for name in package.__all__}
    return {name: value for name, value in named.items() if callable(value)}


def is_error(value):
    return inspect.isclass(value) and issubclass(value, Exception)


REFERS = re.compile(r"`[\w.]+`, whose arguments|Arguments[^.]* are as in `\w+`")


def described(value):
    """Its docstring, and of a class those of the constructor and of what it inherits from."""
    if not inspect.isclass(value):
        return value.__doc__
    ours = [c for c in value.__mro__ if c.__module__.partition(".")[0] in NAMES]
    return "\n".join(text for c in ours for text in (c.__doc__, c.__init__.__doc__) if text)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_name_and_all_its_arguments_are_described(package):
    missing = []
    for name, value in public(package).items():
        if not vars(value).get("__doc__") and not inspect.isfunction(value):
            missing.append(f"{name} has no docstring of its own")
        text = described(value)
        if is_error(value) or REFERS.search(text):
            continue
        of_others = {"args", "kwargs", "validate_args"}
        for argument in set(inspect.signature(value).parameters) - of_others:
            if not re.search(rf"\b{argument}\b", text):
                missing.append(f"{name}: {argument}")
    assert not missing, missing


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_functions_say_shapes_of_tensors_and_errors(package):
    missing = []
    for name, function in public(package).items():
        if not inspect.isfunction(function):
            continue
        annotations = " ".join(map(str, function.__annotations__.values()))
        if "Tensor" in annotations and not re.search(r"`\[|`\(|any shape", function.__doc__):
            missing.append(f"{name} says no shape")
        raises = any(isinstance(part, ast.Raise) for part in ast.walk(_tree(function)))
        if raises and "Raises:" not in function.__doc__:
            missing.append(f"{name} raises and does not say what")
    assert not missing, missing


def _tree(function):
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_the_reference_has_every_public_name(package, pytestconfig):
    """The site's page lists `__all__`, which it reads from the file, and so as a literal."""
    page = pytestconfig.rootpath / "docs" / "pages" / "reference" / f"{package.__name__}.md"
    assert f"<!-- reference {package.__name__} -->" in page.read_text()
    (names,) = (
        ast.literal_eval(part.value)
        for part in ast.parse(inspect.getsource(package)).body
        if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "__all__"
    )
    assert names == list(package.__all__)
