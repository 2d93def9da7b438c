"""Operations that grammars put together: layouts, products, convolutions, attention.

An image is (channels, height, width), a sequence of tokens (length, features). Most follow the
terminals of einspace (Ericsson et al. 2024, 2405.20838, appendix): branches read by a product or a
sum, layouts changed by permutations and by cutting images into patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.architectures.shapes import Built, Shape, image, one, tokens

__all__ = ["TENSOR_OPERATIONS"]

Shapes = tuple[Shape, ...]


class Concatenate(nn.Module):
    """Inputs one behind the other along a dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *inputs: Tensor) -> Tensor:
        """`[b, ..., sum of sizes, ...]`."""
        return torch.cat(inputs, dim=self.dim)


class Chunk(nn.Module):
    """One of several equal pieces along a dimension."""

    def __init__(self, dim: int, start: int, length: int) -> None:
        super().__init__()
        self.dim, self.start, self.length = dim, start, length

    def forward(self, x: Tensor) -> Tensor:
        """The piece."""
        return x.narrow(self.dim, self.start, self.length)


class Product(nn.Module):
    """Elementwise product of inputs of one shape."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """The product, of the shape of each input."""
        total = first
        for other in others:
            total = total * other
        return total


class MatrixProduct(nn.Module):
    """x y, or x y / sqrt(inner length)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """`[b, n, k]` and `[b, k, m]` to `[b, n, m]`."""
        return self.scale * (x @ y)


class ImageNorm(nn.GroupNorm):
    """Group normalisation of one group, of images in any memory layout.

    PyTorch's own ends the process in the backward pass of a channels-last input that needs no
    gradient, as the permuted pixels of a batch are.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised `[b, channels, h, w]`."""
        return super().forward(x.contiguous())


class Permute(nn.Module):
    """Dimensions in another order."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """The same values."""
        return x.permute(0, *self.order)


class ToPatches(nn.Module):
    """An image as a sequence of its patches."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.unfold = nn.Unfold(
            kernel, padding=(kernel - 1) // 2 if stride == 1 else 0, stride=stride
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[b, c, h, w]` to `[b, patches, c * kernel^2]`."""
        return self.unfold(x).transpose(1, 2)


class ToImage(nn.Module):
    """A sequence whose length is a square number as an image."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """`[b, side^2, c]` to `[b, c, side, side]`."""
        return x.transpose(1, 2).unflatten(2, (self.side, self.side))


class Positions(nn.Module):
    """Adds sines and cosines of the position (Vaswani et al. 2017, section 3.5)."""

    code: Tensor

    def __init__(self, length: int, features: int) -> None:
        super().__init__()
        place = torch.arange(length, dtype=torch.float32)[:, None]
        column = torch.arange(features)
        rate = torch.exp(-math.log(1e4) * (column - column % 2) / features)
        angle = place * rate
        code = torch.where(column % 2 == 0, angle.sin(), angle.cos())
        self.register_buffer("code", code, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[b, length, features]` to the same."""
        return x + self.code.to(x.dtype)


class Attention(nn.Module):
    """Self-attention of several heads, with biases, without dropout."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.incoming = nn.Linear(features, 3 * features)
        self.outgoing = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """`[b, length, features]` to the same."""
        parts = self.incoming(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.outgoing(mixed.transpose(1, 2).flatten(-2))


class Pointwise(nn.Module):
    """One linear map at every pixel of an image."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.map = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[b, in, h, w]` to `[b, out, h, w]`."""
        return self.map(x)


class MeanOverTokens(nn.Module):
    """The mean over positions."""

    def forward(self, x: Tensor) -> Tensor:
        """`[b, length, features]` to `[b, features]`."""
        return x.mean(1)


def _concatenate(shapes: Shapes, dim: int) -> Built:
    first = shapes[0]
    _check_dim(first, dim)
    others = {tuple(size for axis, size in enumerate(s, 1) if axis != dim) for s in shapes}
    if len(others) > 1 or len({len(shape) for shape in shapes}) > 1:
        raise ValueError(f"inputs may differ in dimension {dim} only, got {list(shapes)}.")
    total = sum(shape[dim - 1] for shape in shapes)
    return Concatenate(dim), (*first[: dim - 1], total, *first[dim:])


def _chunk(shapes: Shapes, dim: int, parts: int, index: int) -> Built:
    shape = one(shapes)
    _check_dim(shape, dim)
    length, rest = divmod(shape[dim - 1], parts)
    if rest or not 0 <= index < parts:
        raise ValueError(f"piece {index} of {parts} of dimension {dim} of {shape} does not exist.")
    return Chunk(dim, index * length, length), (*shape[: dim - 1], length, *shape[dim:])


def _check_dim(shape: Shape, dim: int) -> None:
    if not 1 <= dim <= len(shape):
        raise ValueError(f"dim must be between 1 and {len(shape)}, got {dim}.")


def _product(shapes: Shapes) -> Built:
    if len(set(shapes)) != 1:
        raise ValueError(f"a product needs inputs of one shape, got {list(shapes)}.")
    return Product(), shapes[0]


def _matrix_product(*, scaled: bool) -> Callable[[Shapes], Built]:
    def build(shapes: Shapes) -> Built:
        if len(shapes) != 2 or any(len(shape) != 2 for shape in shapes):
            raise ValueError(f"expected two inputs (rows, columns), got {list(shapes)}.")
        (rows, inner), (other, columns) = shapes
        if inner != other:
            raise ValueError(f"the matrices {shapes[0]} and {shapes[1]} do not fit each other.")
        return MatrixProduct(inner**-0.5 if scaled else 1.0), (rows, columns)

    return build


def _permute(shapes: Shapes, order: str) -> Built:
    shape = one(shapes)
    axes = tuple(int(axis) for axis in order)
    if sorted(axes) != list(range(1, len(shape) + 1)):
        raise ValueError(f"order {order!r} does not name dimensions 1 to {len(shape)} once each.")
    return Permute(axes), tuple(shape[axis - 1] for axis in axes)


def _to_patches(shapes: Shapes, kernel: int, stride: int) -> Built:
    channels, height, width = image(shapes)
    padding = 2 * ((kernel - 1) // 2) if stride == 1 else 0
    sides = [(size + padding - kernel) // stride + 1 for size in (height, width)]
    if min(sides) < 1 or (stride > 1 and (height % stride or width % stride)):
        raise ValueError(f"patches of {kernel} every {stride} do not fit {height} x {width}.")
    return ToPatches(kernel, stride), (sides[0] * sides[1], channels * kernel**2)


def _to_image(shapes: Shapes) -> Built:
    length, features = tokens(shapes)
    side = math.isqrt(length)
    if side**2 != length:
        raise ValueError(f"a sequence of {length} is not a square image.")
    return ToImage(side), (features, side, side)


def _positions(shapes: Shapes) -> Built:
    shape = tokens(shapes)
    return Positions(*shape), shape


def _attention(shapes: Shapes, heads: int) -> Built:
    shape = tokens(shapes)
    if shape[1] % heads:
        raise ValueError(f"{shape[1]} features are not a multiple of {heads} heads.")
    return Attention(shape[1], heads), shape


def _pointwise(shapes: Shapes, out_features: int) -> Built:
    shape = one(shapes)
    if len(shape) == 3:
        return Pointwise(shape[0], out_features), (out_features, *shape[1:])
    *front, last = shape
    return nn.Linear(last, out_features), (*front, out_features)


def _conv(shapes: Shapes, kernel: int, out_channels: int = 0, stride: int = 1) -> Built:
    channels, height, width = image(shapes)
    if height % stride or width % stride:
        raise ValueError(f"a stride of {stride} does not divide {height} x {width}.")
    made = out_channels or channels
    if kernel % 2 == 0:
        raise ValueError(f"the kernel must be odd, got {kernel}.")
    module = nn.Conv2d(channels, made, kernel, stride, kernel // 2, bias=False)
    return module, (made, height // stride, width // stride)


def _batch_norm(shapes: Shapes) -> Built:
    shape = image(shapes)
    return nn.BatchNorm2d(shape[0]), shape


def _norm(shapes: Shapes) -> Built:
    """Group normalisation of one group for images, layer normalisation for others."""
    shape = one(shapes)
    if math.prod(shape) == 1:  # of which GroupNorm takes no single example
        return nn.LayerNorm(shape), shape
    if len(shape) == 3:
        return ImageNorm(shape[0]), shape
    return nn.LayerNorm(shape[-1]), shape


def _softmax(shapes: Shapes) -> Built:
    return nn.Softmax(dim=-1), one(shapes)


def _flatten(shapes: Shapes) -> Built:
    return nn.Flatten(), (math.prod(one(shapes)),)


def _token_mean(shapes: Shapes) -> Built:
    return MeanOverTokens(), (tokens(shapes)[1],)


def _global_pool(shapes: Shapes) -> Built:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), (image(shapes)[0],)


def _max_pool(shapes: Shapes) -> Built:
    channels, height, width = image(shapes)
    if height % 2 or width % 2:
        raise ValueError(f"pooling halves height and width, got {height} x {width}.")
    return nn.MaxPool2d(2), (channels, height // 2, width // 2)


# Label to builder, weight layers and whether the order of inputs means nothing.
TENSOR_OPERATIONS: dict[str, tuple[Callable[..., Built], int, bool]] = {
    "attention": (_attention, 2, False),
    "batch_norm": (_batch_norm, 0, False),
    "chunk": (_chunk, 0, False),
    "concatenate": (_concatenate, 0, False),
    "conv": (_conv, 1, False),
    "flatten": (_flatten, 0, False),
    "global_pool": (_global_pool, 0, False),
    "matrix_product": (_matrix_product(scaled=False), 0, False),
    "max_pool": (_max_pool, 0, False),
    "norm": (_norm, 0, False),
    "permute": (_permute, 0, False),
    "pointwise": (_pointwise, 1, False),
    "positions": (_positions, 0, False),
    "product": (_product, 0, True),
    "scaled_matrix_product": (_matrix_product(scaled=True), 0, False),
    "softmax": (_softmax, 0, False),
    "to_image": (_to_image, 0, False),
    "to_patches": (_to_patches, 0, False),
    "token_mean": (_token_mean, 0, False),
}
