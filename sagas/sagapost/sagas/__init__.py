"""Sagas: correlation, compensation, deadlines and their tracking."""
