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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from offsite.bundles import bundle
from offsite.bundles.adapter import AdapterCard
from offsite.bundles.bundle import CARD, SIGNATURE
from offsite.bundles.emulator import EmulatorCard, is_emulator
from offsite.errors import UserError, brief
from offsite.files.atomic import check_parent, mend, write_text
from offsite.untrusted.files import MOST_TEXT, read_object

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from model_signing import hashing, manifest

_KEY_LIMIT = 1 << 16
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


def keygen(out: Path) -> tuple[Path, Path]:
    """Write a new key on the curve P-256: `out`.key for its owner's eyes alone, `out`.pub for everyone.

    Both are PEM (PKCS #8 without a passphrase, for model-signing 1.1 opens no other; SubjectPublicKeyInfo).
    To a private key that stands alone, as a kill may leave it, its public one is added.
    """
    _library()
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric import ec

    if out.name in ("", ".."):
        raise UserError(f"{str(out)!r} is a folder; name what the files of the keys are to be called.")
    private, public = out.with_name(f"{out.name}.key"), out.with_name(f"{out.name}.pub")
    for file in (private, public):
        check_parent(file)
        mend(file)
    if os.path.lexists(public) or (os.path.lexists(private) and not _is_private_key(private)):
        raise _taken(private if os.path.lexists(private) else public)
    if not os.path.lexists(private):
        key = ec.generate_private_key(ec.SECP256R1())
        text = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()).decode()
        try:
            write_text(private, text, mode=0o600, new=True)
        except FileExistsError as error:
            raise _taken(private) from error
    write_text(public, _pem(_private_key(private).public_key()).decode())
    return private, public


def fingerprint(key: Path) -> str:
    """sha256 of the public `key` as PEM, by which two people can make sure of it, and signatures name it."""
    _library()
    return _fingerprint(_public_key(key))


def sign(path: Path, key: Path) -> str:
    """Put the private `key`'s signature into the bundle at `path`; returns the key's fingerprint.

    An earlier signature is replaced. A UserError for what is no whole bundle, or no key to sign with.
    """
    _library()
    from model_signing import signing

    private = _private_key(key)
    mend(path / SIGNATURE)
    card, _ = bundle.read(path, EmulatorCard if is_emulator(path) else AdapterCard)
    config = signing.Config()  # type: ignore[no-untyped-call]
    config.use_elliptic_key_signer(private_key=key).set_hashing_config(_called(card.format))
    with tempfile.TemporaryDirectory(prefix="offsite-") as scratch:
        file = Path(scratch) / SIGNATURE
        config.sign(path.resolve(), file)
        write_text(path / SIGNATURE, file.read_text(encoding="utf-8"))
    return _fingerprint(private.public_key())


def verify(path: Path, key: Path) -> dict[str, str]:
    """The sha256 of each file of the bundle at `path`, all of which the holder of the public `key` signed.

    A UserError for a bundle that is unsigned, signed with another key, or altered, names what is wrong. No link
    is followed, and no more is hashed than was signed.
    """
    _library()
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


def _taken(file: Path) -> UserError:
    return UserError(f"{str(file)!r} is already there, and keys are never replaced; name other ones.")


def _is_private_key(file: Path) -> bool:
    try:
        return bool(_private_key(file))
    except (OSError, UserError):
        return False


def _private_key(file: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    key = _loaded(file, lambda data: serialization.load_pem_private_key(data, None))
    return key if isinstance(key, EllipticCurvePrivateKey) else _refuse(file, "private", ".key")


def _public_key(file: Path) -> EllipticCurvePublicKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    key = _loaded(file, serialization.load_pem_public_key)
    return key if isinstance(key, EllipticCurvePublicKey) else _refuse(file, "public", ".pub")


def _loaded(file: Path, load: Callable[[bytes], object]) -> object:
    """The key in `file`; None unless it is sound and on one of the curves that model-signing takes."""
    from cryptography.exceptions import UnsupportedAlgorithm

    with file.open("rb") as stream:
        data = stream.read(_KEY_LIMIT)
    try:
        key = load(data)
    except TypeError as error:
        raise UserError(
            f"{str(file)!r} is locked with a passphrase, which model-signing cannot open; give one without."
        ) from error
    except (ValueError, UnsupportedAlgorithm):
        return None
    curve = getattr(key, "curve", None)
    return key if curve is not None and curve.name in _CURVES else None


def _refuse(file: Path, kind: str, ending: str) -> NoReturn:
    raise UserError(
        f"{str(file)!r} holds no {kind} key on the curve P-256, P-384 or P-521 as PEM; give the {ending} file "
        "that `offsite keygen` wrote."
    )


def _pem(key: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as pem

    return key.public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)


def _fingerprint(key: EllipticCurvePublicKey) -> str:
    return hashlib.sha256(_pem(key)).hexdigest()


def _library() -> None:
    """Make sure that model-signing, and pyOpenSSL that it forgets to ask for, are installed."""
    try:
        import model_signing.signing
        import model_signing.verifying  # noqa: F401
    except ImportError as error:
        raise UserError("Signatures need model-signing: run `pip install 'offsite[sign]'`.") from error
