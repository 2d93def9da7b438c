"""Architectures as data: graphs of labelled operations, their identity, cost, text and picture."""
