"""From a `torch.nn.Module` to a tensor program; the rules for torch's layers are registered."""

from priors.programs import rules

__all__ = ["rules"]
