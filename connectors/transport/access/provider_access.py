"""Access to one provider: the addresses, headers, certificates, proxy and secrets of its requests."""

import ssl
from urllib.parse import quote, unquote, urlencode, urlsplit

from multidict import CIMultiDict

from connectors.contracts import Provider
from connectors.transport.access.certificates import tls_context
from connectors.transport.access.secret_mask import SecretMask
from connectors.transport.fast_post import RequestHead, request_head

USER_AGENT = "rowmill/0.1"
DEFAULT_KEY_HEADER = "Authorization"


class ProviderAccess:
    """How requests reach one provider with one of its keys."""

    def __init__(self, provider: Provider, key: str | None) -> None:
        self.key = key
        self.proxy = provider.proxy
        self.mask = provider_mask(provider)
        self.tls: ssl.SSLContext | bool = True
        if provider.base_url.startswith("https:") or (self.proxy or "").startswith("https:"):
            self.tls = tls_context(provider.ca_certificates)
        self.proxy_host = urlsplit(self.proxy or "").hostname
        self._base_url = provider.base_url
        self._query = urlencode(provider.query, quote_via=quote)
        self._headers = CIMultiDict({"User-Agent": USER_AGENT})
        self._headers.update(provider.headers)
        if key is not None and provider.api_key_header is None:
            self._headers[DEFAULT_KEY_HEADER] = f"Bearer {key}"
        elif key is not None and provider.api_key_header is not None:
            self._headers[provider.api_key_header] = key
        self._json_headers = self._headers.copy()
        self._json_headers["Content-Type"] = "application/json"
        self._heads: dict[str, RequestHead] = {}

    def url(self, path: str) -> str:
        """Return the address of a path below the base URL, with the provider's query."""
        if not self._query:
            return self._base_url + path
        return f"{self._base_url}{path}{'&' if '?' in path else '?'}{self._query}"

    def headers(self, is_json: bool) -> CIMultiDict[str]:
        """Return the headers of a request; `is_json`: its body is JSON."""
        return self._json_headers if is_json else self._headers

    def head(self, path: str) -> RequestHead:
        """Return the head of the POST requests with a JSON body to this path."""
        if (head := self._heads.get(path)) is None:
            head = self._heads[path] = request_head(self.url(path), self._json_headers, self.tls)
        return head


def provider_mask(provider: Provider) -> SecretMask:
    """Return the mask of all secrets of a provider so far."""
    declared = list(provider.secrets)
    if provider.key_source is not None:
        declared += provider.key_source.known_keys
    if provider.proxy is not None:
        parts = urlsplit(provider.proxy)
        if parts.password:
            user, password = unquote(parts.username or ""), unquote(parts.password)
            declared += [password, f"{user}:{password}"]
    return SecretMask(() if provider.api_key is None else (provider.api_key,), declared)
