"""The page on Django is run, against a real PostgreSQL."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tests.docs.test_readme import PATIENCE, ROOT
from tests.ops.processes import invoke

pytest.importorskip("django", reason="Django belongs to another group of dependencies")

PAGE = (ROOT / "docs" / "django.md").read_text()
BLOCKS = dict(re.findall(r"^<!-- django: (\w+) -->\n```\w*\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def test_the_page_prints_what_it_shows(postgresql_url: str, tmp_path: Path) -> None:
    """A view publishes in its transaction; a rollback takes the event away, and outside of one it is refused."""
    assert list(BLOCKS) == ["settings", "shop", "run", "prints"]
    assert invoke("db", "upgrade", cwd=tmp_path, SAGAPOST_DATABASE_URL=postgresql_url).returncode == 0
    program = tmp_path / "shop.py"
    program.write_text("\n".join(BLOCKS[name] for name in ("settings", "shop", "run")))
    url = make_url(postgresql_url)
    where = {
        "PGDATABASE": url.database,
        "PGHOST": url.host or url.query.get("host"),
        "PGPORT": url.port,
        "PGUSER": url.username,
        "PGPASSWORD": url.password,
    }
    environment = {**os.environ, **{name: str(value or "") for name, value in where.items()}}
    ran = subprocess.run(
        [sys.executable, program.name],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == BLOCKS["prints"]
