# Copyright 2026 The omnifusion_hf authors. All rights reserved.
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0 Unless required by
# applicable law or agreed to in writing, software distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific language
# governing permissions and limitations under the License.
"""Text and images to model inputs: text as data, the images of each prompt, and the count of image tokens.

Provenance: like `LlavaProcessor`; the prompt format of the authors' release v1.1. Differences: every `<image>` becomes
`<img_start>` + V·P x `<image>` + `<img_end>` (V views of P tokens), text stays text, images are counted per prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import zip_longest


# First: configuration refuses other versions of transformers; 4 copies only the files that are imported here.
from .configuration_omnifusion import SPECIAL_TOKENS  # isort: skip

import numpy as np
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils.chat_template_utils import render_jinja_template

from .image_processing_omnifusion import flat, images_per_prompt
from .views_omnifusion import regions_per_image, views_per_image


# A private-use character that hides a special token in which it is from the tokenizer, whose normalizer removes it.
ESCAPE = "\ue0f5"
ROLE_NAMES = ("system", "user", "assistant")
ROLES = "Roles are user, assistant and (first only) system."
CONTENT = (
    "Messages hold text, those of the user also images: `content` is a string or a list of "
    '{"type": "text", "text": …} and {"type": "image", …}.'
)
NO_TOOLS = "The chat format has no place for tools and documents; write them into the text of a message."
# Fields whose content would be lost if they are not read; other strings and numbers, such as a `name`, are ignored.
CARRIERS = set("content value text image images image_url audio video tool_calls function_call".split())


def special_tokens(tokenizer) -> list[str]:
    """The tokens that text must not become: the LLM's special tokens and ours, longest first."""
    own = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    tokens = dict.fromkeys([*SPECIAL_TOKENS.values(), *tokenizer.all_special_tokens, *own])
    return sorted(tokens, key=len, reverse=True)


def escape(text: str, tokens: list[str]) -> str:
    """`text` with ESCAPE in and around `tokens` (longest first), so that a tokenizer prepared by `add_special_tokens`
    reads the same characters but none of these tokens. The macro `typed` of the chat templates does the same."""
    escaped, reach = text, len(tokens[0]) - 1
    for token in tokens:  # after the second character too: "##" overlaps itself in "###"
        escaped = escaped.replace(token, token[0] + ESCAPE + token[1:] + ESCAPE)
    before = any(token[-1] in text[:reach] for token in tokens)
    after = any(token[0] in text[-reach:] for token in tokens)
    return before * ESCAPE + escaped + after * ESCAPE


def messages_as_data(conversation: list, tokens: list[str], place: str = "") -> list:
    """A conversation, or a list of them, in which no text can become one of `tokens`, however it was cut into parts.
    Raises `ValueError` that names the message which holds more than text and, from the user, images."""
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise ValueError(f"{place}A conversation is a list of messages, got {conversation!r:.80}.")
    if isinstance(conversation[0], (list, tuple)):
        return [messages_as_data(each, tokens, f"conversation {i}, ") for i, each in enumerate(conversation)]
    return [_message_as_data(message, f"{place}message {i}", tokens) for i, message in enumerate(conversation)]


def _as_dict(given):
    """A message or part as a dict; clients of servers pass objects with these attributes."""
    is_object = not isinstance(given, Mapping) and hasattr(given, "__dict__")
    return {name: value for name, value in vars(given).items() if value is not None} if is_object else given


def _message_as_data(message: dict, place: str, tokens: list[str]) -> dict:
    message = _as_dict(message)
    if not isinstance(message, Mapping) or message.get("role") not in ROLE_NAMES:
        raise ValueError(f"{place} is {message!r:.80}. It must be a dict with a role. {ROLES}")
    place, content = f"{place} ({message['role']})", message.get("content")
    if not isinstance(content, (str, list, tuple)) or content in ([], ()):
        raise ValueError(f"{place} has the content {content!r:.80}. {CONTENT}")
    _check_nothing_lost(message, ("role", "content"), place)
    if not isinstance(content, str):
        content = _parts_as_data(content, place, message["role"] == "user", tokens)
    texts = {name: escape(value, tokens) for name, value in message.items() if isinstance(value, str)}
    return {**message, "content": content, **texts, "role": message["role"]}


def _parts_as_data(content: list, place: str, may_hold_images: bool, tokens: list[str]) -> list[dict]:
    """A message's parts; adjacent texts are joined, so that a token cut in two is seen."""
    parts = []
    for part in map(_as_dict, content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            _check_nothing_lost(part, ("type", "text"), place)
            text = parts.pop()["text"] if parts and parts[-1]["type"] == "text" else ""
            parts.append({"type": "text", "text": text + part["text"]})
        elif kind in ("image", "image_url") and may_hold_images:
            _check_nothing_lost(part, ("type", "image", "image_url", "url", "path", "base64"), place)
            parts.append({name: value for name, value in part.items() if value is not None})
        else:
            only = "Only user messages hold images. " if kind == "image" else ""
            raise ValueError(f"{place} has the part {part!r:.80}. {only}{CONTENT}")
    return [part | {"text": escape(part["text"], tokens)} if part["type"] == "text" else part for part in parts]


def _check_nothing_lost(given: Mapping, read: tuple[str, ...], place: str):
    for name, value in given.items():
        empty = value is None or isinstance(value, (str, list, tuple, dict)) and not value
        harmless = isinstance(value, (str, int, float)) and name not in CARRIERS
        if name not in read and not empty and not harmless:
            raise ValueError(f"{place}: `{name}` would be lost. {CONTENT}")


@dataclass(frozen=True)
class TokenCount:
    """The tokens of images in an LLM's context."""

    views: list[int]  # V of each image, which is also its encoder passes
    image_seq_length: int  # P, visual tokens per view
    context_length: int | None = None  # the LLM's context in tokens, if known

    @property
    def image_tokens(self) -> list[int]:
        """`<image>` tokens of each image, V·P."""
        return [num_views * self.image_seq_length for num_views in self.views]

    @property
    def tokens(self) -> list[int]:
        """Tokens of each image in the prompt, with `<img_start>` and `<img_end>`."""
        return [num_tokens + 2 for num_tokens in self.image_tokens]

    @property
    def total(self) -> int:
        return sum(self.tokens)

    @property
    def share(self) -> float | None:
        """The share of the context that the images take; above 1 they do not fit."""
        return None if self.context_length is None else self.total / self.context_length

    def __str__(self) -> str:
        lines = []
        for index, (count, tokens) in enumerate(zip(self.views, self.tokens)):
            views = f"{count} view{'' if count == 1 else 's'} x {self.image_seq_length}"
            lines.append(f"image {index}: {views} + 2 marks = {tokens} tokens")
        text = lines[0].partition(": ")[2] if len(lines) == 1 else "\n".join([*lines, f"total: {self.total} tokens"])
        return text if self.share is None else f"{text}, {self.share:.1%} of a context of {self.context_length}"


class OmniFusionProcessor(ProcessorMixin):  # trf-ignore: TRF057
    r"""Prepares prompts and images for [`OmniFusionForConditionalGeneration`].

    image_seq_length: P, the visual tokens of one view; `OmniFusionConfig.image_seq_length`.
    return_image_view_index: False omits `image_view_index` for trainers that pass on known keys only (TRL's GRPO).

    The images of a batch are nested (`[[a, b], [c]]`, one list per prompt, checked per prompt) or flat, in the order
    of the placeholders; `images=[]` means none. `regions=` are boxes that become views, nested or flat as the images
    are ([`OmniFusionImageProcessor`]); an image without regions has `[]`."""

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        image_seq_length=576,
        chat_template=None,
        return_image_view_index=True,
        **kwargs,
    ):
        self.image_seq_length = image_seq_length
        self.return_image_view_index = return_image_view_index
        for name, default in SPECIAL_TOKENS.items():
            token = getattr(tokenizer, name, None) or default
            token_id = tokenizer.convert_tokens_to_ids(token)
            if token_id is None or token_id == tokenizer.unk_token_id:
                raise ValueError(f"The tokenizer does not know `{token}`; use omnifusion_hf.add_special_tokens.")
            setattr(self, name, token)
            setattr(self, f"{name}_id", token_id)
        if tokenizer("a" + ESCAPE).input_ids != tokenizer("a").input_ids:
            raise ValueError(
                "The tokenizer does not remove the character U+E0F5, which keeps special tokens in a user's text as "
                "text; prepare it with omnifusion_hf.add_special_tokens(tokenizer)."
            )
        # Generation from right-padded prompts is wrong: a folder's setting is ignored, that of a call is not.
        tokenizer.padding_side = "left"
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        # save_pretrained sets it and from_pretrained drops it; set here, a loaded processor equals the saved one.
        self.auto_map = {"AutoProcessor": "processing_omnifusion.OmniFusionProcessor"}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "OmniFusionProcessor":
        """As transformers' own; pads batches on the left unless `padding_side` is passed here or in a call."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with return_unused_kwargs
        processor.tokenizer.padding_side = kwargs.get("padding_side", "left")
        return loaded

    @classmethod
    def from_vision_text_pretrained(
        cls, vision: list[str], text: str, chat_template="omnifusion", image_options: dict | None = None, **config
    ) -> "OmniFusionProcessor":
        """The processor of [`OmniFusionForConditionalGeneration.from_vision_text_pretrained`], with its arguments.

        chat_template: `"omnifusion"`, the format of the release, or `"own"`, that of a chat-tuned LLM.
        image_options: fields of [`OmniFusionImageProcessor`], such as `view_strategy` or `image_fit`."""
        build = import_module("omnifusion_hf.build.assemble")
        return build.assemble_processor(cls, vision, text, chat_template, image_options or {}, **config)

    def __call__(  # trf-ignore: TRF057
        self, images: ImageInput | None = None, text: str | list[str] | None = None, **kwargs: Unpack[ProcessingKwargs]
    ) -> BatchFeature:
        """`input_ids` and `attention_mask` (B, L), `pixel_values` (ΣV, 3, S, S), `image_view_index` (ΣV,). Raises
        `ValueError` if images, regions and placeholders do not match, or if truncation cuts into an image."""
        options = kwargs.get("images_kwargs", {}) | kwargs
        if isinstance(images, (list, tuple)) and not flat(images):
            images = None
        if images is not None:
            chosen = options.get("max_image_pixels"), options.get("input_data_format")
            images = self.image_processor.fetch_images(images, *chosen)
        elif options.get("regions") is not None:
            regions_per_image(options["regions"], [0])  # raises for boxes without images
        prompts = [text] if isinstance(text, str) else list(text or [])
        self._check_images_per_prompt(images, prompts)
        outputs = super().__call__(images=images, text=text, **kwargs)
        if images is not None:
            self._check_marks(prompts, outputs.get("input_ids", []))
        if not self.return_image_view_index:
            outputs.pop("image_view_index", None)
        return outputs

    def _check_images_per_prompt(self, images, prompts: list[str]):
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            return  # images alone, or text that transformers refuses
        found = [prompt.count(self.image_token) for prompt in prompts]
        counts = images_per_prompt(images)
        given = counts or [0 if images is None else len(flat(images))]
        if given != (found if counts else [sum(found)]):
            differ = [i for i, (count, placeholders) in enumerate(zip_longest(given, found)) if count != placeholders]
            raise ValueError(
                (f"Sample {differ[0]}: " if counts else "")
                + f"the prompts hold {found} `{self.image_token}` placeholders, but {given} images were given. The "
                "number of image tokens in the prompts should be the same as the number of images: pass one list of "
                "images per prompt, in the order of its placeholders."
            )

    def _check_marks(self, prompts: list[str], input_ids):
        """transformers counts `<image>` tokens after truncation; this counts the marks around them."""
        marks = {self.image_start_token: self.image_start_token_id, self.image_end_token: self.image_end_token_id}
        for prompt, ids in zip(prompts, input_ids):
            for mark, token_id in marks.items():
                if np.sum(np.asarray(ids) == token_id) < prompt.count(mark) + prompt.count(self.image_token):
                    raise ValueError(
                        f"Mismatch in `{mark}`: truncation cut the tokens of an image; raise max_length, or pass "
                        "fewer or smaller images."
                    )

    def apply_chat_template(  # trf-ignore: TRF057
        self, conversation, chat_template=None, *, return_assistant_tokens_mask: bool = False, **kwargs
    ):
        """As transformers' own, for any template. Text is data ([`messages_as_data`]); tools raise `ValueError`.
        `assistant_masks` (B, L) are made here: before 5.18, transformers' own take an image for one token."""
        if kwargs.get("tools") or kwargs.get("documents"):
            raise ValueError(NO_TOOLS)
        conversation = messages_as_data(conversation, special_tokens(self.tokenizer))
        outputs = super().apply_chat_template(conversation, chat_template, **kwargs)
        if return_assistant_tokens_mask:
            outputs["assistant_masks"] = self._assistant_masks(conversation, chat_template, outputs, **kwargs)
            outputs.convert_to_tensors(kwargs.get("return_tensors"))
        return outputs

    def _assistant_masks(self, conversation, chat_template, outputs: BatchFeature, **kwargs) -> list[list[int]]:
        """(B, L), 1 for tokens that the template marks as an answer. Each token of the prompt before its images are
        expanded is a token of the expanded prompt; the others are padding, marks and further `<image>` tokens."""
        is_batch = isinstance(conversation[0], (list, tuple))
        texts, answers = render_jinja_template(  # the tokenizer's mask misses escaped starts before 5.24
            conversation if is_batch else [conversation],
            chat_template=chat_template or self.chat_template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map | kwargs,
        )
        places = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        masks = []
        for row, spans, ids, attended in zip(places, answers, outputs["input_ids"], outputs["attention_mask"]):
            ids = np.where(attended, ids, self.image_end_token_id)
            is_image = ids == self.image_token_id
            is_mark = np.isin(ids, (self.image_start_token_id, self.image_end_token_id))
            unexpanded = ~is_mark & ~(is_image & np.roll(is_image, 1))
            is_answer = [any(start < last and first < end for first, last in spans) for start, end in row]
            mask = np.zeros_like(ids)
            mask[unexpanded] = is_answer[: unexpanded.sum()]
            masks.append(mask.tolist())
        return masks

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The text of one image: V·P placeholders between the marks."""
        count = TokenCount(views_per_image(image_inputs["image_view_index"]), self.image_seq_length)
        return self.image_start_token + self.image_token * count.image_tokens[image_idx] + self.image_end_token

    def count_tokens(self, image_sizes, context_length: int | None = None, **image_options) -> TokenCount:
        """The tokens of images, from (height, width) of one, or a list with that of each. Nothing else counts them.

        context_length: the LLM's context, `model.config.text_config.max_position_embeddings`.
        image_options: as in a call, such as `view_strategy="grid"` or `regions`, flat, one list per image."""
        sizes = np.atleast_2d(image_sizes).tolist() if len(image_sizes) else []
        if not all(np.shape(size) == (2,) for size in sizes):
            raise ValueError(f"image_sizes are (height, width) of each image, got {image_sizes}.")
        image_options = image_options | image_options.pop("images_kwargs", {})
        known = self.image_processor.valid_kwargs.__annotations__  # engines pass options of other parts too
        image_options = {name: value for name, value in image_options.items() if name in known}
        views = self.image_processor.plan_views(sizes, **image_options)
        return TokenCount([len(boxes) for boxes in views], self.image_seq_length, context_length)

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs) -> MultiModalData:
        """[`count_tokens`] in transformers' form; serving engines plan memory with it."""
        if image_sizes is None:
            return MultiModalData()
        count = self.count_tokens(image_sizes, **kwargs)
        return MultiModalData(num_image_tokens=count.image_tokens, num_image_patches=count.views)


__all__ = ["OmniFusionProcessor"]
