"""Signatures over bundles, in OpenSSF model-signing's format, so that other tools verify them as well.

A signature is one more file of the bundle's folder and covers all the others; in it stand their names and
digests and the fingerprint of the key, and nothing of the machine or its user. Until it is found to be the
trusted key's, the signature file itself is all that is read of a bundle.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from offsite.bundles import bundle
from offsite.bundles.adapter import AdapterCard
from offsite.bundles.bundle import CARD, SIGNATURE
from offsite.bundles.emulator import EmulatorCard, is_emulator
from offsite.bundles.keys import check_library, fingerprint, fingerprint_of, private_key
from offsite.errors import UserError, brief
from offsite.files.atomic import mend, write_text
from offsite.untrusted.files import MOST_TEXT, read_object

if TYPE_CHECKING:
    from model_signing import hashing, manifest


def sign(path: Path, key: Path) -> str:
    """Put the private `key`'s signature into the bundle at `path`; returns the key's fingerprint.

    An earlier signature is replaced. A UserError for what is no whole bundle, or no key to sign with.
    """
    check_library()
    from model_signing import signing

    private = private_key(key)
    mend(path / SIGNATURE)
    card, _ = bundle.read(path, EmulatorCard if is_emulator(path) else AdapterCard)
    config = signing.Config()  # type: ignore[no-untyped-call]
    config.use_elliptic_key_signer(private_key=key).set_hashing_config(_called(card.format))
    with tempfile.TemporaryDirectory(prefix="offsite-") as scratch:
        file = Path(scratch) / SIGNATURE
        config.sign(path.resolve(), file)
        write_text(path / SIGNATURE, file.read_text(encoding="utf-8"))
    return fingerprint_of(private.public_key())


def verify(path: Path, key: Path) -> dict[str, str]:
    """The sha256 of each file of the bundle at `path`, all of which the holder of the public `key` signed.

    A UserError for a bundle that is unsigned, signed with another key, or altered, names what is wrong. No link
    is followed, and no more is hashed than was signed.
    """
    check_library()
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    signature = _signature(path)
    if signature.verification_material.public_key.hint != fingerprint(key):
        raise UserError(
            f"{path} was signed with another key than {str(key)!r}; ask the sender which key is theirs, or for "
            "the bundle signed with this one."
        )
    checked = _Checked(path, signature)
    config = verifying.Config()  # type: ignore[no-untyped-call]
    config.use_elliptic_key_verifier(public_key=key).set_hashing_config(checked.hashing())
    try:
        config.verify(path.resolve(), path / SIGNATURE)
    except (UserError, OSError, MemoryError):
        raise
    except InvalidSignature as error:
        raise UserError(
            f"{path / SIGNATURE} was altered, or made with another key than {str(key)!r}; ask the sender for "
            "the bundle as it was signed."
        ) from error
    except Exception as error:  # a signature can be made to raise whatever there is
        raise _unsound(path, error) from error
    return checked.signed


class _Said(BaseModel):
    """A part of what a signature says; what we have no use for is left to the library."""

    model_config = ConfigDict(strict=True, frozen=True, alias_generator=to_camel)


class _PublicKey(_Said):
    hint: str = Field(min_length=1)  # for one without, the library prints to standard output


class _Material(_Said):
    public_key: _PublicKey


class _Envelope(_Said):
    payload: str


class _Signature(_Said):
    """A Sigstore bundle around a DSSE envelope (https://docs.sigstore.dev/about/bundle)."""

    verification_material: _Material
    dsse_envelope: _Envelope


class _Resource(BaseModel):
    name: str
    algorithm: Literal["sha256"]
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Predicate(BaseModel):
    resources: list[_Resource]


class _Statement(BaseModel):
    """The in-toto statement that is signed: a digest for each file."""

    predicate: _Predicate


class _Checked:
    """The files of the bundle at `path` against what its signature says, once that is found to be genuine."""

    def __init__(self, path: Path, signature: _Signature) -> None:
        self.path = path
        self.signed: dict[str, str] = {}
        self._payload = signature.dsse_envelope.payload

    def hashing(self) -> hashing.Config:
        """How the library is to hash the folder: it asks for it only after it found the signature genuine."""
        from model_signing import hashing

        checked = self

        class Hashing(hashing.Config):
            def hash(self, model_path: Any, *, files_to_hash: Iterable[Any] | None = None) -> manifest.Manifest:
                checked._read()
                checked._names()
                checked._sizes()
                found = super().hash(model_path, files_to_hash=files_to_hash)
                checked._digests(found)
                return found

        return _without_signature(Hashing)

    def _read(self) -> None:
        said = _Statement.model_validate(json.loads(base64.b64decode(self._payload)))
        self.signed.update({each.name: each.digest for each in said.predicate.resources})
        if CARD not in self.signed:
            raise UserError(f"{self.path}: the signature covers no {CARD}; ask the sender for a signed bundle.")

    def _names(self) -> None:
        """The folder holds the signed files and nothing else, each a plain one."""
        present, allowed = set(), {SIGNATURE, *self.signed}
        with os.scandir(self.path) as entries:
            for entry in entries:
                present.add(entry.name)
                if entry.name not in allowed:
                    raise self._refusal(entry.name, "was not there when the bundle was signed")
                if not entry.is_file(follow_symlinks=False):
                    raise self._refusal(entry.name, "is not a plain file")
                if (self.path / entry.name).stat().st_nlink > 1:  # as `load` does
                    raise self._refusal(entry.name, "is a hard link to another file")
        for name in sorted(self.signed.keys() - present):
            raise self._refusal(name, "was signed but is missing")

    def _sizes(self) -> None:
        """Each file is as large as the signed card says, so that no more is hashed than was signed."""
        card = self.path / CARD
        size = card.stat().st_size
        if size > MOST_TEXT or hashlib.sha256(card.read_bytes()).hexdigest() != self.signed[CARD]:
            raise self._refusal(CARD, "was altered after it was signed")
        said = read_object(card).get("files")
        entries = TypeAdapter(dict[str, bundle.FileEntry]).validate_python(said)
        for name in sorted(self.signed.keys() - {CARD}):
            if name not in entries:
                raise self._refusal(name, "is signed but not on the card")
            if (self.path / name).stat().st_size != entries[name].size:
                raise self._refusal(name, "was altered after it was signed")

    def _digests(self, manifest: manifest.Manifest) -> None:
        found = {each.identifier: each.digest.digest_hex for each in manifest.resource_descriptors()}
        for name in sorted(self.signed):
            if found.get(name) != self.signed[name]:
                raise self._refusal(name, "was altered after it was signed")

    def _refusal(self, name: str, why: str) -> UserError:
        return UserError(f"{self.path}: {name!r:.80} {why}; ask the sender for the bundle as it was signed.")


def _called(name: str) -> hashing.Config:
    """How the library is to hash a bundle for signing: under `name`, for a folder's own would be told."""
    from model_signing import hashing, manifest

    class Hashing(hashing.Config):
        def hash(self, model_path: Any, *, files_to_hash: Iterable[Any] | None = None) -> manifest.Manifest:
            found = super().hash(model_path, files_to_hash=files_to_hash)
            how = manifest.SerializationType.from_args(found.serialization_type)
            items = [how.new_item(each.identifier, each.digest) for each in found.resource_descriptors()]
            return manifest.Manifest(name, items, how)

    return _without_signature(Hashing)


def _without_signature(kind: type[hashing.Config]) -> hashing.Config:
    config = kind()
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _signature(path: Path) -> _Signature:
    """The signature file of the bundle at `path`, sound but not yet believed."""
    if not path.is_dir():
        raise UserError(f"There is no folder {str(path)!r}; give the folder of a bundle.")
    file = path / SIGNATURE
    if not os.path.lexists(file):
        raise UserError(
            f"{path} is not signed, for it lacks {SIGNATURE}; ask the sender for the signed bundle."
        )
    if file.is_symlink() or not file.is_file() or file.stat().st_size > bundle.MOST_SIGNATURE:
        raise _unsound(path, "it is no plain file of a sane size")
    try:
        return _Signature.model_validate(read_object(file))
    except ValidationError as error:
        raise _unsound(path, error) from error


def _unsound(path: Path, why: object) -> UserError:
    if isinstance(why, ValidationError):
        first = why.errors(include_input=False, include_url=False)[0]
        why = f"{'.'.join(map(str, first['loc']))!r:.80}: {first['msg']}"
    return UserError(
        f"{path / SIGNATURE} is no signature as `offsite sign` or model-signing makes one with a key "
        f"({brief(why)}); ask the sender to sign the bundle again."
    )
