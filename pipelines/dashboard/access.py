"""Who may use the live page: whoever has the address that was printed, from this machine, in a browser's own tab."""

import hmac
import re
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

from aiohttp import web
from msgspec import Struct, field

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Middleware = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]

_HOST = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::([0-9]{1,5}))?")
"""Hosts that a request may name, with any port: a tunnel may have another one. No other site can be one of them."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "media-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`: forms would then come without an origin.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every response."""

NO_ACCESS = "Open the address that `rowmill watch` has printed: it holds the token of this page.\n"


class Access(Struct, frozen=True):
    """The secrets of one server: its token, and what forms carry."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    def __repr__(self) -> str:
        """Name it without its token."""
        return "Access()"

    @property
    def form_token(self) -> str:
        """What every form sends back: another site cannot know it."""
        return hmac.digest(self.token.encode(), b"form", "sha256").hex()

    def cookie_name(self, request: web.Request) -> str:
        """Return the name of the cookie: browsers send cookies to every port of a host."""
        named = _HOST.fullmatch(request.host)
        return f"rowmill_{(named and named[1]) or 80}"

    def middleware(self, read_error: Callable[[web.Request, web.HTTPException], web.StreamResponse]) -> Middleware:
        """Return the check of every request. `read_error`: a page for an HTTP error."""

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                return await self._checked(request, handler)
            except web.HTTPException as exc:
                if exc.status < 400:
                    raise
                return read_error(request, exc)

        return check

    async def _checked(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if _HOST.fullmatch(request.host) is None:
            return _refused("This page answers only to 127.0.0.1 and localhost.\n")
        given = request.query.get("token")
        if given is not None and request.method == "GET":
            return self._enter(request, given)
        # Before anything else: even an error page names the folder.
        if not _is_same(request.cookies.get(self.cookie_name(request), ""), self.token):
            return _refused(NO_ACCESS)
        if request.method not in ("GET", "HEAD", "POST"):
            raise web.HTTPMethodNotAllowed(request.method, ("GET", "HEAD", "POST"))
        if request.method == "POST":
            await self._check_form(request)
        return await handler(request)

    def _enter(self, request: web.Request, given: str) -> web.StreamResponse:
        """Exchange the token of the printed address for a cookie, so that it stays in no history."""
        if not _is_same(given, self.token):
            return _refused(NO_ACCESS)
        # Two slashes at its beginning would make it an address of another host.
        path = f"/{request.rel_url.raw_path.lstrip('/')}"
        query = urlencode([(name, value) for name, value in request.query.items() if name != "token"])
        response = web.Response(status=303, headers={"Location": f"{path}?{query}" if query else path})
        response.set_cookie(self.cookie_name(request), self.token, httponly=True, samesite="Strict", path="/")
        return response

    async def _check_form(self, request: web.Request) -> None:
        """Refuse what does not come from a form of this page."""
        if request.headers.get("Origin") != f"http://{request.host}":
            raise web.HTTPForbidden(text="This form was not sent by this page.")
        if request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            raise web.HTTPForbidden(text="This form was not sent by this page.")
        if "Content-Encoding" in request.headers:
            raise web.HTTPBadRequest(text="This form is compressed; browsers send forms as they are.")
        try:
            form = await request.post()
        except (web.RequestPayloadError, LookupError, ValueError, RuntimeError) as exc:
            # Not what a browser sends: an unknown character set, or malformed parts.
            raise web.HTTPBadRequest(text="This form cannot be read.") from exc
        if not _is_same(str(form.get("form", "")), self.form_token):
            raise web.HTTPForbidden(text="This form is of an earlier page: load the page again.")


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add HEADERS to a response that is about to be sent; a handler may have set its own."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


def _is_same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(errors="surrogatepass"), expected.encode())


def _refused(text: str) -> web.Response:
    return web.Response(status=403, text=text)
