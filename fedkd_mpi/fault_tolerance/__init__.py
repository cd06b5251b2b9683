"""What lets a run survive: checkpoints, stopping, the watchdog, the lock of a log."""
