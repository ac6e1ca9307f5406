"""Connection faults that no waiting cures: certificates, protocols and proxies that refuse, each with its remedy."""

import ssl

import aiohttp

from connectors.transport.access.provider_access import ProviderAccess

_CERTIFICATE_REMEDIES = (
    ("mismatch", "correct the host in base_url, or have the certificate name it"),
    ("not valid for", "correct the host in base_url, or have the certificate name it"),
    ("expired", "have it renewed, or check this machine's clock"),
    ("not yet valid", "check this machine's clock"),
)
"""Words of OpenSSL's reason -> what to do."""
_TRUST_REMEDY = "trust its issuer: ca_file of the provider in rowmill.yaml, or SSL_CERT_FILE=FILE"

_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"})
"""OpenSSL's reasons if the peer answers in another protocol."""
_TLS_REMEDIES = {
    "UNSUPPORTED_PROTOCOL": "the server needs a newer version of TLS",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the server needs another version of TLS",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "client and server share no cipher, or it wants a client certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a client certificate, which Rowmill cannot send",
}
_TLS_BYTES = (r"\x15\x03", "\x15\x03")
"""The beginning of a TLS alert, as parsers quote it: the answer of a TLS port to plain HTTP."""
_HTTPS_WORDS = (b"plain HTTP request was sent to HTTPS port", b"sent an HTTP request to an HTTPS server")
"""How nginx and Go's servers word it."""


def permanent_fault(exc: BaseException, access: ProviderAccess) -> str | None:
    """Return what was found and what to do if an exception of a request is a fault that no waiting cures."""
    match exc:
        case aiohttp.ClientConnectorCertificateError():
            reason = _certificate_reason(exc.certificate_error)
            remedy = next((advice for words, advice in _CERTIFICATE_REMEDIES if words in reason.lower()), _TRUST_REMEDY)
            return f"the certificate of {exc.host} is refused ({reason}); {remedy}"
        case aiohttp.ClientConnectorSSLError():
            return _tls_fault(exc, access)
        case aiohttp.ClientHttpProxyError():
            return refused_by_proxy(exc.status, access)
        case aiohttp.ClientConnectorDNSError() if access.proxy is not None:
            # The proxy resolves the provider's own name.
            return f"the proxy {exc.host} is unknown ({exc.os_error}); {_proxy_advice('correct its address')}"
        case aiohttp.http_exceptions.HttpProcessingError() | aiohttp.ClientResponseError() if any(
            each in exc.message for each in _TLS_BYTES
        ):
            return "the server speaks TLS at this address; write https:// in base_url"
    return None


def refused_by_proxy(status: int, access: ProviderAccess) -> str | None:
    """Return what to do if a proxy's status is a refusal; None for a passing fault, such as a 502."""
    host = access.proxy_host or "a proxy"
    if status == 407:
        advice = _proxy_advice("give its address with both: http://USER:PASSWORD@HOST:PORT")
        return f"the proxy {host} wants a user and a password (HTTP 407); {advice}"
    if status in (401, 403, 405, 451):
        return f"the proxy {host} refuses this provider (HTTP {status}); {_proxy_advice('have it allowed')}"
    return None


def is_https_port(status: int, body: bytes) -> bool:
    """Return whether an error reply says that plain HTTP came to a TLS port."""
    return status in (400, 497) and any(words in body for words in _HTTPS_WORDS)


def _certificate_reason(exc: Exception) -> str:
    reason = exc.verify_message if isinstance(exc, ssl.SSLCertVerificationError) else ""
    return reason or str(exc)


def _tls_fault(exc: aiohttp.ClientConnectorSSLError, access: ProviderAccess) -> str | None:
    reason = getattr(exc.os_error, "reason", None) or ""
    if reason in _NO_TLS:
        where = "base_url" if access.proxy is None else "base_url, or in the proxy's address"
        return f"{exc.host}:{exc.port} answers without TLS; write http:// in {where}"
    if reason in _TLS_REMEDIES:
        return f"no TLS with {exc.host}:{exc.port} ({reason}); {_TLS_REMEDIES[reason]}"
    return None


def _proxy_advice(what: str) -> str:
    return f"{what}, in HTTPS_PROXY or HTTP_PROXY or `proxy` of the provider, or name this provider's host in NO_PROXY"
