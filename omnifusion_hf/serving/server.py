# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""transformers' own OpenAI-compatible server, with the classes of this package known to it."""

from contextlib import suppress
from functools import partial

from transformers import AutoConfig
from transformers.cli.serve import Serve
from transformers.cli.serving.model_manager import ModelManager
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
from transformers.utils import logging
from transformers.utils.import_utils import is_serve_available

from ..ask import context_length, placement, room_for_answer, told_if_missing
from ..configuration_omnifusion import OmniFusionConfig
from ..modeling_omnifusion import OmniFusionForConditionalGeneration


if not is_serve_available():
    raise ValueError("the server needs FastAPI, uvicorn and openai: pip install 'omnifusion_hf[serve]'.")

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from huggingface_hub.utils import httpx
from jinja2 import TemplateError


logger = logging.get_logger(__name__)

# The server asks this table, by model type and by class name, what can be served; there is no hook that fills it.
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[OmniFusionConfig.model_type] = OmniFusionForConditionalGeneration.__name__


async def refuse(request: Request, error: Exception) -> JSONResponse:
    logger.warning(f"Refused: {error}")
    return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, status_code=400)


def check_chat(body):
    """Raises `ValueError` for a chat request with something else than messages of text and pictures."""
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages must be a list with a message at least, got {messages!r:.80}.")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {index} has no role: {message!r:.80}.")
        content = message.get("content")
        if not isinstance(content, (str, list, type(None))):
            raise ValueError(f"message {index}: content must be text or a list of parts, got {content!r:.80}.")
        for part in content if isinstance(content, list) else []:
            check_part(part, index)


def check_part(part, index: int):
    kind = part.get("type") if isinstance(part, dict) else None
    given = part[kind] if kind in ("text", "image_url") and kind in part else None
    if kind == "image_url" and isinstance(given, dict):
        given = given.get("url")
    if not isinstance(given, str):
        raise ValueError(
            f"message {index}: a part must be {{'type': 'text', 'text': …}} or {{'type': 'image_url', 'image_url': "
            f"{{'url': …}}}}, got {part!r:.80}."
        )


def tell_mistakes(app: FastAPI):
    """A request that cannot be answered (no picture in its picture, a role that the chat format has not) gets status
    400 and the reason; by itself the server says "Internal Server Error"."""
    for mistake in (ValueError, TemplateError, httpx.HTTPError):
        app.add_exception_handler(mistake, refuse)

    @app.middleware("http")
    async def refuse_malformed(request: Request, call_next):
        if request.method == "POST" and request.url.path == "/v1/chat/completions":
            try:
                check_chat(await request.json())
            except ValueError as error:
                return await refuse(request, error)
        return await call_next(request)


def refuse_long_prompts(manager: ModelManager):
    """A prompt that fills the LLM's context is a mistake of the request, known once its chat is tokens."""
    load = manager.load_model_and_processor

    def prompt(model, processor, *args, **kwargs):
        inputs = type(processor).apply_chat_template(processor, *args, **kwargs)
        room_for_answer(inputs, context_length(model.config.text_config), max_new_tokens=1)
        return inputs

    def load_checked(*args, **kwargs):
        model, processor = load(*args, **kwargs)
        processor.apply_chat_template = partial(prompt, model, processor)
        return model, processor

    manager.load_model_and_processor = load_checked


class Server(Serve):
    """transformers' server; its non-blocking form leaves a moment to change it before it runs (blocking, here)."""

    def start_server(self):
        served = {"id": self._model_manager.force_model, "object": "model", "created": 0, "owned_by": "omnifusion_hf"}
        self._model_manager.get_gen_models = lambda: [served]  # by itself it lists the Hub's cache
        refuse_long_prompts(self._model_manager)
        tell_mistakes(self.server.config.app)
        with suppress(KeyboardInterrupt):
            self.server.run()


def serve(model: str, host: str = "127.0.0.1", port: int = 8000):
    """Serves one model until it is interrupted or terminated.

    Args:
        model: folder or Hub id, which is also the model's name in requests.
        host: the address to listen on; `"0.0.0.0"` lets other computers in. Whoever gets in may name pictures by any
            path or URL that this computer reads.
        port: a free one.
    """
    device, dtype = placement()
    with told_if_missing(model):
        AutoConfig.from_pretrained(model)
    print(f"Loading {model}; requests name it so. Talk: transformers chat {model} http://{host}:{port}/v1", flush=True)
    Server(force_model=model, device=device, dtype=dtype, host=host, port=port, non_blocking=True)
