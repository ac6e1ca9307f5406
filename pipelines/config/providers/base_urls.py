"""Base URLs of providers: their syntax, whether they are on this machine, whether traffic to them is encrypted."""

import ipaddress
import re
from urllib.parse import parse_qsl, urlsplit

from connectors.errors import FieldError

_EXAMPLE = "write e.g. https://api.openai.com/v1"


def checked_base_url(url: str) -> str:
    """Return the URL without a slash at its end; FieldError if it is not the base URL of an API."""
    quoted = f'found "{_without_credentials(url)}"'
    if not url.startswith(("http://", "https://")):
        raise FieldError(f"{quoted}, not an http or https address", _EXAMPLE)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise FieldError(f"{quoted}, not an address ({exc})", _EXAMPLE) from exc
    if parts.username is not None or parts.password is not None:
        # It may be a secret, so the message does not quote it.
        remedy = "a secret is never written in a file, name its variable: api_key_env"
        raise FieldError("holds a user or password", remedy)
    if not host or any(char.isspace() for char in url):
        raise FieldError(f"{quoted}, an address without a host", _EXAMPLE)
    if parts.fragment:
        raise FieldError("ends with a # part, and paths are added behind it", "leave that part out")
    if parts.query:
        # Its values may be secrets, so the message does not quote them.
        names = ", ".join(f"{name}: VALUE" for name, _ in parse_qsl(parts.query, keep_blank_values=True))
        raise FieldError(
            "ends with a ? part, and paths are added behind it",
            f"write it as a key of the provider: query: {{{names}}}",
        )
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Return whether the host is this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def is_unencrypted(url: str) -> bool:
    """Return whether requests leave this machine without encryption."""
    return url.startswith("http://") and not is_loopback(url)


def _without_credentials(url: str) -> str:
    """Return the URL for a message, shortened; what is before an @ may be a secret."""
    url = re.sub(r"//.*@", "//...@", url)
    return url if len(url) <= 60 else f"{url[:57]}..."
