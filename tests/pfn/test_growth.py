"""Larger networks that begin as smaller ones."""

from dataclasses import replace

import pytest
import torch

from pfn.architecture import ArchitectureConfig, Rows, Targets, Transformer
from pfn.growth import grown
from priors.random_state import seeded

SMALL = ArchitectureConfig(max_features=3, embedding=24, layers=2, heads=2, hidden=20, bars=12)
LARGER = {
    "max_features": {"max_features": 7},
    "embedding": {"embedding": 36, "heads": 3},
    "layers": {"layers": 5},
    "hidden": {"hidden": 33},
    "all": {"max_features": 5, "embedding": 48, "heads": 4, "layers": 3, "hidden": 40},
}


def trained(config):
    """Random weights everywhere, also where an untrained network has zeros."""
    with seeded(0):
        made = Transformer(config)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.copy_(0.3 * torch.randn_like(parameter) + parameter)
    return made.double()


def larger(network, changes):
    config = replace(network.config, **changes)
    made = Transformer(config).double()
    made.load_state_dict(grown(network.state_dict(), network.config, config))
    return made


def answers(network, classes=0):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    targets = normal(2, 9)
    if classes:
        targets = torch.randint(classes, (2, 9), generator=generator)
    missing = (normal(2, 9, 3) > 1).double()
    kind = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]).double()
    rows = Rows(normal(2, 9, 3), missing=missing, categorical=kind)
    context = network.encode(rows, Targets(targets, normal(2, 2)))
    context = network.append(context, Rows(normal(2, 3, 3)), Targets(targets[:, :3], normal(2, 2)))
    return network.decode(context, Rows(normal(2, 4, 3), noise=normal(2, 4)))


@pytest.mark.covering
@pytest.mark.parametrize("changes", LARGER.values(), ids=LARGER)
@pytest.mark.parametrize("classes", [0, 4])
def test_it_answers_as_before(changes, classes):
    small = trained(replace(SMALL, classes=classes))
    for before, after in zip(
        answers(small, classes), answers(larger(small, changes), classes), strict=True
    ):
        if before is not None:
            torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def test_every_new_part_can_learn():
    """All parameters move within two steps, the new ones too."""
    small = trained(SMALL)
    made = larger(small, LARGER["all"])
    start = {name: value.clone() for name, value in made.state_dict().items()}
    optimiser = torch.optim.SGD(made.parameters(), lr=1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        sum(found.square().mean() for found in answers(made)).backward()
        optimiser.step()
    for name, value in made.state_dict().items():
        moved = value != start[name]
        if name == "embed_x.0.weight":  # three features are told of
            slots = torch.arange(moved.shape[1] - 1) % made.config.max_features
            moved = moved[:, torch.cat([slots < 3, torch.tensor([True])])]
        assert moved.all(), name


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"layers": 1}, "layers=2 cannot be continued with layers=1"),
        ({"thinking_rows": 9}, "thinking_rows=8 cannot"),
        ({"embedding": 48}, "it needs heads=4, got 2"),
        ({"heads": 4}, "it needs heads=2, got 4"),
    ],
)
def test_what_cannot_be(changes, what):
    with pytest.raises(ValueError, match=what):
        larger(trained(SMALL), changes)


def test_networks_of_cells_cannot():
    cells = replace(SMALL, cell_layers=1, cell_embedding=16)
    with pytest.raises(ValueError, match="train one from the start"):
        larger(trained(cells), {"layers": 3})


def test_experts_are_added_with_half_of_the_weight():
    small = trained(SMALL)
    made = larger(small, {"experts": 2})
    y, f = answers(small)
    assert not bool(made.embed_advice[2].weight.any())
    assert not bool(made.mix_y.weight.any())
    for before, now in zip((y, f), answers(made), strict=True):
        torch.testing.assert_close(now[..., : before.shape[-1]], before)
        assert now.shape[-1] == before.shape[-1] + 3 * 2 + 2
