"""`sagapost saga manifest`: what a service's code declares, as a file."""

from __future__ import annotations

from typing import Annotated

import typer

from sagapost.ops.commands.loading import hint_misspelt
from sagapost.ops.inbox_path import load_inbox
from sagapost.ops.output import write_bytes
from sagapost.sagas.choreography import write_manifest
from sagapost.sagas.manifests import manifest_of

__all__ = ["manifest"]


def manifest(
    inbox: Annotated[str, typer.Argument(metavar="MODULE:SERVICE", help="The service, e.g. warehouse:warehouse.")],
) -> None:
    """Write a service's manifest as JSON; keep it beside the code, and merge all of them with `map` and `lint`."""
    hint_misspelt()
    write_bytes(write_manifest(manifest_of(load_inbox(inbox))))
