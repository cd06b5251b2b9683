"""Fault tolerance: checkpoints, stopping, the watchdog, and the lock of a log."""
