"""The one file that imports cryptography: the sealer's Ed25519 key, signing and checking."""

import hashlib
import os
import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.errors import Malformed, NotFound

KEY_FILE = "sealing.key"  # PKCS 8, PEM: `openssl pkey` reads it, too
KEY_BYTES = 32


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def fingerprint(public: bytes) -> str:
    """A key's name: the first 16 bytes of its SHA-256, in hex."""
    return hashlib.sha256(public).hexdigest()[:32]


class Signer:
    """The private key of who seals."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = _raw(key.public_key())
        self.name = fingerprint(self.public)

    @property
    def pem(self) -> str:
        """The public key, for whoever checks."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self._key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)


def signer(folder: Path, *, make: bool = True) -> Signer:
    """The key in `folder`, made on first use and readable by its owner alone."""
    path = folder / KEY_FILE
    if not path.exists() and not make:
        raise NotFound(f"there is no key at {path}: the sealer makes it when it first runs")
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        data = Ed25519PrivateKey.generate().private_bytes(serialization.Encoding.PEM, form, plain)
        # A name of its own: in a container a process that was killed here has its number again.
        descriptor, part = tempfile.mkstemp(prefix=f"{KEY_FILE}.", dir=folder)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)  # of two that begin at once the first one's key stays
        except FileExistsError:
            pass
        finally:
            os.unlink(part)
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise Malformed(f"{path} holds no private key: {error}", field="key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Malformed(f"{path} holds a key of another kind than Ed25519", field="key")
    return Signer(key)


def read_public(text: str) -> bytes:
    """The public key in a PEM file's text, or in 64 hex digits."""
    text = text.strip()
    try:
        if len(text) == 2 * KEY_BYTES:
            return bytes.fromhex(text)
        key = serialization.load_pem_public_key(text.encode())
    except ValueError as error:
        raise Malformed(f"this is no public key: {error}", field="key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise Malformed("the key is of another kind than Ed25519", field="key")
    return _raw(key)


def is_signed(public: bytes, signature: str, data: bytes) -> bool:
    """Whether the signature (hex) over `data` was made with the private half of this key."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(bytes.fromhex(signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True
