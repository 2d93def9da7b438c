"""That tasks are drawn on the device that was asked for, without a device at hand.

"meta" stands in for a GPU: mixing its tensors with those of the CPU is an error there too. It has
no values, so the questions that Python asks of values are answered here, each the way that takes
the code along all of its branches: conditions hold for all rows, or for a part of every group.
"""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pfn.checkpoints.recipes import RECIPES
from priors.randomness import RandomSource
from priors.tasks.grouping import groups, members

READ = ("_local_scalar_dense", "nonzero", "_to_copy")


class Answers(TorchDispatchMode):
    """Values of meta tensors: `share` of the rows of a mask is true, and checks pass."""

    def __init__(self, share):
        super().__init__()
        self.share, self.number, self.all, self.size, self.read = share, 0.0, True, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.overloadpacket.__name__
        if name in ("all", "any"):
            self.all = name == "all"
        if not (args and isinstance(args[0], torch.Tensor) and args[0].is_meta):
            return function(*args, **kwargs)
        if name == "_sample_dirichlet":  # which meta does not know
            return torch.empty_like(args[0])
        if name == "_local_scalar_dense":
            self.read += 1
            if args[0].dtype == torch.bool:
                return self.all
            self.number = (self.number + 0.381966) % 1  # well spread over [0, 1)
            return self.number if args[0].is_floating_point() else 0
        if name == "nonzero":
            self.read += 1
            self.size = -(-args[0].shape[-1] * self.share // 100)
            rows = self.size * (len(args[0]) if args[0].dim() == 2 else 1)
            return torch.zeros(rows, args[0].dim(), dtype=torch.long, device="meta")
        if name == "_to_copy" and torch.device(kwargs.get("device", "meta")).type == "cpu":
            self.read += 1
            return torch.full(args[0].shape, self.size)  # sizes of the groups
        return function(*args, **kwargs)


SLOW = ("classification", "regression")  # priors of many parts
EVERY = [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in sorted(RECIPES)]


@pytest.mark.parametrize("share", [40, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EVERY)
def test_tasks_of_the_recipes_are_drawn_on_the_device(name, share):
    prior = RECIPES[name](gpu=True).prior
    with Answers(share) as answers:
        for part in getattr(prior, "priors", (prior, prior)):
            task = part.sample(4, device="meta", dtype=torch.float32)
            named = {**task.latents, **task.row_latents, **vars(task)}
            tensors = {k: v for k, v in named.items() if isinstance(v, torch.Tensor)}
            assert len(tensors) > 3
            assert all(value.is_meta for value in tensors.values()), tensors
            assert task.X.dtype == task.y.dtype == torch.float32
    assert answers.read > 0


class Reads(TorchDispatchMode):
    """Counts how often Python looks at values, for which a GPU would be waited for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masked = name in ("index", "index_put_") and any(
            part is not None and part.dtype == torch.bool for part in args[1]
        )
        self.count += masked or name in ("_local_scalar_dense", "nonzero")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", EVERY)
def test_a_device_is_waited_for_as_often_for_many_tasks_as_for_few(name, monkeypatch):
    monkeypatch.setattr(
        "priors.tasks.gaussian_processes.CACHED", 2**40
    )  # parts are for the cache of a CPU
    for module in ("pairs", "activations.base", "activations.polynomial"):
        # a device is not asked
        monkeypatch.setattr(f"priors.gaussian.{module}.are_extreme", lambda *variances: None)
    prior, generator = RECIPES[name](gpu=True).prior, torch.Generator()
    counts = []
    for batch in (32, 96):
        with Reads() as reads:
            for seed in range(8):
                prior.sample(batch, generator=generator.manual_seed(seed), dtype=torch.float32)
        counts.append(reads.count / 8)
    assert counts[1] < 1.25 * counts[0] + 2
    assert counts[1] < 60


ELSEWHERE = """
    import pathlib, sys
    from dataclasses import replace

    import torch

    from pfn import load
    from pfn.checkpoints.recipes import RECIPES
    from pfn.training.checkpoint import load_state
    from pfn.training.fabric import make_fabric
    from pfn.training.state import TrainingState

    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        recipe = RECIPES[name](gpu=True)
        config = replace(recipe.config, batch=4, held_out_tasks=8, border_tasks=8)
        fabric = make_fabric(torch.device("cpu"), "32-true")
        training = TrainingState(recipe.prior, config, fabric, None, load(name))
        # Whatever does not say where it goes is made on "meta" now, and fails or shows up.
        torch.set_default_device("meta")
        for _ in range(2):
            loss, norm = training.advance()
            assert loss == loss and norm > 0, name
        assert training.evaluate()["held_out"] < 10
        training.keep(sys.argv[1] + "/state", None)
        load_state(training, pathlib.Path(sys.argv[1]) / "state")
        training.advance()
        torch.set_default_device(None)
"""


@pytest.mark.parametrize(
    "names",
    [["learning-curve"], pytest.param(["bo", *SLOW], marks=pytest.mark.slow)],
    ids=["a light one", "the others"],
)
def test_no_training_uses_the_default_device(names, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ELSEWHERE), str(tmp_path), *names],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class CudaGenerator:
    """What the host sees of a generator on a GPU."""

    def __init__(self, seed):
        self.device, self.seed, self.offset = torch.device("cuda"), seed, 0

    def initial_seed(self):
        return self.seed

    def get_offset(self):
        return self.offset

    def set_offset(self, offset):
        assert offset % 4 == 0  # as CUDA wants it
        self.offset = offset


def test_single_numbers_of_a_gpu_are_drawn_on_the_host():
    draws = RandomSource(CudaGenerator(5))
    numbers = torch.tensor([draws.number() for _ in range(2000)], dtype=torch.float64)
    assert abs(numbers.mean() - 0.5) < 4 * (1 / 12 / 2000) ** 0.5
    assert abs((numbers[1:] * numbers[:-1]).mean() - 0.25) < 4 * (7 / 144 / 2000) ** 0.5
    integers = [draws.integer(3, 5) for _ in range(300)]
    assert sorted(set(integers)) == [3, 4, 5]
    again = RandomSource(CudaGenerator(5))
    assert [again.number() for _ in range(3)] == numbers[:3].tolist()
    assert RandomSource(CudaGenerator(6)).number() != numbers[0]
    assert 0 <= draws.seed() < 2**62


def test_groups():
    labels = torch.tensor([2, 0, -1, 2, 1, 0])
    assert [group.tolist() for group in groups(labels, 4)] == [[1, 5], [4], [0, 3], []]
    assert [group.tolist() for group in members(torch.zeros(2, 0, dtype=torch.bool))] == [[], []]
