"""Processes of their own for the tests, and how they are started.

* `command`    the `sagapost` command beside the running Python, and the environment of a process
* `nursery`    forks processes from one that has imported everything: what a start costs is no part of the test
* `shared`     one nursery for each process of pytest

A test whose subject is the start of a process itself starts a real one, as a shell would.
"""
