"""From a tensor program to kernels: the infinite-width limits."""
