# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""transformers' own OpenAI-compatible server, with the classes of this package known to it."""

from contextlib import suppress

from transformers.cli.serve import Serve
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
from transformers.utils import logging
from transformers.utils.import_utils import is_serve_available

from ..ask import placement
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


def tell_mistakes(app: FastAPI):
    """A request that cannot be answered (no picture in its picture, a role that the chat format has not) gets status
    400 and the reason; by itself the server says "Internal Server Error"."""

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        logger.warning(f"Refused: {error}")
        return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, status_code=400)

    for mistake in (ValueError, TemplateError, httpx.HTTPError):
        app.add_exception_handler(mistake, refuse)


class Server(Serve):
    """transformers' server; its non-blocking form leaves a moment to change it before it runs (blocking, here)."""

    def start_server(self):
        served = {"id": self._model_manager.force_model, "object": "model", "created": 0, "owned_by": "omnifusion_hf"}
        self._model_manager.get_gen_models = lambda: [served]  # by itself it lists the Hub's cache
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
    print(f"Loading {model}; requests name it so. Talk: transformers chat {model} http://{host}:{port}/v1", flush=True)
    Server(force_model=model, device=device, dtype=dtype, host=host, port=port, non_blocking=True)
