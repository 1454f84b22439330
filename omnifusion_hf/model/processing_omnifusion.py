# Copyright 2026 The omnifusion_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Text and images to model inputs: special tokens, the chat format, and the one place that counts image tokens.

Every `<image>` in a prompt becomes `<img_start>` + V·P x `<image>` + `<img_end>`, V views of P visual tokens each.
"""

import json
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, Unpack
from transformers.tokenization_utils_base import PreTokenizedInput, TextInput
from transformers.utils import cached_file
from transformers.utils.chat_template_utils import render_jinja_template

from .chat_template_omnifusion import ESCAPE, NO_TOOLS, chat_template_for, escape, messages_as_data, special_tokens
from .configuration_omnifusion import SPECIAL_TOKENS, OmniFusionConfig
from .encoders_omnifusion import ENCODER_FAMILIES  # noqa: F401 (so that transformers 4 copies it, and is refused)
from .image_processing_omnifusion import OmniFusionImageProcessor
from .sentencepiece_omnifusion import fast_tokenizer
from .views_omnifusion import flat, images_per_prompt, regions_per_image, views_per_image


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """An LLM's tokenizer exactly as its tokenizer.json says, or as its SentencePiece model does.

    The class that AutoTokenizer picks by name rebuilds the pipeline and mis-encodes leading spaces and text after
    special tokens for Mistral v0.1, Vicuna and their kin; it is the last resort.
    """
    files = [
        cached_file(
            name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        for file in ("tokenizer.json", "tokenizer.model")
    ]
    if files[0] is not None:
        return PreTrainedTokenizerFast.from_pretrained(name)
    if files[1] is None:
        try:
            return AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(f"{name} has no tokenizer that loads; give the folder or Hub id of an LLM.") from error
    settings = get_tokenizer_config(name)
    tokenizer = fast_tokenizer(files[1], add_bos=settings.get("add_bos_token", True))
    tokenizer.chat_template = settings.get("chat_template")
    if len(settings.get("added_tokens_decoder", {})) > len(tokenizer.added_tokens_decoder):
        raise ValueError(f"{name} adds tokens to its SentencePiece model; write its tokenizer.json once and check it.")
    return tokenizer


def add_special_tokens(tokenizer) -> PreTrainedTokenizerFast:
    """The LLM's tokenizer with OmniFusion's special tokens, as a plain fast tokenizer (tokenizer.json says all).

    It adds no BOS or EOS by itself (the chat template does) and pads on the left, as generation needs. Without a
    padding token EOS pads: the attention mask, not the id, tells padding apart. Special tokens are looked for in the
    text as it stands: after normalization, where some LLMs look for theirs, those in a user's text are not escaped.

    Raises `ValueError` for a tokenizer without a fast backend, without an EOS, by which answers end, or whose model
    has a special token as a piece, so that no text could hold its characters.
    """
    from tokenizers import Tokenizer, normalizers, processors

    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has no fast backend; give a folder with a tokenizer.json (save the tokenizer "
            "with transformers once to make it)."
        )
    if tokenizer.eos_token is None:
        raise ValueError(f"The tokenizer of {tokenizer.name_or_path} has no EOS token; set its eos_token and save it.")
    special, pipeline = special_tokens(tokenizer), json.loads(tokenizer.backend_tokenizer.to_str())
    for token in pipeline["added_tokens"]:
        token["normalized"] = token["normalized"] and token["content"] not in special
    backend = Tokenizer.from_str(json.dumps(pipeline))
    backend.post_processor = processors.Sequence([])
    escape = normalizers.Replace(ESCAPE, "")
    backend.normalizer = normalizers.Sequence([escape, *([backend.normalizer] if backend.normalizer else [])])
    named = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    named.setdefault("pad_token", named.get("eos_token"))
    prepared = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens=dict(SPECIAL_TOKENS),
        **named,
    )
    _check_text_is_text(prepared)
    return prepared


def _check_text_is_text(tokenizer: PreTrainedTokenizerFast):
    tokens = [token for token in special_tokens(tokenizer) if token != tokenizer.unk_token]
    typed = tokenizer([f"a {escape(token, tokens)} b" for token in tokens], return_offsets_mapping=True)
    found = []
    for token, ids, places in zip(tokens, typed.input_ids, typed.offset_mapping):
        # all of its characters: a byte token, "<0x30>" say, may be special and stand for a typed "0"
        whole = [token_id for token_id, (start, end) in zip(ids, places) if end - start >= len(token)]
        found += [token] if tokenizer.convert_tokens_to_ids(token) in whole else []
    if found:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path} makes special tokens of text that somebody types: {found[:3]}."
            " They are single characters or pieces of its model; use an LLM with another tokenizer."
        )


# Arguments of `apply_chat_template` that say how a rendered prompt becomes model inputs.
NOT_FOR_THE_TEMPLATE = {
    "tokenize", "return_dict", "return_tensors", "processor_kwargs", "padding", "truncation", "max_length",
    "load_audio_from_video",
}  # fmt: skip


@dataclass(frozen=True)
class TokenCount:
    """What images cost in an LLM's context.

    views: V of each image, the encoder passes it takes.
    image_seq_length: P, visual tokens per view.
    context_length: the tokens that the LLM has room for, if known.

    >>> print(TokenCount([5], 576, context_length=4096))
    5 views x 576 + 2 marks = 2882 tokens, 70.4% of a context of 4096
    >>> print(TokenCount([5, 1], 576))
    image 0: 5 views x 576 + 2 marks = 2882 tokens
    image 1: 1 view x 576 + 2 marks = 578 tokens
    total: 3460 tokens
    """

    views: list[int]
    image_seq_length: int
    context_length: int | None = None

    @property
    def image_tokens(self) -> list[int]:
        """`<image>` tokens of each image, V·P: those that features go into."""
        return [num_views * self.image_seq_length for num_views in self.views]

    @property
    def tokens(self) -> list[int]:
        """Tokens of each image in the prompt, the marks around it included."""
        return [num_tokens + 2 for num_tokens in self.image_tokens]

    @property
    def total(self) -> int:
        return sum(self.tokens)

    @property
    def share(self) -> float | None:
        """The part of the context that the images take; above 1 they do not fit."""
        return None if self.context_length is None else self.total / self.context_length

    def __str__(self) -> str:
        lines = [
            f"{count} {'view' if count == 1 else 'views'} x {self.image_seq_length} + 2 marks = {tokens} tokens"
            for count, tokens in zip(self.views, self.tokens)
        ]
        if len(lines) != 1:
            lines = [f"image {index}: {line}" for index, line in enumerate(lines)]
            lines.append(f"total: {self.total} tokens")
        share = "" if self.share is None else f", {self.share:.1%} of a context of {self.context_length}"
        return "\n".join(lines) + share


class OmniFusionProcessor(ProcessorMixin):  # trf-ignore: TRF057
    r"""
    Prepares prompts and images for [`OmniFusionForConditionalGeneration`].

    image_seq_length (`int`):
        P, the visual tokens of one view; `OmniFusionConfig.image_seq_length`.
    return_image_view_index (`bool`):
        False leaves `image_view_index` out, which the model does not need, for trainers that hand on the keys they
        know alone (TRL's GRPO).

    Images go to a batch of prompts nested (`[[a, b], [c]]`, one list per prompt, checked per prompt) or flat (in the
    order of the placeholders). `images=[]` means none. `regions=` are boxes in them that become views of their own,
    nested or flat as the images are ([`OmniFusionImageProcessor`]); an image without regions has `[]`.
    """

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
                raise ValueError(
                    f"The tokenizer does not know `{token}`; prepare it with "
                    "omnifusion_hf.add_special_tokens(tokenizer) or OmniFusionProcessor.from_vision_text_pretrained."
                )
            setattr(self, name, token)
            setattr(self, f"{name}_id", token_id)
        if tokenizer("a" + ESCAPE).input_ids != tokenizer("a").input_ids:
            raise ValueError(
                "The tokenizer reads the character U+E0F5, by which special tokens that a user types are kept text; "
                "prepare it with omnifusion_hf.add_special_tokens(tokenizer)."
            )
        # On the right, generation answers short prompts wrongly: it is taken from a call, not from a folder.
        tokenizer.padding_side = "left"
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        # Saving sets it and loading drops it; set here, a loaded processor equals the saved one.
        self.auto_map = {"AutoProcessor": "processing_omnifusion.OmniFusionProcessor"}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "OmniFusionProcessor":
        """As transformers' own. Batches are padded on the left, whatever the folder says, unless `padding_side` is
        given here or in a call."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor = loaded[0] if isinstance(loaded, tuple) else loaded  # with unused arguments, if these are asked for
        processor.tokenizer.padding_side = kwargs.get("padding_side", "left")
        return loaded

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: list[str],
        text: str,
        chat_template: str = "release",
        image_options: dict | None = None,
        **config,
    ) -> "OmniFusionProcessor":
        """The processor for a model assembled from pretrained parts; twin of the model's method of the same name.

        Args:
            vision: names or folders of the vision encoders; the first one's image processor gives normalisation.
            text: name or folder of the LLM, whose tokenizer is used.
            chat_template: `"release"`, the release's format, or `"own"`, that of a chat-tuned LLM.
            image_options: fields of [`OmniFusionImageProcessor`] to set, such as `view_strategy` or `image_fit`.
            config: fields of [`OmniFusionConfig`], the same as given to the model.
        """
        tokenizer = load_tokenizer(text)
        template = chat_template_for(tokenizer, chat_template)
        tokenizer = add_special_tokens(tokenizer)
        model_config = OmniFusionConfig.from_vision_text_pretrained(vision, text, tokenizer=tokenizer, **config)
        vision_config = model_config.vision_config
        image_processor = OmniFusionImageProcessor(
            size={"height": vision_config.image_size, "width": vision_config.image_size},
            **vision_config.image_normalizations[0] | (image_options or {}),
        )
        return cls(image_processor, tokenizer, model_config.image_seq_length, chat_template=template)

    def __call__(  # trf-ignore: TRF057
        self,
        images: ImageInput | None = None,
        text: TextInput | PreTokenizedInput | list[TextInput] | list[PreTokenizedInput] | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        if isinstance(images, (list, tuple)) and not flat(images):
            images = None
        outputs = super().__call__(images=images, text=text, **kwargs)
        if not self.return_image_view_index:
            outputs.pop("image_view_index", None)
        return outputs

    def apply_chat_template(  # trf-ignore: TRF057
        self, conversation, chat_template=None, *, return_assistant_tokens_mask: bool = False, **kwargs
    ):
        """As transformers' own, for any template; text is data (see `messages_as_data`) and tools are refused. It
        makes `assistant_masks` (B, L) itself: transformers before 5.18 places them as if an image took one token."""
        if kwargs.get("tools") or kwargs.get("documents"):
            raise ValueError(NO_TOOLS)
        conversation = messages_as_data(conversation, special_tokens(self.tokenizer))
        outputs = super().apply_chat_template(conversation, chat_template, **kwargs)
        if return_assistant_tokens_mask:
            outputs["assistant_masks"] = self._assistant_masks(conversation, chat_template, outputs, **kwargs)
            outputs.convert_to_tensors(kwargs.get("return_tensors"))
        return outputs

    def _assistant_masks(self, conversation, chat_template, outputs: BatchFeature, **kwargs) -> list[list[int]]:
        """1 where the template marks an answer, else 0: the mask of the prompts before their images are expanded, with
        every `<image>` continued to the tokens that it has become."""
        is_batch = isinstance(conversation[0], (list, tuple))
        template_options = {name: value for name, value in kwargs.items() if name not in NOT_FOR_THE_TEMPLATE}
        texts, answers = render_jinja_template(  # not the tokenizer's own mask: before 5.24 it misses escaped starts
            conversation if is_batch else [conversation],
            chat_template=chat_template or self.chat_template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map | template_options,
        )
        prompts = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        expanded, masks = outputs["input_ids"], []
        expanded = expanded.tolist() if hasattr(expanded, "tolist") else expanded
        for ids, places, marked, whole, attended in zip(
            prompts["input_ids"], prompts["offset_mapping"], answers, expanded, outputs["attention_mask"]
        ):
            starts = (place for place, token in enumerate(whole) if token == self.image_start_token_id)
            spans = (whole.index(self.image_end_token_id, start) - start + 1 for start in starts)
            lengths = [next(spans) if token == self.image_token_id else 1 for token in ids]
            learnt = [any(start < last and first < end for first, last in marked) for start, end in places]
            mask = iter([int(mark) for mark, length in zip(learnt, lengths) for _ in range(length)])
            masks.append([next(mask) if int(real) else 0 for real in attended])  # 0 where padded
        return masks

    def prepare_inputs_layout(self, images=None, text=None, **kwargs):
        if images is not None:
            options = [_image_option(kwargs, name) for name in ("max_image_pixels", "input_data_format")]
            images = self.image_processor.fetch_images(images, *options)
        return super().prepare_inputs_layout(images=images, text=text, **kwargs)

    def validate_inputs(self, images=None, text=None, **kwargs):
        if images is None and (regions := _image_option(kwargs, "regions")) is not None:
            regions_per_image(regions, [0])  # raises for boxes without images, which would be lost
        if text is not None:
            self._check_images_per_prompt(images, [text] if isinstance(text, str) else text)
        super().validate_inputs(images=images, text=text, **kwargs)

    def _check_images_per_prompt(self, images, text: list[str]):
        found = [prompt.count(self.image_token) for prompt in text]
        nested = isinstance(images, (list, tuple)) and any(isinstance(sample, (list, tuple)) for sample in images)
        given = images_per_prompt([] if images is None else images)
        if given != (found if nested else [sum(found)]):
            differ = [i for i, (count, placeholders) in enumerate(zip_longest(given, found)) if count != placeholders]
            raise ValueError(
                (f"Sample {differ[0]}: " if nested else "")
                + f"the prompts hold {found} `{self.image_token}` placeholders, but {given} images were given. The "
                "number of image tokens in the prompts should be the same as the number of images: pass one list of "
                "images per prompt, in the order of its placeholders."
            )

    def _check_special_mm_tokens(self, text, text_inputs, modalities):
        # Truncation must not cut the marks around an image either.
        super()._check_special_mm_tokens(text, text_inputs, [*modalities, "image_start", "image_end"])

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        num_views = views_per_image(image_inputs["image_view_index"])[image_idx]
        num_tokens = TokenCount([num_views], self.image_seq_length).image_tokens[0]
        return self.image_start_token + self.image_token * num_tokens + self.image_end_token

    def count_tokens(self, image_sizes, context_length: int | None = None, **image_options) -> TokenCount:
        """What images will cost, from their sizes alone; the one place that counts.

        Args:
            image_sizes: (height, width) of one image, or a list with that of each.
            context_length: the LLM's room, `model.config.text_config.max_position_embeddings`.
            image_options: as in a call, such as `regions=[[0, 0, 90, 90]]` or `view_strategy="grid"`; regions flat,
                one list per image.
        """
        sizes = np.atleast_2d(image_sizes).tolist() if len(image_sizes) else []
        if not all(np.shape(size) == (2,) for size in sizes):
            raise ValueError(f"image_sizes are (height, width) of each image, got {image_sizes}.")
        image_options = image_options | image_options.pop("images_kwargs", {})
        known = self.image_processor.valid_kwargs.__annotations__  # engines pass options of other parts as well
        image_options = {name: value for name, value in image_options.items() if name in known}
        views = self.image_processor.plan_views(sizes, **image_options)
        return TokenCount([len(boxes) for boxes in views], self.image_seq_length, context_length)

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs) -> MultiModalData:
        """Image tokens and views of images known by (height, width) alone; serving engines plan memory with it."""
        if image_sizes is None:
            return MultiModalData()
        count = self.count_tokens(image_sizes, **kwargs)
        return MultiModalData(num_image_tokens=count.image_tokens, num_image_patches=count.views)


def _image_option(kwargs: dict, name: str):
    """An option of a call, given by itself or inside `images_kwargs`."""
    return kwargs.get(name, kwargs.get("images_kwargs", {}).get(name))


__all__ = ["OmniFusionProcessor"]
