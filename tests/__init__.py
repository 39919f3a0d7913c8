"""The tests of sagapost, and the servers and faults that they run against."""
