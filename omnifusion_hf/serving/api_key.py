# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Access to a server by a key, which clients send as OpenAI's do: `Authorization: Bearer KEY`."""

from secrets import compare_digest

from starlette.responses import JSONResponse

from .protocol import error_body


# Load balancers ask for the first, `transformers chat` for both, without a key; neither runs the model.
OPEN = ("/health", "/load_model", "/v1/health", "/v1/load_model")


class RequireKey:
    """ASGI middleware that answers requests without the key with 401."""

    def __init__(self, app, key: str):
        self.app, self.key = app, key.encode()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan" or scope["path"] in OPEN or self._has_key(scope["headers"]):
            return await self.app(scope, receive, send)
        reason = "The API key is missing or wrong; send the header `Authorization: Bearer KEY`."
        body = error_body(reason, "invalid_request_error", code="invalid_api_key")
        await JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _has_key(self, headers: list[tuple[bytes, bytes]]) -> bool:
        scheme, _, given = dict(headers).get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and compare_digest(given.strip(), self.key)
