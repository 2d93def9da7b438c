"""Architectures as data: graphs of labelled operations, their identity, cost, text and picture."""

from nas.architectures.architecture import Architecture, Node

__all__ = ["Architecture", "Node"]
