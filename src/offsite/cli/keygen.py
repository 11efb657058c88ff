"""offsite keygen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offsite.cli.options import Json
from offsite.cli.shell import console, emit

NAME = "keygen"
HELP = """Either side: make a private key that signs bundles and a public key that verifies them.

Example: `offsite keygen -o owner`
"""


def command(
    out: Annotated[Path, typer.Option("-o", "--output", help="Writes OUTPUT.key and OUTPUT.pub.")],
    json: Json = False,
) -> None:
    """Write both keys, and print the fingerprint by which the other side checks the public one."""
    from offsite.bundles import keys

    private, public = keys.keygen(out)
    data = {"private": str(private), "public": str(public), "fingerprint": keys.fingerprint(public)}

    def show() -> None:
        say = console().print
        say(f"Private key in {private}: sign with it, and keep it to yourself.")
        say(f"Public key in {public}. Send this file, and give its fingerprint by another channel:")
        say(data["fingerprint"])

    emit(data, json, show)
