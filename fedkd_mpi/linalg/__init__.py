"""Factorisations of updates; knows nothing of messages."""
