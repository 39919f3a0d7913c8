"""One runnable example for each concept in `docs/concepts`: `python -m examples.concepts.choreography`.

They need no server: services are rehearsed in one process, on SQLite, with a virtual clock (`sagapost.sagas.testing`).
"""
