"""Keys of signatures: elliptic curves as PEM, as OpenSSF model-signing takes them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from offsite.errors import UserError
from offsite.files.atomic import mend, write_text
from offsite.files.places import check_parent

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

_KEY_LIMIT = 1 << 16
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


def keygen(out: Path) -> tuple[Path, Path]:
    """Write a new key on the curve P-256: `out`.key for its owner's eyes alone, `out`.pub for everyone.

    Both are PEM (PKCS #8 without a passphrase, for model-signing 1.1 opens no other; SubjectPublicKeyInfo).
    To a private key that stands alone, as a kill may leave it, its public one is added.
    """
    check_library()
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
    write_text(public, _pem(private_key(private).public_key()).decode())
    return private, public


def fingerprint(key: Path) -> str:
    """sha256 of the public `key` as PEM, by which two people can make sure of it, and signatures name it."""
    check_library()
    return fingerprint_of(public_key(key))


def fingerprint_of(key: EllipticCurvePublicKey) -> str:
    """Return the sha256 of a public key as PEM."""
    return hashlib.sha256(_pem(key)).hexdigest()


def private_key(file: Path) -> EllipticCurvePrivateKey:
    """Read a private key as PEM; a UserError for anything else."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    key = _loaded(file, lambda data: serialization.load_pem_private_key(data, None))
    return key if isinstance(key, EllipticCurvePrivateKey) else _refuse(file, "private", ".key")


def public_key(file: Path) -> EllipticCurvePublicKey:
    """Read a public key as PEM; a UserError for anything else."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    key = _loaded(file, serialization.load_pem_public_key)
    return key if isinstance(key, EllipticCurvePublicKey) else _refuse(file, "public", ".pub")


def check_library() -> None:
    """Make sure that model-signing, and pyOpenSSL that it forgets to ask for, are installed."""
    try:
        import model_signing.signing
        import model_signing.verifying  # noqa: F401
    except ImportError as error:
        raise UserError("Signatures need model-signing: run `pip install 'offsite[sign]'`.") from error


def _is_private_key(file: Path) -> bool:
    try:
        return bool(private_key(file))
    except (OSError, UserError):
        return False


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


def _taken(file: Path) -> UserError:
    return UserError(f"{str(file)!r} is already there, and keys are never replaced; name other ones.")


def _refuse(file: Path, kind: str, ending: str) -> NoReturn:
    raise UserError(
        f"{str(file)!r} holds no {kind} key on the curve P-256, P-384 or P-521 as PEM; give the {ending} file "
        "that `offsite keygen` wrote."
    )


def _pem(key: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as pem

    return key.public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
