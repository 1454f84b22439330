# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The model in lmms-eval: `lmms-eval eval --model omnifusion --model_args pretrained=FOLDER --tasks …`.

lmms-eval finds it by the entry point `lmms_eval.models`. Documents form batches of similar length, padded on the left;
greedy answers in float32 on a CPU do not depend on the batch size. Each process of `accelerate launch` evaluates its
share of the documents on its own device.
"""

import json
import traceback
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from accelerate import Accelerator
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from loguru import logger
from tqdm import tqdm

from ..inference import cut, generate_text, load, prompts
from ..io import staged_file, write_whole
from ..model.image_processing_omnifusion import OmniFusionImageProcessor, load_image
from .provenance import RunRecord
from .results import image_path, run_path


# The settings of lmms-eval's own LLaVA where a task leaves them open.
DEFAULTS = {"do_sample": False, "num_beams": 1, "max_new_tokens": 1024}
SAMPLING = ("temperature", "top_p", "top_k", "min_p")


def manifest() -> ModelManifest:
    """The entry point's declaration of the model."""
    return ModelManifest(model_id="omnifusion", chat_class_path=f"{__name__}.OmniFusion")


class OmniFusion(lmms):
    """A saved folder, or a Hub id, under lmms-eval.

    Args, in `--model_args` as name=value:
        pretrained: the folder or Hub id.
        dtype, attn_implementation: as in `from_pretrained`; by default the checkpoint's dtype, float32 on a CPU.
        view_strategy: `whole` or `grid` instead of the checkpoint's.
        log_images: a folder for every image of the prompts and, per task, the facts behind its scores (run.json).
    """

    is_simple = False  # a chat model: prompts are messages, with images where the task places them

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        view_strategy: str | None = None,
        log_images: str | None = None,
        max_batch_size: int | None = None,
        **unknown,
    ):
        super().__init__()
        self.accelerator = Accelerator()
        if self.world_size > 1:
            device = str(self.accelerator.device)
        self.log_images = log_images
        with visible_failure():
            if unknown:
                raise ValueError(f"--model_args has {', '.join(unknown)}, which the model does not accept.")
            self.batch_size = read_batch_size(batch_size)
            self.model, self.processor = load(pretrained, device, dtype=dtype, attn_implementation=attn_implementation)
            if view_strategy is not None:
                self.processor.image_processor.view_strategy = view_strategy
            self.record = RunRecord(pretrained, self.model, self.processor, self.batch_size)

    @property
    def device(self):
        return self.model.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        return self.accelerator.num_processes

    def generate_until(self, requests: list) -> list[str]:
        """The answer to each request, in their order."""
        with visible_failure():
            requests, answers = [request.args for request in requests], {}
            with tqdm(total=len(requests), desc="answers", disable=self.rank != 0) as bar:
                for batch in batches(requests, self.batch_size):
                    answers |= zip(batch, self._answer([requests[index] for index in batch]))
                    bar.update(len(batch))
            self._save_record()
            return [answers[index] for index in range(len(requests))]

    def _answer(self, batch: list[tuple]) -> list[str]:
        inputs = prompts(self.processor, [self._messages(request) for request in batch])
        for (*_, doc_id, task, _split), ids, mask in zip(batch, inputs["input_ids"], inputs["attention_mask"]):
            self.record.add(task, doc_id, ids[mask.bool()].tolist())
        settings = _settings(batch[0])
        options, until = generation_options(settings), stop_texts(settings)
        if until:
            options |= {"stop_strings": until, "tokenizer": self.processor.tokenizer}
        return [cut(text, until) for text in generate_text(self.model, inputs, self.processor, **options)]

    def _messages(self, request: tuple) -> list[dict]:
        _, doc_to_messages, _, doc_id, task, split = request
        chat = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
        images, *others = chat.extract_media()
        if any(others):
            raise ValueError(f"{task}, document {doc_id} holds video or sound; the model reads images only.")
        if self.log_images:
            save_images(self.log_images, task, doc_id, images)
        return chat.to_hf_messages()

    def _save_record(self):
        records = self.record.of_tasks()
        for task, facts in records.items() if self.accelerator.is_main_process else ():
            logger.info(f"{task} was measured with {facts}")
            context = facts["context_length"]
            if context is not None and facts["longest_prompt"] > context:
                logger.warning(
                    f"{task}: prompts of up to {facts['longest_prompt']} tokens are longer than the context."
                )
            if self.log_images:
                write_whole(run_path(self.log_images, task), json.dumps(facts, indent=1) + "\n")

    def loglikelihood(self, requests: list):
        with visible_failure():
            raise ValueError("tasks that rank given answers (loglikelihood, multiple_choice) are not supported.")

    def generate_until_multi_round(self, requests: list):
        with visible_failure():
            raise ValueError("tasks of several rounds (generate_until_multi_round) are not supported.")


@contextmanager
def visible_failure():
    """Ends the process with exit code 1 when the block fails: lmms-eval prints exceptions and then exits with 0."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(f"omnifusion: error: {error}") from error


def read_batch_size(given: int | str) -> int:
    """The number of `--batch_size`. Raises `ValueError` for `auto`, which lmms-eval permits."""
    if not str(given).isdecimal() or int(given) == 0:
        raise ValueError(f"--batch_size {given} is not supported; give a number.")
    return int(given)


def batches(requests: list[tuple], size: int) -> list[list[int]]:
    """Indices of requests by batch: the same generation settings in a batch, long prompts first."""

    def settings(index: int) -> str:
        return repr(sorted(_settings(requests[index]).items()))

    order = sorted(range(len(requests)), key=lambda index: (settings(index), -len(requests[index][0])))
    groups = [list(group) for _, group in groupby(order, settings)]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def _settings(request: tuple) -> dict:
    return request[2]


def generation_options(settings: dict) -> dict:
    """A task's generation settings as options of `generate`, which raises for unknown ones."""
    options = DEFAULTS | {name: value for name, value in settings.items() if name != "until" and value is not None}
    if not options["do_sample"]:  # tasks set `temperature: 0` for greedy decoding
        options = {name: value for name, value in options.items() if name not in SAMPLING}
    return options


def stop_texts(settings: dict) -> list[str]:
    """The texts of `until` that end an answer."""
    until = settings.get("until") or []
    return [text for text in ([until] if isinstance(until, str) else until) if text]


def save_images(folder: str | Path, task: str, doc_id: int, images: list):
    """Writes a document's images atomically as PNG."""
    for index, image in enumerate(images):
        path = image_path(folder, task, doc_id, index)
        with staged_file(path) as part:
            load_image(image, OmniFusionImageProcessor.max_image_pixels).save(part, format="PNG")
