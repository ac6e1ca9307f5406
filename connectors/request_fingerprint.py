"""Request fingerprint: the digest under which the ledger stores and finds the answer to a request."""

from hashlib import blake2b


def request_fingerprint(provider_tag: str, path: str, body: bytes, salt: str = "") -> bytes:
    """Return 16 bytes that identify a request: provider (name, and whether it is local), endpoint, body, salt.

    The salt is the row's key with `reuse: false`, else empty.
    """
    return fingerprint_of(body, fingerprint_suffix(provider_tag, path, salt))


def fingerprint_suffix(provider_tag: str, path: str, salt: str = "") -> bytes:
    """Return what is digested behind a request's body."""
    return b"\0" + provider_tag.encode() + b"\0" + path.encode() + b"\0" + salt.encode()


def fingerprint_of(body: bytes, suffix: bytes) -> bytes:
    """Return `request_fingerprint` of a body, with the suffix that equal steps share."""
    return blake2b(body + suffix, digest_size=16, person=b"rowmill.request1").digest()
