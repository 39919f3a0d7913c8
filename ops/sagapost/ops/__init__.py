"""The composition root: settings, command line, daemon."""
