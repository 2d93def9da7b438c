"""Our side of `kernels`: one case each time, in a process of its own."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.priors.measure import BIAS_VAR, NOISE_VAR, WEIGHT_VAR, inputs, report
from priors import InfiniteNetwork

WIDTH = 8


class Attention(nn.Module):
    """A self-attention block with tied queries and keys, scaled by 1 / width."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query = nn.Linear(8, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.value, self.mix = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.hidden, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[batch, token, feature]`."""
        h = self.embed(x)
        q = self.query(h)
        h = self.mix(F.scaled_dot_product_attention(q, q, self.value(h), scale=1 / WIDTH))
        return self.out(F.relu(self.hidden(h)).mean(1))


def network(kind: str) -> InfiniteNetwork:
    """The network of a case."""
    options: dict[str, Any] = {"weight_var": WEIGHT_VAR, "bias_var": BIAS_VAR}
    if kind in ("fc", "likelihood"):
        layers: list[nn.Module] = []
        for k in range(3):
            layers += [nn.Linear(32 if k == 0 else WIDTH, WIDTH), nn.ReLU()]
        return InfiniteNetwork(nn.Sequential(*layers, nn.Linear(WIDTH, 1)), **options)
    if kind == "attention":
        return InfiniteNetwork(Attention(), input_shape=(16, 8), **options)
    layers = []
    for k in range(4):
        layers += [nn.Conv2d(3 if k == 0 else WIDTH, WIDTH, 3, padding=1), nn.ReLU()]
    if kind == "conv+gap":
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 1)]
    else:
        layers += [nn.Flatten(), nn.Linear(256 * WIDTH, 1)]
    return InfiniteNetwork(nn.Sequential(*layers), input_shape=(3, 16, 16), **options)


def rows(points: Any, device: str) -> Tensor:
    """Channels first, one row each; tokens stay as they are."""
    tensor = torch.from_numpy(points).to(device)
    if tensor.dim() == 4:
        tensor = tensor.movedim(-1, 1)
    return tensor.reshape(len(tensor), -1).contiguous()


def main(case: str, dtype: str, repeats: int, device: str) -> None:
    """Measure one case."""
    made = network(case.split()[0]).to(device)
    points, others, targets = inputs(case, dtype)
    x = rows(points, device)
    z = None if others is None else rows(others, device)
    y = torch.from_numpy(targets).to(device)

    def finished() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    if case.startswith("likelihood"):
        made = made.to(x.dtype)

        def call() -> Any:
            made.zero_grad()
            kernel = made.nngp(x) + NOISE_VAR * torch.eye(len(x), dtype=x.dtype, device=device)
            root = torch.linalg.cholesky(kernel)
            half = torch.linalg.solve_triangular(root, y[:, None], upper=False)
            loss = half.square().sum() / 2 + root.diagonal().log().sum()
            loss.backward()
            finished()
            return loss

        def numbers(result: Any) -> Any:
            found = [float(result.detach())]
            for kind, layers in (("weight", made.program.weights), ("bias", made.program.biases)):
                for layer in layers:
                    raw = getattr(made.variances, f"raw_{kind}_var_{layer}")
                    # the parameter is the logarithm of the variance
                    found.append(float(raw.grad) / float(made.variances.value(kind, layer)))
            return found

    else:

        def call() -> Any:
            with torch.no_grad():
                result = made.kernels(x, z)
            finished()
            return result

        def numbers(result: Any) -> Any:
            return [[[float(v) for v in row[:4]] for row in k[:3]] for k in result]

    report(call, numbers, repeats)
    if device != "cpu":
        bandwidth(case, x, call)


def bandwidth(case: str, x: Tensor, call: Any) -> None:
    """Share of the device's copy bandwidth that writing the two kernels reaches."""
    import time

    n = len(x)
    source = torch.empty(2**28, device=x.device)
    target = torch.empty_like(source)
    times = []
    for work in (lambda: target.copy_(source), call):
        work()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(5):
            work()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / 5)
    rate = 2 * source.numel() * 4 / times[0]
    share = 2 * n * n * x.element_size() / times[1] / rate
    sys.stdout.write(f"BANDWIDTH {share} {math.floor(rate / 1e9)}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
