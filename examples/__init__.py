"""Services that use sagapost, written as a user would write them."""
