"""Exact processes: a kernel conditioned on all rows by a factorisation."""
