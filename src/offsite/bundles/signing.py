"""Signatures over bundles, in OpenSSF model-signing's format, so that other tools verify them as well.

A signature is one more file of the bundle's folder and covers all the others; in it stand their names and
digests and the fingerprint of the key, and nothing of the machine or its user. Until it is found to be the
trusted key's, the signature file itself is all that is read of a bundle.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from offsite.bundles import bundle
from offsite.bundles.adapter import AdapterCard
from offsite.bundles.bundle import CARD, SIGNATURE
from offsite.bundles.emulator import EmulatorCard, is_emulator
from offsite.bundles.keys import check_library, fingerprint_of, private_key, public_key
from offsite.errors import UserError, brief
from offsite.files.atomic import mend, write_text
from offsite.untrusted.files import MOST_TEXT, read_object

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from model_signing import hashing

_ALTERED = "was altered after it was signed"


def sign(path: Path, key: Path) -> str:
    """Put the private `key`'s signature into the bundle at `path`; returns the key's fingerprint.

    An earlier signature is replaced. A UserError for what is no whole bundle, or no key to sign with.
    """
    check_library()
    from model_signing import manifest, signing

    private = private_key(key)
    mend(path / SIGNATURE)
    card, _ = bundle.read(path, EmulatorCard if is_emulator(path) else AdapterCard)
    found = _all_files().hash(path.resolve())
    how = manifest.SerializationType.from_args(found.serialization_type)
    items = [how.new_item(each.identifier, each.digest) for each in found.resource_descriptors()]
    renamed = manifest.Manifest(card.format, items, how)  # the library names the folder, which may be private
    config = signing.Config()  # type: ignore[no-untyped-call]
    hashed: Any = SimpleNamespace(hash=lambda _: renamed)
    config.use_elliptic_key_signer(private_key=key).set_hashing_config(hashed)
    with tempfile.TemporaryDirectory(prefix="offsite-") as scratch:
        file = Path(scratch) / SIGNATURE
        config.sign(path.resolve(), file)
        write_text(path / SIGNATURE, file.read_text(encoding="utf-8"))
    return fingerprint_of(private.public_key())


def verify(path: Path, key: Path) -> dict[str, str]:
    """Return the sha256 of each file of the bundle at `path`, which the holder of the public `key` signed.

    A UserError for a bundle that is unsigned, signed with another key, or altered, names what is wrong. No link
    is followed, and no more is hashed than was signed.
    """
    check_library()
    public, signature = public_key(key), _signature(path)
    if signature.verification_material.public_key.hint != fingerprint_of(public):
        raise UserError(
            f"{path} was signed with another key than {str(key)!r}; ask the sender which key is theirs, or for "
            "the bundle signed with this one."
        )
    statement = _genuine(path, signature.dsse_envelope, public, key)
    try:
        resources = _Statement.model_validate_json(statement).predicate.resources
        signed = {each.name: each.digest for each in resources}
        _check_names(path, signed)
        _check_sizes(path, signed)
    except ValidationError as error:
        raise _unsound(path, error) from error
    _check_content(path, key, signed)
    return signed


class _Part(BaseModel):
    """A part of a signature file; what we have no use for is left to the library."""

    model_config = ConfigDict(strict=True, frozen=True, alias_generator=to_camel)


class _PublicKey(_Part):
    hint: str = Field(min_length=1)  # for one without, the library prints to standard output


class _Material(_Part):
    public_key: _PublicKey


class _Made(_Part):
    sig: str


class _Envelope(_Part):
    payload: str
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: list[_Made] = Field(min_length=1)


class _Signature(_Part):
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


def _genuine(path: Path, envelope: _Envelope, public: EllipticCurvePublicKey, key: Path) -> bytes:
    """Return the statement in the envelope, once it is found to be signed with the key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    statement, made = _decoded(path, envelope.payload), _decoded(path, envelope.signatures[0].sig)
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(statement), statement)
    algorithm = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[public.curve.key_size]
    try:
        public.verify(made, signed, ECDSA(algorithm))
    except InvalidSignature as error:
        raise UserError(
            f"{path / SIGNATURE} was altered, or made with another key than {str(key)!r}; ask the sender for "
            "the bundle as it was signed."
        ) from error
    return statement


def _decoded(path: Path, text: str) -> bytes:
    """Decode base64 in its one canonical form; the library would pass over whatever else stands in it."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise _unsound(path, error) from error
    if base64.b64encode(raw).decode() != text:
        raise _unsound(path, "its base64 is not canonical")
    return raw


def _check_names(path: Path, signed: dict[str, str]) -> None:
    """Refuse any other file than those that were signed, and what is no plain file."""
    if CARD not in signed:
        raise UserError(f"{path}: the signature covers no {CARD}; ask the sender for a signed bundle.")
    for file in path.iterdir():
        if file.name not in {SIGNATURE, *signed}:
            raise _refusal(path, file.name, "was not there when the bundle was signed")
    for name in sorted(signed):
        if not os.path.lexists(path / name):
            raise _refusal(path, name, "was signed but is missing")
        bundle.check_plain(path, name)


def _check_sizes(path: Path, signed: dict[str, str]) -> None:
    """Refuse a file that is not as large as the signed card says, so that no more is hashed than was signed."""
    card = path / CARD
    if card.stat().st_size > MOST_TEXT or hashlib.sha256(card.read_bytes()).hexdigest() != signed[CARD]:
        raise _refusal(path, CARD, _ALTERED)
    entries = TypeAdapter(dict[str, bundle.FileEntry]).validate_python(read_object(card).get("files"))
    for name in sorted(signed.keys() - {CARD}):
        if name not in entries:
            raise _refusal(path, name, "is signed but not on the card")
        if (path / name).stat().st_size != entries[name].size:
            raise _refusal(path, name, _ALTERED)


def _check_content(path: Path, key: Path, signed: dict[str, str]) -> None:
    """Have the library verify the bundle; name the file that is not as it was signed."""
    from model_signing import verifying

    config = verifying.Config()  # type: ignore[no-untyped-call]
    config.use_elliptic_key_verifier(public_key=key).set_hashing_config(_all_files())
    try:
        config.verify(path.resolve(), path / SIGNATURE)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a signature can be made to raise whatever there is
        for name in sorted(signed):
            if bundle.file_digest(path / name) != signed[name]:
                raise _refusal(path, name, _ALTERED) from error
        raise _unsound(path, error) from error


def _all_files() -> hashing.Config:
    """Return how the library hashes a bundle: every file but the signature."""
    from model_signing import hashing

    config = hashing.Config()  # type: ignore[no-untyped-call]
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _signature(path: Path) -> _Signature:
    """Read the signature file of the bundle at `path`, which is not yet verified."""
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


def _refusal(path: Path, name: str, why: str) -> UserError:
    return UserError(f"{path}: {name!r:.80} {why}; ask the sender for the bundle as it was signed.")


def _unsound(path: Path, why: object) -> UserError:
    if isinstance(why, ValidationError):
        first = why.errors(include_input=False, include_url=False)[0]
        why = f"{'.'.join(map(str, first['loc']))!r:.80}: {first['msg']}"
    return UserError(
        f"{path / SIGNATURE} is no signature as `offsite sign` or model-signing makes one with a key "
        f"({brief(why)}); ask the sender to sign the bundle again."
    )
