"""One client: its state, its local training, and what came of it."""
