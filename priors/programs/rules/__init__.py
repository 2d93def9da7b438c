"""What each layer and function of torch becomes in a tensor program."""
