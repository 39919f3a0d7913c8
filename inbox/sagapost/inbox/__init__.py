"""The consuming side."""
