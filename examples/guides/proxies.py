# Made from docs/pages/guides/proxies.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # Scores without training
#
# A proxy scores a network that was never trained, from a few of your rows. It costs milliseconds where a
# training costs minutes. Whether it helps depends on the task, so here it is a descriptor whose weight the
# surrogate learns: one that tells nothing is switched off.
#
# ## By name

# %%
import torch

import nas
from nas.proxies import PROXIES

generator = torch.Generator().manual_seed(0)
X = torch.randn(64, 8, generator=generator)
y = (X[:, 0] * X[:, 1] > 0).long()
space = nas.spaces.MLPSpace(8, 2, widths=(16, 64))
network = space.random(generator)
print(network)
for name, proxy in PROXIES.items():
    print(f"{name:16} {proxy(network, X, y):8.3f}")

# %% [markdown]
# | name | what it is |
# |---|---|
# | `nngp_evidence`, `ntk_evidence` | log marginal likelihood of your targets under the candidate's own kernel, nats per target |
# | `ntk_condition` | log condition number of its tangent kernel; smaller trains more easily (Chen et al. 2021) |
# | `label_alignment` | centred alignment of the tangent kernel with the targets (Cortes et al. 2012) |
# | `predicted_error` | squared error that theory predicts of its tangent kernel, in units of the variance of y |
# | `naswot` | how differently its units answer to different rows (Mellor et al. 2021) |
# | `synflow` | log synaptic flow (Tanaka et al. 2020) |
# | `parameters`, `flops` | log size: what any other has to beat |
#
# Kernels are those of the infinitely wide network where `priors.InfiniteNetwork` covers the architecture, and the
# tangent kernel of the untrained network otherwise. A proxy takes a `torch.nn.Module` too.
#
# ## In a search

# %%
scores = nas.proxies.ProxyScores(["nngp_evidence", "naswot"], X, y, max_rows=32)
sampler = nas.BayesianSampler(space, proxies=scores, num_initial=4, seed=0)
print(sampler.surrogate, scores(network))

# %% [markdown]
# `nas.search(..., sampler=sampler)` uses them. Each architecture that a proposal looks at is scored once; for large
# spaces choose quick ones (`naswot`, `synflow`) or few rows.
#
# ## Your own
#
# Any callable `proxy(candidate, X, y) -> float` of a module or an architecture.

# %%
def relu_share(candidate, X, y):
    counts = candidate.operation_counts()
    return counts.get("relu", 0) / sum(counts.values())


print(nas.proxies.ProxyScores([relu_share, "parameters"], X, y)(network))
