"""Benchmarks of what is believed after data."""
