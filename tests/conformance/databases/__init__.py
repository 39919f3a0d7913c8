"""The suite of the database kits, on every database and driver."""
