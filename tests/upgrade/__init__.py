"""Databases as older releases left them."""
