"""Factorisations of updates; independent of messages."""
