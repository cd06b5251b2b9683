"""A run on every process: its parts, its rounds, and what happens between the rounds."""
