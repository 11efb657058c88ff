"""The keys themselves: whose they are, of what kind, and what is none."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

pytest.importorskip("model_signing.signing")

from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from offsite.bundles import keys, signing
from tests.sample_bundles import refusal


def write_keys(key, out, lock=None):
    """Both halves of a key as PEM files."""
    how = pem.BestAvailableEncryption(lock) if lock else pem.NoEncryption()
    out.with_suffix(".key").write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, how))
    public = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    out.with_suffix(".pub").write_bytes(public)
    return out.with_suffix(".key"), out.with_suffix(".pub")


NO_KEYS = {
    "of RSA": lambda: rsa.generate_private_key(65537, 2048),
    "of Ed25519": ed25519.Ed25519PrivateKey.generate,
    "on another curve": lambda: ec.generate_private_key(ec.SECP256K1()),
}


class TestKeys:
    def test_the_private_one_is_its_owners_alone(self, tmp_path):
        before = os.umask(0)
        try:
            private, public = keys.keygen(tmp_path / "new" / "owner")
        finally:
            os.umask(before)
        assert sorted(file.name for file in private.parent.iterdir()) == ["owner.key", "owner.pub"]
        assert [stat.S_IMODE(file.stat().st_mode) for file in (private, public)] == [0o600, 0o666]
        key = pem.load_pem_private_key(private.read_bytes(), None)
        assert key.curve.name == "secp256r1"
        assert pem.load_pem_public_key(public.read_bytes()) == key.public_key()

    @pytest.mark.parametrize("there", ["owner.key", "owner.pub"])
    def test_none_is_replaced(self, tmp_path, there):
        (tmp_path / there).write_text("mine")
        assert f"{there}' is already there, and keys are never" in refusal(keys.keygen, tmp_path / "owner")
        assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(there, "mine")]

    def test_one_half_of_them_is_completed(self, tmp_path):
        private, public = keys.keygen(tmp_path / "owner")
        before = private.read_bytes(), public.read_bytes()
        public.unlink()
        (tmp_path / ".owner.pub.partial-0123456789ab").write_text("half")
        assert keys.keygen(tmp_path / "owner") == (private, public)
        assert (private.read_bytes(), public.read_bytes()) == before
        assert set(tmp_path.iterdir()) == {private, public}
        assert "owner.key' is already there" in refusal(keys.keygen, tmp_path / "owner")

    def test_the_quicker_of_two_has_the_name(self, tmp_path, monkeypatch):
        """The other's key comes just after the look at whether there is one."""
        write = keys.write_text

        def late(path, text, **more):
            path.with_name("owner.key").write_text("theirs")
            write(path, text, **more)

        monkeypatch.setattr(keys, "write_text", late)
        assert "owner.key' is already there" in refusal(keys.keygen, tmp_path / "owner")
        assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("owner.key", "theirs")]

    def test_a_name_is_wanted(self):
        assert "'..' is a folder; name" in refusal(keys.keygen, Path(".."))

    @pytest.mark.parametrize("kind", NO_KEYS)
    def test_other_kinds_are_refused(self, folder, tmp_path, kind):
        private, public = write_keys(NO_KEYS[kind](), tmp_path / "k")
        assert "holds no private key on the curve" in refusal(lambda key: signing.sign(folder, key), private)
        assert "holds no public key on the curve" in refusal(lambda key: signing.verify(folder, key), public)

    @pytest.mark.parametrize("content", [b"", b"\0" * 100_000, b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
    def test_what_is_no_key_is_refused(self, folder, tmp_path, content):
        (tmp_path / "k").write_bytes(content)
        assert "k' holds no private key" in refusal(lambda key: signing.sign(folder, key), tmp_path / "k")
        assert "k' holds no public key" in refusal(lambda key: signing.verify(folder, key), tmp_path / "k")

    def test_each_is_refused_in_the_others_place(self, folder, owner):
        assert "give the .key file" in refusal(lambda key: signing.sign(folder, key), owner[1])
        assert "give the .pub file" in refusal(lambda key: signing.verify(folder, key), owner[0])

    def test_one_behind_a_passphrase_is_refused(self, folder, tmp_path):
        private, _ = write_keys(ec.generate_private_key(ec.SECP256R1()), tmp_path / "k", b"secret")
        assert "locked with a passphrase" in refusal(lambda key: signing.sign(folder, key), private)

    def test_one_that_is_not_there_is_named(self, folder, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"gone\.pub"):
            signing.verify(folder, tmp_path / "gone.pub")
