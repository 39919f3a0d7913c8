"""Kill, cut and restart things under load, then count what was lost, doubled or reordered."""
