"""Shared by the tests of the adapters."""

from __future__ import annotations

import pytest

# The suites are modules without tests of their own, so pytest does not rewrite their assertions by itself.
pytest.register_assert_rewrite("tests.conformance")
