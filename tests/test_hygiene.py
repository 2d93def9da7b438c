"""Importing the packages: each module alone, without work and without side effects."""

import importlib
import json
import subprocess
import sys
import textwrap

import gpytorch
import pytest

import pfn
import priors

ALL_LIBRARIES = """
    import logging, sys, warnings
    import torch, gpytorch, botorch, pyro, optuna, matplotlib

    warnings.simplefilter("error")

    def state():
        return (
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state().sum().item(),
            logging.root.level, len(logging.root.handlers), optuna.logging.get_verbosity(),
            len(pyro.get_param_store()), matplotlib.get_backend(auto_select=False),
            torch.get_num_threads(),
        )
"""
EXTRAS = ("pfn.estimators", "bayes.estimators")  # need scikit-learn
IMPORT_ALONE = """
    import gc, importlib, os, tempfile, traceback

    before = state()

    def check(name):
        importlib.import_module(name)
        assert name.startswith(EXTRAS) or "sklearn" not in sys.modules, "an extra"
        assert state() == before, (before, state())

    def visit(inside):
        for name in [name for name in names if name.rpartition(".")[0] == inside]:
            if name in sys.modules:  # it came with what it is in
                visit(name)
            elif os.fork() == 0:
                try:
                    check(name)
                    visit(name)
                except BaseException:
                    os.write(1, f"{name}: {traceback.format_exc()}".encode())
                os._exit(0)
            else:
                os.wait()

    gc.collect()
    gc.freeze()  # or the memory that processes share is copied
    with tempfile.TemporaryDirectory() as folder:
        if sys.dont_write_bytecode:  # each module is compiled once all the same
            sys.dont_write_bytecode, sys.pycache_prefix = False, folder
        visit("")
"""


def modules_of(root):
    """Names of all modules of ours, by files: pkgutil would import folders."""
    names = []
    for package in ("priors", "bayes", "pfn", "nas"):
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            names += [".".join(parts).removesuffix(".__init__")] * (file.stem != "__main__")
    assert len(names) > 20, names
    return names


@pytest.mark.slow
def test_every_module_imports_alone_and_changes_nothing(pytestconfig):
    """A process a module, forked from that of the package it is in, which Python imports first."""
    names = modules_of(pytestconfig.rootpath)
    code = (
        f"names, EXTRAS = {names}, {EXTRAS}\n"
        + textwrap.dedent(ALL_LIBRARIES)
        + textwrap.dedent(IMPORT_ALONE)
    )
    failed = _run(code, pytestconfig)
    assert not failed, failed


ONE_AFTER_ANOTHER = """
    before = state()
    for name in names:
        importlib.import_module(name)
        extra = name.startswith(EXTRAS)
        assert extra or "sklearn" not in sys.modules, (name, "an extra")
        assert state() == before, (name, before, state())
"""


def test_modules_import_in_either_order_and_change_nothing(pytestconfig):
    """Of two modules that need each other, one of the two orders fails."""
    names = modules_of(pytestconfig.rootpath)
    first = [name for name in names if not name.startswith(EXTRAS)]
    last = [name for name in names if name.startswith(EXTRAS)]
    code = textwrap.dedent(ONE_AFTER_ANOTHER)
    orders = {"forward": first + last, "backward": first[::-1] + last[::-1]}
    codes = {order: f"names = {names}\n{code}" for order, names in orders.items()}
    preload = f"import importlib\nEXTRAS = {EXTRAS}\n" + textwrap.dedent(ALL_LIBRARIES)
    _run_each(preload, codes, pytestconfig)


GPYTORCH_ALONE = """
    import sys
    import gpytorch

    SETTINGS = "max_cholesky_size", "cholesky_max_tries", "max_eager_kernel_size"

    def settings():
        fast = gpytorch.settings.fast_computations
        return (
            [getattr(gpytorch.settings, name).value() for name in SETTINGS],
            gpytorch.settings.min_preconditioning_size.value(),
            [part.on() for part in (fast.covar_root_decomposition, fast.log_prob, fast.solves)],
        )

    before = settings()
    pyro = {name for name in sys.modules if name.partition(".")[0] == "pyro"}  # GPyTorch's own
"""
WITHOUT_BOTORCH = """
    {statement}
    loaded = {name for name in sys.modules if name.partition(".")[0] in ("botorch", "pyro")} - pyro
    assert not loaded, sorted(loaded)
    assert settings() == before, (before, settings())
"""
LIGHT = [
    "EmpiricalNTKKernel",
    "FunctionTaskPrior",
    "GaussianProcessPrior",
    "InfiniteNetwork",
    "NNGPKernel",
    "NTKKernel",
    "NetworkPrior",
    "RandomFeatureKernel",
    "UniversalFeatures",
    "batch_kernel",
    "plot_prior",
    "plot_tasks",
    "predicted_risk",
]


def test_kernels_priors_over_functions_and_networks_leave_gpytorch_as_it_is(pytestconfig):
    """In a process without BoTorch, which changes GPyTorch's settings when it is imported."""
    statements = [
        "import priors, pfn",
        f"from priors import {', '.join(LIGHT)}",
        "import pfn.network; from pfn import ArchitectureConfig, BarDistribution, Certificate",
    ]
    code = textwrap.dedent(WITHOUT_BOTORCH)
    codes = {statement: code.replace("{statement}", statement) for statement in statements}
    _run_each(GPYTORCH_ALONE, codes, pytestconfig)


def test_priors_alone_loads_neither_torch_nor_gpytorch(pytestconfig):
    _run(
        "import sys, priors\n"
        "heavy = {'torch', 'gpytorch', 'botorch', 'pyro', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy",
        pytestconfig,
    )


HEAVY = ["arviz", "lightning_fabric", "matplotlib", "pandas", "scipy.optimize", "sqlalchemy"]


EXTRA = {"Classifier", "PFNClassifier", "PFNRegressor", "Regressor"}  # need scikit-learn


def test_what_is_slow_to_load_is_loaded_where_it_is_used(pytestconfig):
    codes = {
        package: f"import sys, {package}\n"
        f"[getattr({package}, name) for name in set({package}.__all__) - {EXTRA}]\n"
        f"found = set({HEAVY}) & set(sys.modules)\n"
        "assert not found, found"
        for package in ("bayes", "pfn", "nas")
    }
    _run_each("import torch, gpytorch, botorch, pyro", codes, pytestconfig)


NUMBERS = """
    {first}
    import torch

    torch.set_num_threads(1)
    from gpytorch.kernels import RBFKernel
    from priors import GaussianProcessPrior, NNGPKernel

    X = torch.linspace(0, 1, 40, dtype=torch.float64)[:, None]
    generator = torch.Generator().manual_seed(0)
    numbers = [GaussianProcessPrior(RBFKernel()).sample(X, generator=generator).sum()]

    from bayes import GaussianProcess, StudentTProcess

    Y = torch.sin(6 * X) + 0.1 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    module = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    for process in (GaussianProcess, StudentTProcess):
        model = process(X[::2], Y[::2], NNGPKernel(module, bias_var=0.1)).fit()
        posterior = model.posterior(X, observation_noise=True)
        base = torch.randn((3, *posterior.base_sample_shape), generator=generator).double()
        numbers += [
            posterior.mean.sum(),
            posterior.variance.sum(),
            posterior.log_prob(Y).sum(),
            posterior.joint_log_prob(Y),
            posterior.rsample_from_base_samples(torch.Size([3]), base).sum(),
        ]
    print([float(number.detach()) for number in numbers])
"""
FIRST = {
    "priors": "import priors",
    "botorch": "import botorch",
    "other settings": "import gpytorch\n"
    "gpytorch.settings.max_cholesky_size._set_value(5)\n"
    "gpytorch.settings.cholesky_max_tries._set_value(1)\n"
    "gpytorch.settings.fast_computations.solves._set_state(True)",
}


def test_numbers_do_not_depend_on_global_settings(capsys):
    settings = gpytorch.settings
    code = textwrap.dedent(NUMBERS).replace("{first}", "")
    found = set()
    # BoTorch's, GPyTorch's, and others: imports set nothing else
    for size, tries, fast in ((4096, 6, False), (800, 3, True), (5, 1, True)):
        with (
            settings.max_cholesky_size(size),
            settings.cholesky_max_tries(tries),
            settings.fast_computations(fast, fast, fast),
        ):
            exec(code, {})
        found.add(capsys.readouterr().out)
    assert len(found) == 1, found


@pytest.mark.slow
def test_numbers_do_not_depend_on_the_order_of_imports_nor_on_global_settings(pytestconfig):
    code = textwrap.dedent(NUMBERS)
    codes = {name: code.replace("{first}", first) for name, first in FIRST.items()}
    found = _run_each("import torch", codes, pytestconfig)
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("package", ["priors", "bayes", "pfn", "nas"])
def test_public_names_exist_and_are_sorted(package):
    module = importlib.import_module(package)
    assert all(hasattr(module, name) for name in module.__all__)
    assert list(module.__all__) == sorted(module.__all__, key=_ruff_order)


@pytest.mark.parametrize("package", [priors, pfn], ids=["priors", "pfn"])
def test_every_public_name_is_lazy(package):
    homes = [name for names in package._HOMES.values() for name in names]
    assert sorted(package.__all__) == sorted([*homes, "__version__"])
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


FORKS = """
import gc, json, os, sys, tempfile, traceback

preload, codes = json.load(sys.stdin)
shared = {}
exec(preload, shared)
results = {}
gc.collect()
gc.freeze()  # or the memory that processes share is copied
with tempfile.TemporaryDirectory() as folder:
    if sys.dont_write_bytecode:  # each module is compiled once all the same
        sys.dont_write_bytecode, sys.pycache_prefix = False, folder
    for name, code in codes.items():
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(write, 1)
            failed = False
            try:
                exec(code, shared)
            except BaseException:
                failed = True
                traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
            os._exit(failed)
        os.close(write)
        with open(read) as pipe:
            printed = pipe.read()
        results[name] = os.waitpid(child, 0)[1], printed
print(json.dumps(results))
"""


def _run_each(preload, codes, pytestconfig):
    """What each code prints in a process of its own, forked from one that has run `preload`.

    So the libraries are paid for once.
    """
    given = json.dumps([textwrap.dedent(preload), codes])
    results = json.loads(_run(FORKS, pytestconfig, input=given))
    failed = {name: printed for name, (status, printed) in results.items() if status}
    assert not failed, "\n".join(f"{name}: {printed}" for name, printed in failed.items())
    return {name: printed for name, (_, printed) in results.items()}


def _run(code, pytestconfig, **options):
    """What Python code prints in a fresh process in the folder of the packages."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _ruff_order(name):
    """Constants, then classes, then functions, as ruff's RUF022 sorts them."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, name
