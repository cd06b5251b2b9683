"""Small tools that any room may use."""
