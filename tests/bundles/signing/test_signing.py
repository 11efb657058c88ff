"""Who sent a bundle, and that it is as it was sent; other tools of the format say the same."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest.importorskip("model_signing.signing")

import model_signing
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec

from offsite.bundles import keys, signing
from offsite.bundles.adapter import Adapter
from offsite.bundles.emulator import Emulator
from tests.bundles.signing.test_keys import write_keys
from tests.sample_bundles import refusal, sign

SIG, WEIGHTS = "model.sig", "adapter.safetensors"


def statement(folder):
    """What is signed."""
    envelope = json.loads((folder / SIG).read_text())["dsseEnvelope"]
    return json.loads(base64.b64decode(envelope["payload"]))


def digests(folder):
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.name != SIG
    }


def tool(*words):
    """The library's own command line: its exit code and what it says."""
    (script,) = entry_points(group="console_scripts", name="model_signing")
    ran = CliRunner().invoke(script.load(), [str(word) for word in words])
    return ran.exit_code, ran.output


class TestSigned:
    @pytest.mark.parametrize("kind", [Emulator, Adapter], ids=lambda kind: kind.__name__)
    def test_it_verifies_and_opens_as_before(self, made, owner, tmp_path, kind):
        name = kind.__name__.lower()
        folder = shutil.copytree(made / name, tmp_path / "sent")
        assert signing.sign(folder, owner[0]) == keys.fingerprint(owner[1])
        assert signing.verify(folder, owner[1]) == digests(folder) == digests(made / name)
        assert kind.load(folder).digest == kind.load(made / name).digest

    def test_other_tools_verify_it(self, folder, owner):
        words = ("verify", "key", folder, "--signature", folder / SIG, "--public_key", owner[1])
        assert tool(*words) == (0, "Verification succeeded\n")
        with (folder / WEIGHTS).open("ab") as weights:
            weights.write(b"x")
        assert tool(*words)[0] == 1

    def test_what_other_tools_signed_is_accepted(self, folder, owner):
        (folder / SIG).unlink()
        words = ("sign", "key", folder, "--signature", folder / SIG, "--private_key", owner[0])
        assert tool(*words) == (0, "Signing succeeded\n")
        assert signing.verify(folder, owner[1]) == digests(folder)

    def test_it_travels_under_any_name_and_through_a_link(self, folder, owner):
        link = folder.parent / "link"
        folder.rename(folder.parent / "renamed")
        link.symlink_to(folder.parent / "renamed")
        assert signing.verify(link, owner[1])
        signing.sign(link, owner[0])
        assert signing.verify(folder.parent / "renamed", owner[1])

    def test_it_tells_nothing_of_the_signer_but_the_key(self, folder, owner):
        said = statement(folder)
        assert said.keys() == {"_type", "subject", "predicateType", "predicate"}
        assert [(each["name"], each["digest"].keys()) for each in said["subject"]] == [
            ("offsite-adapter/1", {"sha256"})
        ]
        assert said["predicate"] == {
            "resources": [
                {"name": name, "algorithm": "sha256", "digest": digest}
                for name, digest in sorted(digests(folder).items())
            ],
            "serialization": {
                "method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SIG],
            },
        }  # fmt: skip
        around = json.loads((folder / SIG).read_text())
        assert around["verificationMaterial"] == {
            "publicKey": {"hint": keys.fingerprint(owner[1])},
            "tlogEntries": [],
        }
        assert "miller" not in json.dumps(said) + (folder / SIG).read_text()

    def test_signing_again_replaces_the_signature_and_sweeps_what_a_kill_left(self, folder, owner, made):
        (folder / ".model.sig.partial-0123456789ab").write_text("half")
        signing.sign(folder, made / "stranger.key")
        assert signing.verify(folder, made / "stranger.pub")
        assert "another key" in refusal(lambda path: signing.verify(path, owner[1]), folder)

    def test_a_new_bundle_in_its_place_is_unsigned_and_the_old_signature_does_not_fit(
        self, folder, owner, made
    ):
        old = (folder / SIG).read_bytes()
        adapter = Adapter.load(folder)
        next(iter(adapter.tensors.values())).add_(1)
        adapter.save(folder)
        assert "is not signed" in refusal(lambda path: signing.verify(path, owner[1]), folder)
        (folder / SIG).write_bytes(old)
        assert "was altered after" in refusal(lambda path: signing.verify(path, owner[1]), folder)

    @pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
    def test_keys_of_other_makers_serve(self, folder, tmp_path, curve):
        key = write_keys(ec.generate_private_key(curve), tmp_path / "other")
        signing.sign(folder, key[0])
        assert signing.verify(folder, key[1])

    def test_what_is_no_whole_bundle_is_not_signed(self, folder, owner):
        before = (folder / SIG).read_bytes()
        (folder / "notes.txt").write_text("mine")
        assert "'notes.txt' is in the folder but not on the card" in refusal(
            lambda path: signing.sign(path, owner[0]), folder
        )
        assert (folder / SIG).read_bytes() == before
        assert "no 'nowhere'" in refusal(lambda path: signing.sign(path, owner[0]), Path("nowhere"))


def altered(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def altered_with_its_card(folder):
    altered(folder)
    signature = (folder / SIG).read_bytes()
    (folder / SIG).unlink()
    sign(folder)
    (folder / SIG).write_bytes(signature)


def linked(name):
    def change(folder):
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return change


def piped(name):
    def change(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def as_folder(file):
    file.unlink()
    file.mkdir()


def endless(name):
    return lambda folder: os.truncate(folder / name, 1 << 40)


def put(name, content=b""):
    return lambda folder: (folder / name).write_bytes(content)


def edit(*keys, value):
    """Set what stands under `keys` in the signature file."""

    def change(folder):
        said = at = json.loads((folder / SIG).read_text())
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
        (folder / SIG).write_text(json.dumps(said))

    return change


def respelt(*keys, by):
    """Write the text that stands under `keys` in the envelope otherwise, for the same bytes."""

    def change(folder):
        at = json.loads((folder / SIG).read_text())["dsseEnvelope"]
        for key in keys:
            at = at[key]
        edit("dsseEnvelope", *keys, value=by(at))(folder)

    return change


def unpadded(text):
    """Set bits of the last letter that no byte holds; where there are none, add what decoders pass over."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    kept = text.rstrip("=")
    if kept == text:
        return f"{text}===="
    return kept[:-1] + letters[letters.index(kept[-1]) + 1] + text[len(kept) :]


def repaid(folder):
    """The payload says that the altered files were signed."""
    altered_with_its_card(folder)
    said = statement(folder)
    for resource in said["predicate"]["resources"]:
        resource["digest"] = digests(folder)[resource["name"]]
    payload = base64.b64encode(json.dumps(said).encode()).decode()
    edit("dsseEnvelope", "payload", value=payload)(folder)


WRONG = "was signed with another key"
UNSOUND = "is no signature as"
ALTERED = "was altered after it was signed"
ATTACKS = {
    "unsigned": (lambda folder: (folder / SIG).unlink(), "is not signed, for it lacks model.sig"),
    "altered": (altered, f"'{WEIGHTS}' {ALTERED}"),
    "altered with its card": (altered_with_its_card, f"'card.json' {ALTERED}"),
    "a card of other files": (put("card.json", b"{}"), f"'card.json' {ALTERED}"),
    "an endless file": (endless(WEIGHTS), f"'{WEIGHTS}' {ALTERED}"),
    "an endless card": (endless("card.json"), f"'card.json' {ALTERED}"),
    "an extra file": (put("extra.bin"), "'extra.bin' was not there when"),
    "an extra file that the library ignores": (put(".gitattributes"), "'.gitattributes' was not there when"),
    "an extra folder": (lambda folder: (folder / ".git").mkdir(), "'.git' was not there when"),
    "an extra endless file": (lambda folder: (put("x")(folder), endless("x")(folder)), "'x' was not there"),
    "a strange name": (put("\x1b[2J\n"), r"'\x1b[2J\n' was not there"),
    "a missing file": (lambda folder: (folder / WEIGHTS).unlink(), f"'{WEIGHTS}' was signed but is missing"),
    "a missing card": (lambda folder: (folder / "card.json").unlink(), "'card.json' was signed but is missing"),
    "a link to the outside": (linked(WEIGHTS), f"'{WEIGHTS}' is not a plain file"),
    "a linked card": (linked("card.json"), "'card.json' is not a plain file"),
    "a pipe": (piped(WEIGHTS), f"'{WEIGHTS}' is not a plain file"),
    "a hard link": (lambda f: os.link(f / WEIGHTS, f.parent / "twin"), f"'{WEIGHTS}' is a hard link"),
    "a folder for a file": (lambda f: as_folder(f / WEIGHTS), f"'{WEIGHTS}' is not a plain file"),
    "a linked signature": (linked(SIG), UNSOUND),
    "a pipe for a signature": (piped(SIG), UNSOUND),
    "a folder for a signature": (lambda f: as_folder(f / SIG), UNSOUND),
    "an endless signature": (endless(SIG), UNSOUND),
    "an empty signature": (put(SIG), "is not sound JSON"),
    "a signature that is no text": (put(SIG, b"\xff\xfe\0"), "is not UTF-8"),
    "a deep signature": (put(SIG, b'{"a":' * 100_000), "is not sound JSON"),
    "a deep list": (put(SIG, b"[" * 100_000), "is not sound JSON"),
    "a signature of another type": (put(SIG, b"[]"), "holds no JSON object"),
    "a key twice": (put(SIG, b'{"a":1,"a":2}'), "is not sound JSON"),
    "a signature of nothing": (put(SIG, b"{}"), UNSOUND),
    "another kind of bundle": (edit("mediaType", value="text/plain"), UNSOUND),
    "more than the format has": (edit("extra", value=1), UNSOUND),
    "a certificate for a key": (
        edit("verificationMaterial", value={"certificate": {"rawBytes": "AAAA"}}),
        UNSOUND,
    ),
    "no name of the key": (edit("verificationMaterial", "publicKey", value={}), UNSOUND),
    "an empty name of the key": (edit("verificationMaterial", "publicKey", "hint", value=""), UNSOUND),
    "another name of the key": (edit("verificationMaterial", "publicKey", "hint", value="0" * 64), WRONG),
    "a strange name of the key": (edit("verificationMaterial", "publicKey", "hint", value="\x1b[2J"), WRONG),
    "no signatures": (edit("dsseEnvelope", "signatures", value=[]), UNSOUND),
    "a signature of zeros": (
        edit("dsseEnvelope", "signatures", 0, "sig", value="AAAA"),
        "model.sig was altered",
    ),
    "a signature that is a number": (edit("dsseEnvelope", "signatures", 0, "sig", value=5), UNSOUND),
    "a signature that is no base64": (edit("dsseEnvelope", "signatures", 0, "sig", value="A"), UNSOUND),
    "a signature with junk in its base64": (
        respelt("signatures", 0, "sig", by=lambda text: f"{text[:8]}\n!{text[8:]}"),
        UNSOUND,
    ),
    "a payload with junk in its base64": (
        respelt("payload", by=lambda text: f"{text[:8]} -{text[8:]}"),
        UNSOUND,
    ),
    "a signature in another base64": (respelt("signatures", 0, "sig", by=unpadded), UNSOUND),
    "a payload that is a number": (edit("dsseEnvelope", "payload", value=5), UNSOUND),
    "a payload of the attacker's": (repaid, "model.sig was altered"),
    "an empty payload": (edit("dsseEnvelope", "payload", value=""), "model.sig was altered"),
    "another type of payload": (edit("dsseEnvelope", "payloadType", value="text/plain"), UNSOUND),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_as_it_was_signed_is_refused(folder, owner, attack, capfd):
    change, expected = ATTACKS[attack]
    change(folder)
    said = refusal(lambda path: signing.verify(path, owner[1]), folder)
    assert expected in said
    assert said.isprintable()
    assert capfd.readouterr() == ("", "")


def test_another_key_is_refused(folder, made):
    assert WRONG in refusal(lambda path: signing.verify(path, made / "stranger.pub"), folder)


def test_a_strangers_signature_under_the_owners_name_is_refused(folder, made, owner):
    signing.sign(folder, made / "stranger.key")
    edit("verificationMaterial", "publicKey", "hint", value=keys.fingerprint(owner[1]))(folder)
    said = refusal(lambda path: signing.verify(path, owner[1]), folder)
    assert f"model.sig was altered, or made with another key than '{owner[1]}'" in said


def test_nothing_else_is_looked_at_before_the_signature(folder, owner):
    """A pipe would hang whoever opens it, and an extra file would be named."""
    for name in ("card.json", WEIGHTS):
        piped(name)(folder)
    (folder / "extra").mkdir()
    edit("dsseEnvelope", "signatures", 0, "sig", value="AAAA")(folder)
    assert "model.sig was altered" in refusal(lambda path: signing.verify(path, owner[1]), folder)


def of_library(folder, key, change=lambda config: config):
    """Sign as the library does, its hashing changed."""
    (folder / SIG).unlink()
    hashing = change(model_signing.hashing.Config().set_ignored_paths(paths=[SIG]))
    signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=key)
    signer.set_hashing_config(hashing).sign(folder, folder.parent / "elsewhere.sig")
    (folder.parent / "elsewhere.sig").rename(folder / SIG)


PARTIAL = {
    "but for the weights": (
        lambda config: config.set_ignored_paths(paths=[SIG, WEIGHTS]),
        f"'{WEIGHTS}' was not there when",
    ),
    "but for the card": (
        lambda config: config.set_ignored_paths(paths=[SIG, "card.json"]),
        "the signature covers no card.json",
    ),
    "by other digests": (lambda config: config.use_file_serialization(hashing_algorithm="blake2"), UNSOUND),
    "in pieces": (lambda config: config.use_shard_serialization(shard_size=1000), UNSOUND),
}


@pytest.mark.parametrize("case", PARTIAL)
def test_the_owners_signature_that_does_not_cover_the_bundle_is_refused(folder, owner, case):
    change, expected = PARTIAL[case]
    of_library(folder, owner[0], change)
    assert expected in refusal(lambda path: signing.verify(path, owner[1]), folder)


def test_the_owners_signature_that_ignores_what_it_signed_is_refused(folder, owner):
    """By the format, a verifier leaves out what the signature says is to be ignored."""
    signed = digests(folder)

    class Blind(model_signing.hashing.Config):
        def hash(self, path, *, files_to_hash=None):
            manifest = model_signing.manifest
            how = manifest.SerializationType.from_args(
                {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": True,
                    "ignore_paths": [SIG, WEIGHTS],
                }
            )
            found = super().hash(path).resource_descriptors()
            return manifest.Manifest("x", [how.new_item(each.identifier, each.digest) for each in found], how)

    of_library(folder, owner[0], lambda _: Blind().set_ignored_paths(paths=[SIG]))
    assert {each["name"] for each in statement(folder)["predicate"]["resources"]} == signed.keys()
    altered(folder)
    assert f"'{WEIGHTS}' {ALTERED}" in refusal(lambda path: signing.verify(path, owner[1]), folder)


def test_without_the_library_all_say_what_to_install(folder, owner, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    tries = [
        lambda path: signing.sign(path, owner[0]),
        lambda path: signing.verify(path, owner[1]),
        lambda _: keys.keygen(tmp_path / "new"),
    ]
    for each in tries:
        assert "run `pip install 'offsite[sign]'`" in refusal(each, folder)
