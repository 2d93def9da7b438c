"""Candidates and their values as a surrogate sees them."""
