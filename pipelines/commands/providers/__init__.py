"""Commands about providers, and the embedded one as a server."""
