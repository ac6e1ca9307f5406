"""A provider's address: whether it is one, whether it is this machine, whether what is sent there is encrypted."""

import ipaddress
import re
from urllib.parse import urlsplit


def check_address(url: str) -> str:
    """The address without a slash at its end; ValueError `WHAT; WHAT TO DO` for what is none."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f'found "{_shortened(url)}", no http or https address; write e.g. https://api.openai.com/v1')
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise ValueError(
            f'found "{_shortened(url)}", no address ({exc}); write e.g. https://api.openai.com/v1'
        ) from exc
    if parts.username is not None or parts.password is not None:
        # It may be a secret: not repeated.
        raise ValueError(
            "holds a user or password; a secret is never written in a file, name its variable: api_key_env"
        )
    if not host or any(char.isspace() for char in url):
        raise ValueError(f'found "{_shortened(url)}", an address without a host; write e.g. https://api.openai.com/v1')
    if parts.query or parts.fragment:
        raise ValueError("ends with a ? or # part, paths are added behind it; leave that part out")
    return url.rstrip("/")


def is_this_machine(url: str) -> bool:
    """Whether the host is a loopback address."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def unencrypted(url: str) -> bool:
    """Whether what is sent leaves this machine in the clear."""
    return url.startswith("http://") and not is_this_machine(url)


def _shortened(url: str) -> str:
    """What stands before an @ may be a secret: not repeated."""
    url = re.sub(r"//.*@", "//...@", url)
    return url if len(url) <= 60 else f"{url[:57]}..."
