"""Where the services of StreamTech are run as processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import pytest

from examples.streamtech.processes import Site
from tests.processes.nursery import Child
from tests.processes.shared import nursery
from tests.servers.databases import PostgreSQLServer


@pytest.fixture
def site(postgresql: PostgreSQLServer, amqp_url: str, tmp_path: Path) -> Iterator[Site]:
    """A database for each service on the run's servers, gone after the test."""
    with ExitStack() as databases:

        def new_database(_: str) -> str:
            return postgresql.url(databases.enter_context(postgresql.fresh_database()))

        def new_folder(name: str) -> Path:
            folder = tmp_path / name
            folder.mkdir()
            return folder

        def launch(*arguments: str, environment: Mapping[str, str], folder: Path, log: BinaryIO) -> Child:
            return nursery().start("sagapost", *arguments, environment=environment, folder=folder, output=log)

        yield Site(amqp_url, new_database, new_folder, tmp_path, launch)
