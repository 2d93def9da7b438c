"""The space of Ericsson et al. 2024 (2405.20838): networks from the fundamental operations up.

A module is a sequence of two modules, branches joined again, a module between two changes of
layout, or a computation. Among the branches are two that differ and four or eight alike; they get
the whole input or equal pieces of it. ResNets, transformers and MLP-mixers are members. A
computation has probability 0.32, which keeps the sizes finite, and the other modules share the
rest; everything else is uniform over what fits.

The output of a derivation, of any shape, is averaged over its positions and read out linearly.
"""

from __future__ import annotations

from collections.abc import Sequence

from nas.checks import check_choices, check_whole
from nas.spaces.expressions import Expression, branches, copies, op, routing, sequence
from nas.spaces.grammar import Grammar, Rule

__all__ = ["Einspace"]

COMPUTATION = 0.32  # probability of a computation, Ericsson et al. 2024, section 3.3


class Einspace(Grammar):
    """Networks of computations, branches and layouts for images, or for sequences of tokens.

    Args:
        input_shape: (channels, height, width) or (length, features).
        out_features: Length of an output.
        widths: Choices for the outputs of a linear map; the authors' are 16 to 2048.
        patches: Choices for patches that do not overlap; the authors' are 4, 8 and 16, beside
            those of size 1 and the overlapping ones of size 3 that are always there.
        max_depth: Modules inside modules at most.
        max_choices: Choices after which a network is ended.

    Raises:
        ValueError: a shape of another kind, or an empty or impossible choice.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        out_features: int,
        *,
        widths: Sequence[int] = (16, 32, 64, 128, 256, 512),
        patches: Sequence[int] = (4, 8, 16),
        max_depth: int = 40,
        max_choices: int = 40,
    ) -> None:
        check_choices(1, input_shape=input_shape, widths=widths, patches=patches)
        check_whole(out_features=out_features, max_depth=max_depth, max_choices=max_choices)
        shape = tuple(int(size) for size in input_shape)
        if len(shape) not in (2, 3):
            raise ValueError(
                "Einspace needs inputs (channels, height, width) or (length, features), got "
                f"{shape}."
            )
        other = (1 - COMPUTATION) / 3
        modules: list[tuple[float, Expression]] = [
            (other, sequence("module", "module")),
            (other, "branching"),
            (other, routing("layout", "module", "layout_back")),
        ]
        rules: dict[str, Rule] = {
            "network": sequence("root", "readout"),
            # A network is more than one computation.
            "root": modules,
            "module": [*modules, (COMPUTATION, "computation")],
            "branching": [
                *(
                    branches("module", "module", join="join", split=split)
                    for split in (None, 1, 2, 3)
                ),
                *(
                    branches(copies("module", count), join="join", split=split)
                    for count in (4, 8)
                    for split in (None, 1, 2, 3)
                ),
            ],
            "join": [
                op("matrix_product"),
                op("scaled_matrix_product"),
                op("sum"),
                *(op("concatenate", dim=dim) for dim in (1, 2, 3)),
            ],
            "layout": ["unchanged", "permutation", "unfolding"],
            "layout_back": ["unchanged", "permutation", op("to_image")],
            "unchanged": sequence(),
            "permutation": [
                op("permute", order=order) for order in ("21", "132", "213", "231", "312", "321")
            ],
            "unfolding": [
                op("to_patches", kernel=1, stride=1),
                op("to_patches", kernel=3, stride=1),
                *(op("to_patches", kernel=size, stride=size) for size in patches),
            ],
            "computation": [
                sequence(),
                "linear",
                op("norm"),
                op("leaky_relu"),
                op("softmax"),
                op("positions"),
            ],
            "linear": [op("pointwise", out_features=width) for width in widths],
            "readout": [
                sequence(op(pool), op("linear", out_features=out_features))
                for pool in ("global_pool", "token_mean")
            ],
        }
        super().__init__(
            shape,
            rules,
            output_shape=(out_features,),
            max_depth=max_depth,
            max_choices=max_choices,
            max_elements=1 << 20,
        )
