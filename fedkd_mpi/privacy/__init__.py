"""Protection of messages (key agreement, authenticated encryption) and of updates (differential privacy)."""
