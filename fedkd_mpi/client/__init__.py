"""One client: its state, its local training and its result."""
