# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""An OpenAI-compatible server of one model: /v1/chat/completions, /v1/models, /health, and the endpoints of
`transformers chat`.

Answers are those of `omnifusion ask`. Requests that wait are answered together if their settings agree; an answer ends
at the next token after its client disconnects.
"""

import asyncio
import copy
import json
import re
import socket
from collections.abc import AsyncIterator, Sequence
from time import monotonic

from huggingface_hub.utils import httpx
from jinja2 import TemplateError
from transformers.utils import logging

from ..inference import context_length, load, max_new_tokens_within_context, prompts
from ..model.image_processing_omnifusion import open_image


try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response, StreamingResponse
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.middleware.cors import CORSMiddleware
except ImportError:
    raise ValueError("the server needs FastAPI and uvicorn: pip install 'omnifusion_hf[serve]'.") from None

from .api_key import RequireKey
from .batches import Batches
from .hosts import LoopbackHosts, is_loopback
from .protocol import ChatRequest, LoadRequest, Refusal, Reply, error_body, read_request
from .writing import Answer, Written


logger = logging.get_logger(__name__)

MAX_BODY = 2**26  # bytes of a request
MAX_IMAGES = 64  # of a request
PREPARED = 4  # requests whose images are in memory at the same time, before their answers wait
SECONDS_TO_FETCH = 60  # the images of a request
MAX_NEW_TOKENS = 512  # default of a request
FAILED = "The server failed on this request; its log says why."
SECONDS_TO_END = 5  # for running answers when the server shuts down


class ChatServer:
    """Answers requests with one model.

    Args:
        name: the model's name in requests.
        reads_paths: whether an image may be a path of this computer, in addition to data URLs and http(s).
        batch_size: most requests that are answered together.
    """

    def __init__(self, model, processor, name: str, reads_paths: bool = False, batch_size: int = 1):
        self.model, self.processor, self.name, self.reads_paths = model, processor, name, reads_paths
        self.batches = Batches(model, processor, batch_size)
        self.preparing = asyncio.Semaphore(PREPARED)

    async def chat(self, http: Request) -> Response:
        request = read_request(await read_body(http), ChatRequest)
        self.check_name(request.model)
        async with self.preparing:
            inputs, room = await run_in_threadpool(self.prompt, request)
        reply, written = Reply(request.model, inputs["input_ids"].shape[1]), self.write(http, request, inputs, room)
        if request.stream:
            return StreamingResponse(events(request, reply, written), media_type="text/event-stream")
        last = None
        async for last in written:  # noqa: B007
            pass
        return Response(status_code=499) if last is None else JSONResponse(reply.whole(last))  # 499: client is gone

    def check_name(self, name: str):
        if name != self.name:
            raise Refusal(f"There is no model {name}; this server has {self.name}.", 404, "model", "model_not_found")

    def prompt(self, request: ChatRequest):
        """Model inputs, and the largest number of tokens of the answer."""
        messages = [message.for_processor for message in request.messages]
        for index, message in enumerate(messages):
            self.check_sources(message, f"messages[{index}]")
        try:
            self.open_images([part for message in messages for part in message["content"] if part["type"] == "image"])
            inputs = prompts(self.processor, [messages])
        except (ValueError, TemplateError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise Refusal(str(error), param="messages") from error
        try:
            most = request.max_new_tokens(MAX_NEW_TOKENS)
            return inputs, max_new_tokens_within_context(inputs, context_length(self.model.config.text_config), most)
        except ValueError as error:
            raise Refusal(str(error), param="messages", code="context_length_exceeded") from error

    def check_sources(self, message: dict, place: str):
        sources = [part["image"] for part in message["content"] if part["type"] == "image"]
        for source in sources if not self.reads_paths else []:
            if not source.startswith(("data:", "http://", "https://")):
                raise Refusal(
                    f"{place}: an image must be a data URL or an http(s) URL, got {source!r:.80}.", param=place
                )

    def open_images(self, parts: list[dict]):
        """Puts images, not decoded yet, in place of their sources. Raises `ValueError` for too many pixels: a small
        request can declare terabytes of them."""
        if len(parts) > MAX_IMAGES:
            raise ValueError(f"the request has {len(parts)} images, at most {MAX_IMAGES} are read.")
        left = limit = self.processor.image_processor.max_image_pixels
        end = monotonic() + SECONDS_TO_FETCH
        for part in parts:
            if monotonic() > end:
                raise ValueError(f"the request's images took more than {SECONDS_TO_FETCH} s to fetch.")
            part["image"] = open_image(part["image"], limit)
            left -= part["image"].width * part["image"].height
            if left < 0:
                raise ValueError(f"the request's images have more than {limit} pixels together; shrink them.")

    async def write(self, http: Request, request: ChatRequest, inputs, room: int) -> AsyncIterator[Written]:
        """The growing answer, in its batch; it ends early when its client disconnects."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue()
        answer = Answer(inputs, lambda piece: loop.call_soon_threadsafe(pieces.put_nowait, piece), request.stop)
        self.batches.add(answer, request.seed, **request.sampling(), max_new_tokens=room)
        written = None
        try:
            while written is None or written.finish_reason is None:
                written = await pieces.get()
                if isinstance(written, Exception):
                    raise written
                if await http.is_disconnected():
                    return
                yield written
        finally:
            answer.closed.set()


async def read_body(http: Request) -> bytes:
    """The JSON text of a request. A browser sends other types from any web page without asking this server."""
    kind = http.headers.get("content-type", "none").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(f"the content type is {kind}; send JSON as application/json.", 415)
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise Refusal(f"the request is larger than {MAX_BODY} bytes.", 413, code="request_too_large")
    return bytes(body)


async def events(request: ChatRequest, reply: Reply, written: AsyncIterator[Written]) -> AsyncIterator[str]:
    """Server-sent events of a streamed answer."""
    last = Written("", 0)
    yield event(reply.piece({"role": "assistant", "content": ""}))
    try:
        async for now in written:
            if now.text != last.text:
                yield event(reply.piece({"content": now.text[len(last.text) :]}))
            last = now
    except Exception:
        logger.exception("An answer failed.")
        yield event(error_body(FAILED, "server_error"))
        return
    yield event(reply.piece({}, last.finish_reason))
    if request.stream_options and request.stream_options.include_usage:
        yield event(reply.last_piece(last))
    yield "data: [DONE]\n\n"


def event(data: dict) -> str:
    return f"data: {json.dumps(data)}\n\n"


def build_app(server: ChatServer) -> FastAPI:
    """The server's endpoints, for every client that can reach it."""
    app = FastAPI(openapi_url=None)
    app.add_api_route("/v1/chat/completions", server.chat, methods=["POST"], response_model=None)
    served = {"id": server.name, "object": "model", "created": 0, "owned_by": "omnifusion_hf"}

    # `transformers chat` before 5.15 uses the endpoints outside OpenAI's protocol under /v1 as well.
    @app.get("/v1/health")
    @app.get("/health")
    async def health():
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models():
        return {"object": "list", "data": [served]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str):
        server.check_name(name)
        return served

    @app.post("/v1/load_model")
    @app.post("/load_model")
    async def load_model(http: Request):
        """`transformers chat` waits for this before its first question."""
        server.check_name(read_request(await read_body(http), LoadRequest).model)
        return Response(
            event({"status": "ready", "model": server.name, "cached": True}), media_type="text/event-stream"
        )

    app.add_exception_handler(Refusal, refuse)
    app.add_exception_handler(HTTPException, refuse_address)
    app.add_exception_handler(Exception, fail)
    return app


async def refuse(http: Request, error: Refusal) -> JSONResponse:
    logger.warning("Refused: %r", str(error))
    return JSONResponse(error_body(str(error), "invalid_request_error", error.param, error.code), error.status)


async def refuse_address(http: Request, error: HTTPException) -> JSONResponse:
    reason = f"{http.method} {http.url.path}: {error.detail}; there are /v1/chat/completions, /v1/models and /health."
    return JSONResponse(error_body(reason, "invalid_request_error", code="unknown_url"), error.status_code)


async def fail(http: Request, error: Exception) -> JSONResponse:
    """A response without details; the server's log has the error."""
    return JSONResponse(error_body(FAILED, "server_error"), 500)


def protect(app: FastAPI, host: str, api_key: str | None, cors: Sequence[str]):
    """Adds middleware, the innermost first: keys are asked for after a browser's preflight request, which has none."""
    if api_key is not None:
        app.add_middleware(RequireKey, key=api_key)
    if cors:
        app.add_middleware(CORSMiddleware, allow_origins=cors, allow_methods=["GET", "POST"], allow_headers=["*"])
    if is_loopback(host):
        app.add_middleware(LoopbackHosts)


def check_access(api_key: str | None, cors: Sequence[str]):
    """Raises `ValueError` for what no client could send."""
    if api_key is not None and not re.fullmatch("[!-~]+", api_key):
        raise ValueError("the API key must be of printable ASCII characters without spaces, and not empty.")
    for origin in cors:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise ValueError(f"--cors: {origin!r} is not an origin; write https://HOST, http://HOST:PORT or *.")


def log_config(level: str) -> dict:
    """uvicorn's settings of its loggers, for ours too."""
    config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    config["loggers"]["omnifusion_hf"] = {"handlers": ["default"], "level": level.upper(), "propagate": False}
    return config


def serve(
    model: str, host: str = "127.0.0.1", port: int = 8000, api_key: str | None = None, cors: Sequence[str] = (),
    log_level: str = "info", batch_size: int = 8, **loading,
):  # fmt: skip
    """Serves one model until it is interrupted or terminated.

    Args:
        model: folder or Hub id, which is also the model's name in requests.
        host: the address to listen on; `"0.0.0.0"` admits other computers. Clients may name images by any URL that
            this computer can read; only clients on this computer may name them by path, none with `api_key` or `cors`.
        port: a free one.
        api_key: what clients must send; None admits all.
        cors: origins of web pages that may read answers, or `"*"`.
        log_level: of the server's log.
        batch_size: most waiting requests that are answered together.
        loading: of [`inference.load`].
    """
    check_access(api_key, cors)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family):  # raises for a taken port before the model is loaded
        pass
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    print(f"Loading {model}. Talk to it: transformers chat {model} {address}", flush=True)
    reads_paths = is_loopback(host) and not (cors or api_key)  # of web pages, and of clients behind a proxy
    app = build_app(ChatServer(*load(model, **loading), model, reads_paths, batch_size))
    protect(app, host, api_key, cors)
    uvicorn.run(
        app, host=host, port=port, log_level=log_level, log_config=log_config(log_level),
        timeout_graceful_shutdown=SECONDS_TO_END,
    )  # fmt: skip
