"""Trusted certificates: the system's, those that variables name, and those of a provider's `ca_file`."""

import os
import ssl
from functools import lru_cache
from pathlib import Path

BUNDLE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""A file or a folder of certificates that are trusted too; requests and curl read them."""
SYSTEM_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
"""A file or a folder in place of the system's; OpenSSL reads them."""


class CertificateError(ValueError):
    """Certificates that cannot be read: what was found; what to do."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"{found}; {remedy}")
        self.found, self.remedy = found, remedy


def read_ca_file(path: Path) -> str:
    """Return the PEM text of a file of certificates; CertificateError if it holds none."""
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise CertificateError(f"{path} cannot be read ({exc.strerror})", "name a file of certificates") from exc
    # Comments between certificates may have any encoding.
    text = content.decode("ascii", "ignore")
    try:
        if "-----BEGIN" not in text:
            raise ValueError("no BEGIN CERTIFICATE")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ValueError, ssl.SSLError) as exc:
        raise _no_certificates(path) from exc
    return text


def check_certificate_variables() -> None:
    """Raise CertificateError for a variable that names nothing: OpenSSL itself would trust nobody, in silence."""
    for name in (*BUNDLE_VARIABLES, *SYSTEM_VARIABLES):
        value = os.environ.get(name)
        if not value:
            continue
        places = value.split(os.pathsep) if name == "SSL_CERT_DIR" else [value]
        if not any(os.path.exists(place) for place in places):  # noqa: PTH110
            raise CertificateError(f"{name} names {value}, which does not exist", f"correct it, or unset {name}")
        if name != "SSL_CERT_DIR" and os.path.isfile(value):  # noqa: PTH113
            try:
                read_ca_file(Path(value))
            except CertificateError as exc:
                raise CertificateError(f"{name}: {exc.found}", exc.remedy) from exc


def tls_context(ca_certificates: str | None) -> ssl.SSLContext:
    """Return the context of connections to a provider with these certificates, shared by equal ones."""
    return _tls_context(ca_certificates, tuple(os.environ.get(name) for name in (*BUNDLE_VARIABLES, *SYSTEM_VARIABLES)))


@lru_cache(maxsize=64)
def _tls_context(ca_certificates: str | None, variables: tuple[str | None, ...]) -> ssl.SSLContext:
    # SSL_CERT_FILE and SSL_CERT_DIR are read by OpenSSL when the context is made.
    context = ssl.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    for bundle in variables[: len(BUNDLE_VARIABLES)]:
        if bundle and os.path.isdir(bundle):  # noqa: PTH112
            context.load_verify_locations(capath=bundle)
        elif bundle:
            context.load_verify_locations(cafile=bundle)
    if ca_certificates is not None:
        context.load_verify_locations(cadata=ca_certificates)
    return context


def _no_certificates(path: Path) -> CertificateError:
    remedy = f"write it as PEM: openssl x509 -inform der -in {path.name} -out {path.stem}.pem"
    return CertificateError(f"{path} holds no certificate in PEM form", remedy)
