"""Images of strokes: geometry against closed forms, and what the prior states about its tasks."""

import math

import pytest
import torch

from priors import StrokeTaskPrior, TaskPrior, plot_tasks
from priors.randomness import RandomSource
from priors.tasks.strokes import _LEGS, _distance, _placed, _Strokes


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def source(seed=0):
    return RandomSource(seeded(seed), dtype=torch.float64)


def strokes(turns, *, start=(0.2, 0.3), heading=0.0, length=1.0):
    """One drawing of a stroke that turns by `turns` at each joint."""
    shape = (1, 1, 1, 1)
    return _Strokes(
        start=torch.tensor(start, dtype=torch.float64).expand(*shape, 2),
        joined=torch.zeros(shape, dtype=torch.bool),
        present=torch.ones(shape, dtype=torch.bool),
        heading=torch.full(shape, heading, dtype=torch.float64),
        turns=torch.full((*shape, _LEGS - 1), turns, dtype=torch.float64),
        length=torch.full(shape, length, dtype=torch.float64),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("pixels", "ways", "queries"), [(8, 5, 4), (12, 3, 1)])
def test_shapes_ranges_and_balanced_classes(dtype, pixels, ways, queries):
    prior = StrokeTaskPrior(pixels, ways, queries=queries)
    assert isinstance(prior, TaskPrior)
    assert not prior.exchangeable
    assert prior.description.startswith(f"{ways}-way 1-10-shot images of strokes, {pixels} x")
    drawn = set()
    for seed in range(20):
        task = prior.sample(2, generator=seeded(seed), dtype=dtype)
        shots = task.num_context // ways
        drawn.add(shots)
        rows = ways * (shots + queries)
        assert task.num_context == ways * shots
        assert task.X.shape == (2, rows, pixels**2)
        assert task.y.shape == (2, rows, 1)
        assert task.X.dtype == task.y.dtype == dtype
        assert task.X.min() >= 0
        assert task.X.max() <= 1
        assert task.num_classes.tolist() == [ways, ways]
        for y in task.y[..., 0]:
            context, asked = y[: task.num_context].long(), y[task.num_context :].long()
            assert context.bincount(minlength=ways).tolist() == [shots] * ways
            assert asked.bincount(minlength=ways).tolist() == [queries] * ways
    assert min(drawn) == 1
    assert max(drawn) <= 10
    assert len(drawn) > 4


def test_every_image_is_drawn_on():
    task = StrokeTaskPrior(shots=10).sample(20, generator=seeded())
    ink = task.X.amax(-1)
    assert (ink > 0.3).double().mean() > 0.99  # thin pens with much blur leave little
    assert (task.X < 0.1).double().mean() > 0.5  # most is paper


def test_a_stroke_without_turns_is_a_line_and_one_of_equal_turns_closes():
    heading = 0.7
    points = strokes(0.0, heading=heading, length=0.8).points()[0, 0, 0, 0]
    along = torch.linspace(0, 0.8, _LEGS + 1, dtype=torch.float64)[:, None]
    direction = torch.tensor([math.cos(heading), math.sin(heading)], dtype=torch.float64)
    start = torch.tensor([0.2, 0.3], dtype=torch.float64)
    torch.testing.assert_close(points, start + along * direction)
    polygon = strokes(2 * math.pi / _LEGS, heading=heading).points()[0, 0, 0, 0]
    torch.testing.assert_close(polygon[-1], polygon[0])
    apothem = polygon - polygon[:-1].mean(0)
    radius = 1 / _LEGS / (2 * math.sin(math.pi / _LEGS))
    torch.testing.assert_close(apothem.norm(dim=-1), torch.full((_LEGS + 1,), radius).double())


def test_joined_strokes_begin_where_the_one_before_ended():
    drawn = _Strokes.draw(source(), 40, 5, 1, 3)
    points = drawn.points()
    ends, starts = points[..., :-1, -1, :], points[..., 1:, 0, :]
    joined = drawn.joined[..., 1:]
    assert 0.4 < joined.double().mean() < 0.6
    torch.testing.assert_close(ends[joined], starts[joined])
    assert ((ends - starts).norm(dim=-1)[~joined] > 1e-6).all()
    counts = drawn.present.sum(-1)
    assert counts.unique().tolist() == [1, 2, 3]
    assert drawn.present[..., 0].all()


def test_distance_is_that_of_the_nearest_point_of_a_stroke():
    points = torch.rand(2, 3, 4, 2, generator=seeded(), dtype=torch.float64)  # 3 strokes, 3 legs
    present = torch.tensor([[True, True, False], [True, False, False]])
    pixels = torch.rand(30, 2, generator=seeded(1), dtype=torch.float64)
    found = _distance(pixels, points, present)
    share = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    for b in range(2):
        paths = [
            points[b, s, k] + share * (points[b, s, k + 1] - points[b, s, k])
            for s in range(3)
            if present[b, s]
            for k in range(3)
        ]
        nearest = torch.cdist(pixels, torch.cat(paths)).amin(-1)
        assert (found[b] <= nearest + 1e-9).all()
        torch.testing.assert_close(found[b], nearest, rtol=0, atol=1e-3)
    corner = torch.tensor([[[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]]], dtype=torch.float64)
    asked = torch.tensor([[0.5, 0.25], [2.0, 2.0], [1.0, 0.5]], dtype=torch.float64)
    exact = torch.tensor([[0.25, math.sqrt(2), 0.0]], dtype=torch.float64)
    torch.testing.assert_close(_distance(asked, corner, torch.tensor([[True]])), exact)


def test_a_leg_of_no_length_is_a_point():
    points = torch.full((1, 1, 3, 2), 0.5, dtype=torch.float64)
    found = _distance(torch.tensor([[0.5, 0.9]]).double(), points, torch.tensor([[True]]))
    assert found.item() == pytest.approx(0.4)


def test_drawings_fill_their_images():
    drawn = _Strokes.draw(source(), 50, 2, 1, 3)
    placed = _placed(source(1), drawn.points(), drawn.present)
    shown = drawn.present[..., None, None].expand_as(placed)
    low = placed.where(shown, torch.tensor(math.inf).double()).amin((-3, -2))
    high = placed.where(shown, torch.tensor(-math.inf).double()).amax((-3, -2))
    side = (high - low).amax(-1)
    assert side.min() >= 0.55
    assert side.max() <= 0.9
    middle = (low + high).flatten(0, -2) / 2 - 0.5
    assert (middle.mean(0).abs() < 5 * 0.04 / math.sqrt(len(middle))).all()


def test_images_of_a_class_are_alike_and_less_so_with_more_variety():
    """The nearest image is of the right class more often than not, by chance one time in five."""
    task = StrokeTaskPrior(shots=5, queries=10).sample(60, generator=seeded())
    n = task.num_context
    nearest = torch.cdist(task.X[:, n:], task.X[:, :n]).argmin(-1)
    right = (task.y[:, :n, 0].gather(1, nearest) == task.y[:, n:, 0]).double().mean(1)
    assert right.mean() - 5 * right.std() / math.sqrt(60) > 0.5
    variety = task.latents["variety"]
    low, high = right[variety < 0.5], right[variety >= 0.5]
    error = math.hypot(low.std() / math.sqrt(len(low)), high.std() / math.sqrt(len(high)))
    assert low.mean() - high.mean() > 3 * error


def test_pictures_and_fixed_shots():
    prior = StrokeTaskPrior(shots=2)
    assert prior.sample(1, generator=seeded()).num_context == 10
    assert "5-way 2-shot" in prior.description
    assert plot_tasks(prior, 1).axes


@pytest.mark.parametrize(
    ("name", "value"), [("pixels", 1), ("ways", 1), ("shots", 0), ("max_strokes", 0)]
)
def test_impossible_sizes_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        StrokeTaskPrior(**{name: value})
