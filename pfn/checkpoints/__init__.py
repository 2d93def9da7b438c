"""Shipped networks, each beside the module that trained it."""
