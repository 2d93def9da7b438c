"""Few-shot classification of images of pen strokes.

Every class is a prototype, as a character of an unknown script is: one to `max_strokes` strokes of
a pen that goes on at constant speed while its heading turns, evenly up to some place and evenly but
differently after it, with a corner there now and then. Lines, arcs, hooks, waves and loops are
special cases. Every image of a class draws its prototype anew: start, length and turns of each
stroke differ a little; the drawing is rotated, sheared and stretched, placed and scaled by its
bounding box, and inked with a pen of some thickness and blur.

Müller et al. 2022 (2112.10510), section 5.3, train a network on random lines for Omniglot. Here
strokes bend, instances differ by more than noise, and images are of any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from priors.randomness import RandomSource
from priors.tasks.task import Task
from priors.tasks.validation import check_at_least

__all__ = ["StrokeTaskPrior"]

_LEGS = 8  # straight pieces of a stroke
# Standard deviations of what differs between the images of a class, in tasks of the most variety.
_TURNS = 0.5  # of a stroke's heading and of all its turns together, radians
_SHIFT = 0.12  # of where a stroke starts, in lengths of a side
_STRETCH = 0.25  # of the logarithm of its length
_ROTATION, _SHEAR, _ASPECT = 0.25, 0.3, 0.25


@dataclass(frozen=True)
class StrokeTaskPrior:
    """N-way K-shot tasks: K images of each of N classes, and as many queries of each.

    Images are rows of `pixels`^2 intensities in [0, 1], row by row from the top, 0 for paper.
    Context rows are in random order, and so are queries. A call draws tasks of one K. `Task.f` is
    None, `Task.noise_var` infinite. Latents: "variety" `[B]`, how much the images of a class
    differ, in [0, 1].

    Attributes:
        pixels: Side of an image.
        ways: Classes of a task, N.
        shots: Images of each class in the context, K; drawn from 1 to `max_shots` if None, small
            numbers more often.
        max_shots: Most images of each class in the context.
        queries: Images of each class to be told.
        max_strokes: Most strokes of a class.
    """

    pixels: int = 8
    ways: int = 5
    shots: int | None = None
    max_shots: int = 10
    queries: int = 4
    max_strokes: int = 3
    exchangeable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_at_least(self, pixels=2, ways=2, shots=1, max_shots=1, queries=1, max_strokes=1)

    @property
    def description(self) -> str:
        """One line for a checkpoint."""
        shots = f"1-{self.max_shots}" if self.shots is None else f"{self.shots}"
        return (
            f"{self.ways}-way {shots}-shot images of strokes, {self.pixels} x {self.pixels} "
            "(priors.StrokeTaskPrior)"
        )

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Task:
        """Draw `batch` tasks: prototypes of all classes, and their images."""
        draws = RandomSource(generator, device, dtype)
        shots = draws.log_integer(1, self.max_shots) if self.shots is None else self.shots
        variety = draws.uniform(batch)
        prototypes = _Strokes.draw(draws, batch, self.ways, 1, self.max_strokes)
        strokes = prototypes.again(draws, variety, shots + self.queries)
        points = _placed(draws, _transformed(draws, strokes.points(), variety), strokes.present)
        images = self._inked(draws, points, strokes.present).flatten(-2)
        # [B, ways, images, d], the first images of every class to the context
        label = torch.arange(self.ways, device=images.device)[:, None]
        X, y = [], []
        for part in (images[:, :, :shots], images[:, :, shots:]):
            count = part.shape[2]
            order = draws.permutations(self.ways * count, batch)
            shown = label.expand(-1, count).reshape(1, -1).expand(batch, -1)
            rows = part.flatten(1, 2)
            X.append(rows.gather(1, order[..., None].expand_as(rows)))
            y.append(shown.gather(1, order))
        return Task(
            X=torch.cat(X, 1),
            y=torch.cat(y, 1)[..., None].to(images),
            f=None,
            noise_var=images.new_full((batch,), torch.inf),
            num_context=self.ways * shots,
            num_classes=torch.full((batch,), self.ways, device=images.device),
            latents={"variety": variety},
        )

    def _inked(self, draws: RandomSource, points: Tensor, present: Tensor) -> Tensor:
        """Images `[B, W, I, pixels, pixels]` of strokes along `points` `[B, W, I, S, L + 1, 2]`."""
        lead, P = points.shape[:3], self.pixels
        along = (torch.arange(P, device=points.device, dtype=points.dtype) + 0.5) / P
        # [P^2, 2], x from the left and y from the top
        pixels = torch.stack(torch.meshgrid(along, along, indexing="xy"), -1).flatten(0, 1)
        distance = _distance(pixels, points, present)  # [B, W, I, P^2]
        # Pens belong to tasks, pressure to images; in pixels of an 8 x 8 image.
        unit = 1 / 8
        radius = unit * draws.log_uniform(0.3, 1.0, lead[0], 1, 1, 1)
        radius = radius * torch.exp(0.2 * draws.normal(*lead, 1))
        blur = unit * draws.log_uniform(0.1, 0.5, lead[0], 1, 1, 1)
        image = torch.sigmoid((radius - distance) / blur)
        image = image * (1 - 0.3 * draws.uniform(*lead, 1))
        noise = 0.1 * draws.share(0.3, lead[0], 1, 1, 1)
        image = (image + noise * draws.normal(*image.shape)).clamp(0, 1)
        return image.unflatten(-1, (P, P))


@dataclass(frozen=True)
class _Strokes:
    """Strokes of drawings, of B tasks, W classes, I images and at most S strokes.

    Attributes:
        start: Where strokes begin, `[B, W, I, S, 2]`; relative to the end of the one before where
            they are joined to it.
        joined: Whether they are, `[B, W, I, S]`.
        present: Whether there is such a stroke, `[B, W, I, S]`.
        heading: At the start, radians, `[B, W, I, S]`.
        turns: Of the heading at each joint of legs, radians, `[B, W, I, S, L - 1]`.
        length: `[B, W, I, S]`.
    """

    start: Tensor
    joined: Tensor
    present: Tensor
    heading: Tensor
    turns: Tensor
    length: Tensor

    @staticmethod
    def draw(draws: RandomSource, *shape: int) -> _Strokes:
        """Strokes of `[B, W, 1, S]` prototypes in a unit square."""
        *lead, S = shape
        count = 1 + draws.integers(S, *lead, 1)
        joint = torch.arange(1, _LEGS, device=count.device)
        place = draws.integers(_LEGS, *shape, 1)
        # Turns of the whole stroke: half of the parts are straight, the others up to a circle.
        straight = draws.bernoulli(0.5, *shape, 2)
        bend = (2 * draws.uniform(*shape, 2) - 1) * (2 * math.pi) * ~straight / _LEGS
        turns = torch.where(joint < place, bend[..., :1], bend[..., 1:])
        corner = (2 * draws.uniform(*shape, 1) - 1) * (0.9 * math.pi)
        corner = corner * draws.bernoulli(0.4, *shape, 1)
        joined = draws.bernoulli(0.5, *shape)
        joined[..., 0] = False
        start = draws.uniform(*shape, 2)
        return _Strokes(
            start=torch.where(joined[..., None], 0, start),
            joined=joined,
            present=torch.arange(S, device=count.device) < count,
            heading=2 * math.pi * draws.uniform(*shape),
            turns=turns + corner * (joint == place),
            length=draws.log_uniform(0.3, 2.0, *shape),
        )

    def again(self, draws: RandomSource, variety: Tensor, images: int) -> _Strokes:
        """The same strokes drawn `images` times by a hand of some variety `[B]`."""
        B, W, _, S = self.length.shape
        shape, scale = (B, W, images, S), variety[:, None, None, None]
        wobble = draws.normal(*shape, _LEGS - 1) / math.sqrt(_LEGS - 1)
        turn = draws.normal(*shape, 1) / (_LEGS - 1)
        return _Strokes(
            start=self.start + _SHIFT * scale[..., None] * draws.normal(*shape, 2),
            joined=self.joined.expand(shape),
            present=self.present.expand(shape),
            heading=self.heading + _TURNS * scale * draws.normal(*shape),
            turns=self.turns + _TURNS * scale[..., None] * (wobble + turn),
            length=self.length * torch.exp(_STRETCH * scale * draws.normal(*shape)),
        )

    def points(self) -> Tensor:
        """Ends of the legs, `[B, W, I, S, L + 1, 2]`."""
        heading = torch.cat([self.heading[..., None], self.turns], -1).cumsum(-1)
        legs = torch.stack([heading.cos(), heading.sin()], -1)
        legs = legs * (self.length / _LEGS)[..., None, None]
        path = torch.cat([torch.zeros_like(legs[..., :1, :]), legs.cumsum(-2)], -2)
        starts = [self.start[..., 0, :]]
        for s in range(1, self.start.shape[-2]):
            end = starts[-1] + path[..., s - 1, -1, :]
            own = self.start[..., s, :]
            starts.append(torch.where(self.joined[..., s, None], end + own, own))
        return torch.stack(starts, -2)[..., None, :] + path


def _transformed(draws: RandomSource, points: Tensor, variety: Tensor) -> Tensor:
    """Drawings rotated, sheared and stretched, each in its own way."""
    lead, scale = points.shape[:3], variety[:, None, None]
    angle = _ROTATION * scale * draws.normal(*lead)
    shear = _SHEAR * scale * draws.normal(*lead)
    aspect = torch.exp(_ASPECT * scale * draws.normal(*lead) / 2)
    cos, sin = angle.cos(), angle.sin()
    # Stretch and shear, then rotate.
    first = torch.stack([cos * aspect, cos * shear - sin / aspect], -1)
    second = torch.stack([sin * aspect, sin * shear + cos / aspect], -1)
    matrix = torch.stack([first, second], -2)[:, :, :, None]
    return points @ matrix.mT


def _placed(draws: RandomSource, points: Tensor, present: Tensor) -> Tensor:
    """Drawings moved and scaled so that their bounding boxes about fill the unit square."""
    shown = present[..., None, None]
    low = torch.where(shown, points, torch.inf).amin((-3, -2), keepdim=True)
    high = torch.where(shown, points, -torch.inf).amax((-3, -2), keepdim=True)
    extent = (high - low).amax(-1, keepdim=True).clamp_min(1e-3)
    shape = (*points.shape[:3], 1, 1)
    side = 0.55 + 0.35 * draws.uniform(*shape, 1)
    centre = 0.5 + 0.04 * draws.normal(*shape, 2)
    return (points - (low + high) / 2) / extent * side + centre


def _distance(pixels: Tensor, points: Tensor, present: Tensor) -> Tensor:
    """Distance of pixels `[p, 2]` to the nearest leg of a drawing `[..., S, L + 1, 2]`, `[..., p]`.

    Of strokes that are not `present` it is infinite.
    """
    start = points[..., :-1, :].flatten(-3, -2)
    leg = (points[..., 1:, :] - points[..., :-1, :]).flatten(-3, -2)  # [..., S L, 2]
    squared = leg.square().sum(-1, keepdim=True).clamp_min(1e-12)
    # |p - a|^2 and (p - a) . leg from products of matrices, `[..., S L, p]`
    along = leg @ pixels.mT - (leg * start).sum(-1, keepdim=True)
    from_start = (
        pixels.square().sum(-1) - 2 * (start @ pixels.mT) + start.square().sum(-1, keepdim=True)
    )
    t = (along / squared).clamp(0, 1)
    square = from_start - 2 * t * along + t.square() * squared
    away = ~present[..., None].expand(*present.shape, points.shape[-2] - 1).flatten(-2)
    return square.masked_fill(away[..., None], torch.inf).amin(-2).clamp_min(0).sqrt()
