"""A run on every process: what it is made of, its rounds, and what happens between them."""
