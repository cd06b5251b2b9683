"""The configuration of a run: sections and their checks, and how it is read."""
