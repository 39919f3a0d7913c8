"""What `sagapost status` knows: what was seen, whether that is well, and how both are written."""
