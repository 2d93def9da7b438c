"""From a `torch.nn.Module` to a tensor program."""
