"""Attacks by files: other ones, other kinds of them, names that lead elsewhere, digests that lie."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import socket
import zipfile

from tests.hostile.corpus import attack, card, pickled, put, sign, swap_file, weights

ALL = "emulator adapter"


@attack(ALL, "'model.bin'")
def a_pickle_beside_the_weights(folder):
    put(folder, "model.bin", pickled())


@attack(ALL, "'training_args.bin'")
def training_arguments(folder):
    put(folder, "training_args.bin", pickled())


@attack(ALL, "safetensors is not a readable")
def a_pickle_by_the_name_of_the_weights(folder):
    put(folder, weights(folder).name, pickled())


@attack(ALL, "card.json is not")
def a_pickle_for_a_card(folder):
    (folder / "card.json").write_bytes(pickled())


@attack(ALL, "safetensors is not a readable")
def an_archive_bomb_by_the_name_of_the_weights(folder):
    put(folder, weights(folder).name, bomb())


@attack(ALL, "safetensors is not a readable")
def a_gzip_bomb_by_the_name_of_the_weights(folder):
    put(folder, weights(folder).name, gzip.compress(bytes(16 << 20), 9))


@attack(ALL, "card.json is not")
def an_archive_bomb_for_a_card(folder):
    (folder / "card.json").write_bytes(bomb())


@attack(ALL, "'more.zip'")
def an_archive_bomb_beside_the_weights(folder):
    put(folder, "more.zip", bomb())


@attack("emulator", "tokenizer")
def an_archive_bomb_for_a_tokenizer(folder):
    put(folder, "tokenizer.json", bomb())


@attack(ALL, "'modeling_evil.py'|and nothing else")
def code(folder):
    put(folder, "modeling_evil.py", "open('canary', 'w')")


@attack(ALL, r"'\.hidden' is in the folder but not on the card")
def a_hidden_file(folder):
    (folder / ".hidden").write_text("")


@attack(ALL, "'more' is in the folder but not on the card")
def a_folder_beside_the_weights(folder):
    (folder / "more").mkdir()


@attack(ALL, "safetensors' is not a plain file")
def a_folder_for_the_weights(folder):
    swap_file(folder, weights(folder).name).mkdir()


@attack(ALL, "safetensors' is not a plain file")
def a_link_for_the_weights(folder):
    file = weights(folder)
    file.symlink_to(file.rename(folder.parent / "elsewhere"))


@attack(ALL, "safetensors' is not a plain file")
def a_dangling_link_for_the_weights(folder):
    swap_file(folder, weights(folder).name).symlink_to("/no/such/file")


@attack(ALL, "safetensors' is not a plain file")
def a_link_to_endless_zeros_for_the_weights(folder):
    swap_file(folder, weights(folder).name).symlink_to("/dev/zero")


@attack("emulator", "'config.json' is not a plain file")
def a_link_to_a_secret_for_a_config(folder):
    swap_file(folder, "config.json").symlink_to("/etc/passwd")


@attack(ALL, "'more' is in the folder")
def a_link_to_a_folder(folder):
    (folder / "more").symlink_to("/etc")


@attack(ALL, "safetensors' is not a plain file")
def a_pipe_for_the_weights(folder):
    os.mkfifo(swap_file(folder, weights(folder).name))


@attack(ALL, "safetensors' is not a plain file")
def a_socket_for_the_weights(folder):
    here = os.getcwd()  # noqa: PTH109 - a socket's path is short
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX) as bound:
        name = swap_file(folder, weights(folder).name).name
        bound.bind(name)
    os.chdir(here)


@attack(ALL, "has no card.json|card.json is not a plain file")
def a_link_for_the_card(folder):
    file = folder / "card.json"
    file.symlink_to(file.rename(folder.parent / "elsewhere"))


@attack(ALL, "has no card.json|card.json is not a plain file")
def a_link_to_endless_zeros_for_the_card(folder):
    swap_file(folder, "card.json").symlink_to("/dev/zero")


@attack(ALL, "has no card.json|card.json is not a plain file")
def a_pipe_for_the_card(folder):
    os.mkfifo(swap_file(folder, "card.json"))


@attack(ALL, "safetensors' is a hard link")
def a_hard_link_for_the_weights(folder):
    os.link(weights(folder), folder.parent / "elsewhere")


@attack(ALL, "cannot be read")
def a_file_that_may_not_be_read(folder):
    weights(folder).chmod(0)


@attack(ALL, "cannot be read")
def a_card_that_may_not_be_read(folder):
    (folder / "card.json").chmod(0)


@attack(ALL, r"'\.\./stolen' is on the card but missing")
def a_name_that_climbs_out(folder):
    shutil.copy(weights(folder), folder.parent / "stolen")
    name_also(folder, "../stolen")


@attack(ALL, "'/etc/hostname' is on the card but missing")
def an_absolute_name(folder):
    name_also(folder, "/etc/hostname")


@attack(ALL, r"'\\x1b\[2J\\x07' is in the folder")
def a_file_that_steers_the_terminal_by_name(folder):
    (folder / "\x1b[2J\x07").write_text("")


@attack(ALL, r"'\\u202egnp\.exe' is on the card but missing")
def a_name_that_reads_backwards(folder):
    name_also(folder, "\u202egnp.exe")


@attack(ALL, "safetensors' is truncated or altered")
def an_altered_byte(folder):
    file = weights(folder)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


@attack(ALL, "safetensors' is truncated or altered")
def a_digest_of_something_else(folder):
    card(folder, lambda data: data["files"][weights(folder).name].update(sha256="0" * 64))


@attack(ALL, "safetensors' is truncated or altered")
def a_size_that_is_not_so(folder):
    card(folder, lambda data: data["files"][weights(folder).name].update(size=10**12))


@attack(ALL, "safetensors' is a sparse file")
def a_file_of_a_terabyte_of_nothing(folder):
    file = weights(folder)
    os.truncate(file, 1 << 40)
    card(folder, lambda data: data["files"][file.name].update(size=1 << 40))


@attack(ALL, "more than .* files")
def two_hundred_files(folder):
    for number in range(200):
        (folder / f"{number}").touch()


@attack("emulator", "is an adapter, where an emulator is wanted")
def an_adapter_in_its_place(folder):
    take(folder, "adapter")


@attack("adapter", "is an emulator, where an adapter is wanted")
def an_emulator_in_its_place(folder):
    take(folder, "emulator")


def take(folder, kind):
    shutil.rmtree(folder)
    shutil.copytree(folder.parent.parent / "honest" / kind, folder)
    sign(folder)


def name_also(folder, name):
    card(folder, lambda data: data["files"].update({name: data["files"][weights(folder).name]}))


def bomb():
    """A zip of a few kB that holds 16 MB."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(16 << 20))
    return packed.getvalue()
