"""Models of the objective over architectures and hyperparameters."""
