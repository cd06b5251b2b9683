"""Who takes part, which process does the work, and where states are kept meanwhile."""
