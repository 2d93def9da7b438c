"""The side of the package `pfns` in `throughput`: run by its own interpreter with a JSON of sizes.

Its transformer over rows (`attention_between_features=False`, the original architecture), one step
of training with Adam and the forward pass that answers queries. It has no cache of the context in
this architecture.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from pfns.model.transformer import TableTransformer  # type: ignore[import-not-found]


def main(sizes: dict[str, Any]) -> None:
    """Measure and print one line."""
    torch.set_num_threads(sizes["threads"])
    torch.manual_seed(0)
    model = TableTransformer(
        ninp=sizes["embedding"],
        nhead=sizes["heads"],
        nhid=sizes["hidden"],
        nlayers=sizes["layers"],
        features_per_group=sizes["features"],
        attention_between_features=False,
        decoder_dict={"standard": (None, sizes["bars"])},
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    found["train"], found["query"] = [], []
    for rows in sizes["rows"]:
        n, batch = sizes["share"] * rows // 100, sizes["batch"]
        X, y = torch.randn(batch, rows, sizes["features"]), torch.randn(batch, rows)
        target = torch.randint(sizes["bars"], (batch, rows - n))

        def step(X: Any = X, y: Any = y, n: int = n, target: Any = target) -> None:
            optimiser.zero_grad(set_to_none=True)
            logits = model(X, y[:, :n])
            torch.nn.functional.cross_entropy(logits.mT, target).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()

        found["train"].append(median_seconds(step, sizes["repeats"]))
    model.eval()
    for n, q in sizes["queries"]:
        X, y, queries = torch.randn(1, n, sizes["features"]), torch.randn(1, n), None
        queries = torch.randn(1, q, sizes["features"])

        def query(X: Any = X, y: Any = y, queries: Any = queries) -> None:
            with torch.no_grad():
                model(X, y, queries).softmax(-1)

        found["query"].append(median_seconds(query, 3 * sizes["repeats"]))
    print("RESULT " + json.dumps(found))


def median_seconds(call: Any, repeats: int) -> list[float]:
    """Median CPU and wall seconds of a call, after a first one."""
    call()
    times = []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    return [sorted(column)[repeats // 2] for column in zip(*times, strict=True)]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
