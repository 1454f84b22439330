# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The model as lmms-eval asks it: `lmms-eval eval --model omnifusion --model_args pretrained=FOLDER --tasks …`.

lmms-eval finds it by the entry point `lmms_eval.models`. Documents are asked in batches of similar length, padded on
the left; greedy answers in float32 on a CPU do not depend on the batch size. Every process of `accelerate launch` asks
its share of the documents on a device of its own.
"""

import json
import traceback
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import Collator
from loguru import logger
from tqdm import tqdm

from ..inference import cut, generate_text, load, prompts
from ..io import staged_file, write_whole
from ..model.image_processing_omnifusion import OmniFusionImageProcessor, load_image
from .provenance import RunRecord
from .results import image_path, run_path


# lmms-eval's own LLaVA: what a task leaves open is greedy, without beams, of at most 1024 tokens.
DEFAULTS = {"do_sample": False, "num_beams": 1, "max_new_tokens": 1024}
SAMPLING = ("temperature", "top_p", "top_k", "min_p")


def manifest() -> ModelManifest:
    """What the entry point tells lmms-eval."""
    return ModelManifest(model_id="omnifusion", chat_class_path=f"{__name__}.OmniFusion")


class OmniFusion(lmms):
    """A saved folder, or a Hub id, under lmms-eval.

    Args, in `--model_args` as name=value:
        pretrained: the folder or Hub id.
        dtype, attn_implementation: as in `from_pretrained`; by default the checkpoint's dtype, float32 on a CPU.
        view_strategy: `whole` or `grid` instead of what the checkpoint says.
        log_images: a folder that gets every asked image, and for each task what its scores rest on (run.json).
    """

    is_simple = False  # asked with messages, images where the task has them

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
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self.world_size > 1:
            device = str(self.accelerator.device)
        self.log_images = log_images
        options = {"dtype": dtype, "attn_implementation": attn_implementation}
        options = {name: value for name, value in options.items() if value is not None}
        with visible_failure():
            if unknown:
                raise ValueError(f"--model_args names {', '.join(unknown)}, which the model does not take.")
            self.batch_size = read_batch_size(batch_size)
            self.model, self.processor = load(pretrained, device, **options)
            if view_strategy is not None:
                self.processor.image_processor.view_strategy = view_strategy
            self.record = RunRecord(pretrained, self.model, self.processor, self.batch_size)

    @property
    def device(self):
        return self.model.device

    def generate_until(self, requests: list) -> list[str]:
        """The answer to each request."""
        with visible_failure():
            order = Collator(
                [request.args for request in requests], sort_fn=_longest_first, group_fn=_settings, grouping=True
            )
            answers = []
            with tqdm(total=len(requests), desc="asking", disable=self.rank != 0) as bar:
                for batch in order.get_batched(n=self.batch_size):
                    answers += self._answer(batch)
                    bar.update(len(batch))
            self._save_record()
            return order.get_original(answers)

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
            raise ValueError(f"{task}, document {doc_id} holds video or sound; the model sees images.")
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
    """`--batch_size`, which lmms-eval also knows as `auto`."""
    if not str(given).isdecimal() or int(given) == 0:
        raise ValueError(f"--batch_size {given} is not supported; give a number.")
    return int(given)


def _longest_first(request: tuple) -> int:
    return -len(request[0])


def _settings(request: tuple) -> dict:
    return request[2]


def generation_options(settings: dict) -> dict:
    """A task's generation settings as options of `generate`, which refuses what it does not know."""
    options = DEFAULTS | {name: value for name, value in settings.items() if name != "until" and value is not None}
    if not options["do_sample"]:  # tasks give `temperature: 0` to say greedy
        options = {name: value for name, value in options.items() if name not in SAMPLING}
    return options


def stop_texts(settings: dict) -> list[str]:
    """The texts of `until` that end an answer."""
    until = settings.get("until") or []
    return [text for text in ([until] if isinstance(until, str) else until) if text]


def save_images(folder: str | Path, task: str, doc_id: int, images: list):
    """Writes a document's images as files that are whole or absent."""
    for index, image in enumerate(images):
        path = image_path(folder, task, doc_id, index)
        with staged_file(path) as part:
            load_image(image, OmniFusionImageProcessor.max_image_pixels).save(part, format="PNG")
