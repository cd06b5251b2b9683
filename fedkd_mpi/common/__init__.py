"""Small utilities that every package may use."""
