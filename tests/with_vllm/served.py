"""Tiny models that vLLM's attention can run, as folders, and what transformers and vLLM answer for them."""

import base64
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import tiny
import torch
from PIL import Image
from pixels import encoded
from transformers import PreTrainedConfig

from omnifusion_hf import OmniFusionForConditionalGeneration, OmniFusionProcessor


ASK = Path(__file__).with_name("ask.py")
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
ENVIRONMENT |= {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB
ENVIRONMENT |= {"TORCHDYNAMO_DISABLE": "1"}  # compiling takes longer than all of these tests
NEW_TOKENS = 12


def llm(**changes) -> PreTrainedConfig:
    """An LLM whose answers depend on every image; vLLM has kernels for heads of 32 and wider."""
    return tiny.text_config(**{"head_dim": 32, "initializer_range": 0.2, **changes})


def save(folder: Path, encoders=("clip",), text=None, view_strategy="whole", change=None, **config) -> Path:
    """A random model and its processor; `change` may edit the model before it is saved."""
    model = tiny.model(tiny.config(encoders, text=text or llm(), **config))
    if change is not None:
        with torch.no_grad():
            change(model)
    model.save_pretrained(folder)
    tiny.processor(model.config, view_strategy=view_strategy).save_pretrained(folder)
    return folder


def conversations(side: int = 40) -> list[list[dict]]:
    """No image, one, two, one of unusual size, and `<image>` typed by a user."""
    first, second, third, strip, dot = (
        tiny.image(seed, size) for seed, size in enumerate([(side, 60), (side, 60), (97, 33), (16, 700), (1, 1)])
    )
    return [
        [tiny.user("What is <image> in the picture?")],
        [tiny.user(first, "What is it?")],
        [tiny.user(second, "What is it?")],
        [tiny.user(first, "and", third, "What is it?")],
        [tiny.user(third, "and", first, "What is it?")],
        [tiny.user(strip, "What?"), tiny.assistant("A strip."), tiny.user("And this one?", dot)],
    ]


def by_transformers(folder: Path, asked: list[list[dict]], **options) -> list[dict]:
    """Prompt ids, greedy answer and the log probability of its tokens, of each conversation asked alone, in float32.

    options: for the processor, as in a call.
    """
    model = OmniFusionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = OmniFusionProcessor.from_pretrained(folder)
    found = []
    for conversation in asked:
        inputs = tiny.prompt(processor, conversation, **options)
        settings = {"do_sample": False, "output_scores": True, "return_dict_in_generate": True}
        output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, **settings)
        length, tokens = inputs["input_ids"].shape[1], output.sequences[0].tolist()
        prompt, answer = tokens[:length], tokens[length:]
        logprobs = torch.cat(output.scores).log_softmax(-1)  # (answer, vocab)
        chosen = [logprobs[i, token].item() for i, token in enumerate(answer)]
        found.append({"prompt": prompt, "answer": answer, "logprobs": chosen})
    return found


def job(folder: Path, asked: list[list[dict]], **engine) -> dict:
    """What vLLM is to load and to answer; several conversations are in flight at once."""
    return {
        "engine": {"model": str(folder), "dtype": "float32", "enforce_eager": True, "max_model_len": 512, **engine},
        "sampling": {"temperature": 0, "max_tokens": NEW_TOKENS, "logprobs": 0},
        "conversations": [[as_openai(message) for message in conversation] for conversation in asked],
    }


def by_vllm(jobs: list[dict], **environment) -> list[list[dict]]:
    """As by_transformers, for one job after another, in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        asking, answers = Path(folder, "jobs.json"), Path(folder, "answers.json")
        asking.write_text(json.dumps(jobs))
        command, env = [sys.executable, ASK, asking, answers], os.environ | ENVIRONMENT | environment
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr[-20000:] + done.stdout[-9000:]
        return json.loads(answers.read_text())


def as_openai(message: dict) -> dict:
    """A message with images as data URIs, as clients of an OpenAI-compatible server send it."""
    parts = [
        {"type": "image_url", "image_url": {"url": data_uri(part["image"])}} if "image" in part else part
        for part in message["content"]
    ]
    return message | {"content": parts}


def data_uri(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(image, "PNG")).decode()
