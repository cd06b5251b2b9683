"""The configuration of a run: its sections, their validation, and loading."""
