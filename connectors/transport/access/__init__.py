"""Access to providers: keys, headers, certificates, proxies and the masks of their secrets."""
