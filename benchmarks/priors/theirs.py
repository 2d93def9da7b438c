"""neural-tangents' side of `kernels`: run by its own interpreter, one case each time."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def main(case: str, dtype: str, repeats: int) -> None:
    """Measure one case, jitted."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_enable_x64", dtype == "float64")
    import jax.numpy as np
    from measure import BIAS_VAR, NOISE_VAR, WEIGHT_VAR, inputs, report
    from neural_tangents import stax

    w, b = WEIGHT_VAR**0.5, BIAS_VAR**0.5

    def dense(w: Any = w, b: Any = b) -> Any:
        return stax.Dense(1, w, b)

    def fc(ws: Any = (w,) * 4, bs: Any = (b,) * 4) -> Any:
        layers = []
        for k in range(3):
            layers += [dense(ws[k], bs[k]), stax.Relu()]
        return stax.serial(*layers, dense(ws[3], bs[3]))[2]

    def conv(head: Any) -> Any:
        layers = [stax.Conv(1, (3, 3), padding="SAME", W_std=w, b_std=b), stax.Relu()]
        return stax.serial(*layers * 4, head, dense())[2]

    def attention() -> Any:
        # one weight variance for queries and keys together: W_query_std W_key_std = w^2
        mixed = stax.GlobalSelfAttention(
            n_chan_out=1,
            n_chan_key=1,
            n_chan_val=1,
            n_heads=1,
            linear_scaling=True,
            W_key_std=w,
            W_query_std=w,
            W_value_std=w,
            W_out_std=w,
            b_std=b,
        )
        return stax.serial(dense(), mixed, dense(), stax.Relu(), stax.GlobalAvgPool(), dense())[2]

    x, z, y = inputs(case, dtype)
    x, y = np.asarray(x), np.asarray(y)
    z = None if z is None else np.asarray(z)

    if case.startswith("likelihood"):

        def loss(parameters: Any) -> Any:
            ws, bs = parameters
            kernel = fc(ws, bs)(x, None, "nngp") + NOISE_VAR * np.eye(len(x))
            root = np.linalg.cholesky(kernel)
            half = jax.scipy.linalg.solve_triangular(root, y, lower=True)
            return (half @ half) / 2 + np.log(np.diag(root)).sum()

        gradient = jax.jit(jax.value_and_grad(loss))
        start = ([w] * 4, [b] * 4)

        def call() -> Any:
            return jax.block_until_ready(gradient(start))

        def numbers(result: Any) -> Any:
            value, (dw, db) = result
            # of the variances: d/dv = d/ds / (2 s)
            return [
                float(value),
                *(float(g) / (2 * w) for g in dw),
                *(float(g) / (2 * b) for g in db),
            ]

    else:
        kernel = {
            "fc": fc,
            "conv+gap": lambda: conv(stax.GlobalAvgPool()),
            "conv+flatten": lambda: conv(stax.Flatten()),
            "attention": attention,
        }[case.split()[0]]()
        both = jax.jit(lambda a, c: tuple(kernel(a, c, ("nngp", "ntk"))))
        own = jax.jit(lambda a: tuple(kernel(a, None, ("nngp", "ntk"))))

        def call() -> Any:
            return jax.block_until_ready(own(x) if z is None else both(x, z))

        def numbers(result: Any) -> Any:
            return [[[float(v) for v in row[:4]] for row in k[:3]] for k in result]

    report(call, numbers, repeats)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
