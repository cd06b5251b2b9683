"""Cohorts, the assignment of clients to processes, the work queue of a node, and the storage of client states."""
