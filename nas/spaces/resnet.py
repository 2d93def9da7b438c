"""Residual networks: stages of basic or bottleneck blocks, with widths, depths and kernels.

A block computes relu(x + F(x)), F of two convolutions (basic) or of a narrow one between two of
size 1 (bottleneck), each with batch normalisation (He et al. 2016, 1512.03385, section 3.3). Each
stage but the first halves the image by a strided convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

from nas.checks import check_choices, check_whole
from nas.spaces.expressions import Expression, op, residual, sequence
from nas.spaces.grammar import Grammar

__all__ = ["ResNetSpace"]


class ResNetSpace(Grammar):
    """Image classifiers of residual stages.

    Args:
        num_classes: Outputs of the classifier.
        in_channels: Channels of an image.
        image_size: Height and width of an image, divisible by 2 for each stage after the first.
        widths: Choices for the channels of the first stage; each later one takes a choice
            of 1 or 2 times those before it.
        num_stages: Number of stages.
        max_blocks: Most blocks in a stage; the least is one.
        kernels: Choices for the kernel of each basic block, odd.

    Raises:
        ValueError: an empty or impossible choice.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        image_size: int = 32,
        widths: Sequence[int] = (16, 32, 64),
        num_stages: int = 3,
        max_blocks: int = 3,
        kernels: Sequence[int] = (3, 5),
    ) -> None:
        check_whole(
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            num_stages=num_stages,
            max_blocks=max_blocks,
        )
        check_choices(1, widths=widths, kernels=kernels)
        if any(kernel % 2 == 0 for kernel in kernels):
            raise ValueError(f"kernels must be odd, got {tuple(kernels)}.")
        if image_size % 2 ** (num_stages - 1):
            raise ValueError(
                "image_size must be divisible by 2 for each stage after the first, got "
                f"{image_size} and {num_stages} stages."
            )
        stages = [f"stage_{number}" for number in range(1, num_stages + 1)]
        rules: dict[str, Expression | list[Expression]] = {
            "network": sequence(*stages, op("global_pool"), op("linear", out_features=num_classes))
        }
        for number, stage in enumerate(stages):
            channels = sorted({width * 2**k for width in widths for k in range(number + 1)})
            stride = 2 if number else 1
            rules[stage] = [
                sequence(
                    op("conv", kernel=3, out_channels=width, stride=stride),
                    op("batch_norm"),
                    op("relu"),
                    "blocks",
                )
                for width in channels
            ]
        rules["blocks"] = [sequence(*["block"] * count) for count in range(1, max_blocks + 1)]
        rules["block"] = [
            *(
                sequence(residual(*_normed(kernel), op("relu"), *_normed(kernel)), op("relu"))
                for kernel in kernels
            ),
            "bottleneck",
        ]
        rules["bottleneck"] = [
            sequence(
                residual(*_normed(1, channels), op("relu"), *_normed(3), op("relu"), "widening"),
                op("relu"),
            )
            for channels in sorted({max(1, width // 4) for width in widths})
        ]
        every = sorted({width * 2**k for width in widths for k in range(num_stages)})
        rules["widening"] = [sequence(*_normed(1, width)) for width in every]
        super().__init__((in_channels, image_size, image_size), rules, output_shape=(num_classes,))


def _normed(kernel: int, out_channels: int = 0) -> tuple[Expression, Expression]:
    """A convolution and its normalisation; without channels given, as many as come in."""
    return op("conv", kernel=kernel, out_channels=out_channels), op("batch_norm")
