"""Faults on demand: a network that breaks when a test says so."""
