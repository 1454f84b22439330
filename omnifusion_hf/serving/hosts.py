# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Protection of a local server: requests must name this computer as their Host.

A web page can give its own domain the address 127.0.0.1 (DNS rebinding); browsers then let its scripts talk to a local
server. Such requests carry the page's domain as their Host.
"""

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

from .protocol import error_body


def is_loopback(name: str | None) -> bool:
    """Whether a host name or address, without a port, is this computer."""
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def names_this_computer(host: str) -> bool:
    """Whether a Host header is 127.0.0.1, localhost or [::1], with any port."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname)
    except ValueError:
        return False


class LoopbackHosts:
    """ASGI middleware that answers requests to other names with 403."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        hosts = [value.decode("latin-1") for name, value in scope.get("headers", []) if name == b"host"]
        if scope["type"] == "lifespan" or (len(hosts) == 1 and names_this_computer(hosts[0])):
            return await self.app(scope, receive, send)
        reason = f"Host {hosts} is not this computer; use 127.0.0.1, localhost or [::1], or start with --host 0.0.0.0."
        await JSONResponse(error_body(reason, "invalid_request_error"), 403)(scope, receive, send)
