"""Transformer encoders over tokens: heads by depth at a fixed total, widths layer by layer.

With the total of heads over all layers given, a network is deep with few heads or shallow with
many; each layer has a width of its own in its feed-forward part, as in FlexiBERT (Tuli et al.
2022, 2205.11656, section 3.1). Layers are x + attention(norm x), then x + feed-forward(norm x).
"""

from __future__ import annotations

from collections.abc import Sequence

from nas.checks import check_choices, check_whole
from nas.spaces.expressions import Expression, op, residual, sequence
from nas.spaces.grammar import Grammar

__all__ = ["TransformerSpace"]


class TransformerSpace(Grammar):
    """Encoders of sequences, with the mean over positions read out linearly.

    Args:
        length: Tokens of a sequence.
        in_features: Features of a token; a linear map takes them to the width of the network.
        out_features: Length of an output.
        total_heads: Heads per layer times number of layers; its divisors are the choices.
        widths: Choices for the width of the network; one is possible with a number of heads that
            divides it.
        feedforward: Choices for the hidden width of each layer's feed-forward part.
        activations: Choices for its activation.
        max_layers: Most layers.

    Raises:
        ValueError: an empty or impossible choice.
    """

    def __init__(
        self,
        length: int,
        in_features: int,
        out_features: int,
        *,
        total_heads: int = 8,
        widths: Sequence[int] = (32, 64),
        feedforward: Sequence[int] = (32, 64, 128),
        activations: Sequence[str] = ("relu", "gelu"),
        max_layers: int = 8,
    ) -> None:
        check_whole(
            length=length,
            in_features=in_features,
            out_features=out_features,
            total_heads=total_heads,
            max_layers=max_layers,
        )
        check_choices(1, widths=widths, feedforward=feedforward)
        check_choices(activations=activations)
        depths = [n for n in range(1, max_layers + 1) if total_heads % n == 0]
        rules: dict[str, Expression | list[Expression]] = {
            "network": sequence(
                "embedding", "layers", op("norm"), op("token_mean"),
                op("linear", out_features=out_features),
            ),
            "embedding": [
                sequence(op("linear", out_features=width), op("positions")) for width in widths
            ],
            "layers": [sequence(*[f"layer_{total_heads // n}"] * n) for n in depths],
        }  # fmt: skip
        for depth in depths:
            heads = total_heads // depth
            rules[f"layer_{heads}"] = sequence(
                residual(op("norm"), op("attention", heads=heads)), "feedforward"
            )
        # The last map leads back to the width of the network, which the sum asks for.
        rules["feedforward"] = residual(op("norm"), "hidden", "narrowing")
        rules["hidden"] = [
            sequence(op("linear", out_features=width), op(activation))
            for width in feedforward
            for activation in activations
        ]
        rules["narrowing"] = [op("linear", out_features=width) for width in widths]
        super().__init__((length, in_features), rules, output_shape=(out_features,))
