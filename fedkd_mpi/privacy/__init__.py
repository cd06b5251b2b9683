"""Protection of messages, on bytes alone: key agreement and authenticated encryption."""
