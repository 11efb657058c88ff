"""Attacks by what lies in a signature's place, where nobody asked for one: no `--trusted-key` is given."""

from __future__ import annotations

import json
import os

from tests.hostile.attacks_files import bomb
from tests.hostile.corpus import attack, pickled

ALL = "emulator adapter"


@attack(ALL, "'model.sig' is a pickle")
def a_pickle_for_a_signature(folder):
    (folder / "model.sig").write_bytes(pickled())


@attack(ALL, "'model.sig' is a pickle or an archive")
def an_archive_for_a_signature(folder):
    (folder / "model.sig").write_bytes(bomb())


@attack(ALL, "'model.sig' is not a plain file")
def a_link_to_a_secret_for_a_signature(folder):
    (folder / "model.sig").symlink_to("/etc/passwd")


@attack(ALL, "'model.sig' is a hard link")
def a_hard_link_for_a_signature(folder):
    (folder.parent / "elsewhere").write_text(json.dumps({}))
    os.link(folder.parent / "elsewhere", folder / "model.sig")


@attack(ALL, "'model.sig' is not a plain file")
def a_folder_for_a_signature(folder):
    (folder / "model.sig").mkdir()


@attack(ALL, "'model.sig' is not a plain file")
def a_pipe_for_a_signature(folder):
    os.mkfifo(folder / "model.sig")


@attack(ALL, "'model.sig' is larger than any signature")
def a_signature_of_a_terabyte(folder):
    (folder / "model.sig").touch()
    os.truncate(folder / "model.sig", 1 << 40)
