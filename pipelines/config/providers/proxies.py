"""Proxies: which one the environment names for an address, by the rules that HTTP clients share."""

import ipaddress
import os
import re
from urllib.parse import urlsplit

from connectors.errors import FieldError
from pipelines.config.providers.base_urls import is_loopback

_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_direct(url: str) -> bool:
    """Return whether a URL is reached without a proxy: this machine, and hosts that NO_PROXY names."""
    return is_loopback(url) or _is_excluded(url, _value("no_proxy")[1])


def environment_proxy(url: str) -> tuple[str, str] | None:
    """Return (variable, address) of the proxy for a URL; None if there is none, or NO_PROXY names the host.

    This machine is never reached through a proxy. A variable in lower case goes before the same in capitals.
    """
    scheme = urlsplit(url).scheme
    if is_direct(url):
        return None
    for name in (f"{scheme}_proxy", "all_proxy"):
        if name == "http_proxy" and "REQUEST_METHOD" in os.environ:
            # In a CGI process HTTP_PROXY is a header that the client chose.
            continue
        variable, value = _value(name)
        if value:
            return variable, value
    return None


def checked_proxy(address: str, *, in_file: bool) -> str:
    """Return the address of a proxy with its scheme; FieldError if it is none. `in_file`: it may hold no secret."""
    example = "write e.g. http://proxy.internal:3128"
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise FieldError(f"not the address of a proxy ({exc})", example) from exc
    if parts.scheme not in ("http", "https"):
        raise FieldError(f"names a {parts.scheme} proxy, and only http and https proxies are supported", example)
    if not host or any(char.isspace() for char in url):
        raise FieldError("not the address of a proxy: it has no host", example)
    if in_file and (parts.username is not None or parts.password is not None):
        remedy = "a secret is never written in a file, name a variable that holds the address: {env: PROXY}"
        raise FieldError("holds a user or password", remedy)
    return url


def _value(name: str) -> tuple[str, str]:
    """Return (variable, value) of the spelling that is set."""
    for variable in (name, name.upper()):
        if (value := os.environ.get(variable)) is not None:
            return variable, value.strip()
    return name, ""


def _is_excluded(url: str, no_proxy: str) -> bool:
    """Whether NO_PROXY names the host: a name and all below it, an address, a network, each with or without a port."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".").lower()
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    for entry in re.split(r"[\s,]+", no_proxy.lower()):
        if entry == "*":
            return True
        name, its_port = _split_port(entry)
        if not name or (its_port is not None and its_port != port):
            continue
        if address is not None:
            if _holds(name, address):
                return True
        elif host == (suffix := name.lstrip("*").lstrip(".").rstrip(".")) or (suffix and host.endswith(f".{suffix}")):
            return True
    return False


def _split_port(entry: str) -> tuple[str, int | None]:
    """`[::1]:80` and `a.org:80` have a port; `::1` and `10.0.0.0/8` have none."""
    found = re.fullmatch(r"\[(.+)\](?::(\d+))?|([^:]+):(\d+)", entry)
    if found is None:
        return entry, None
    port = found[2] or found[4]
    return found[1] or found[3], None if port is None else int(port)


def _holds(network: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
