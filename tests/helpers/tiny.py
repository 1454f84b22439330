"""Tiny random parts from which the tests build models: encoders of every family, LLMs, a tokenizer; seeded."""

import inspect

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from omnifusion_hf import (
    OmniFusionConfig,
    OmniFusionForConditionalGeneration,
    OmniFusionImageProcessor,
    OmniFusionProcessor,
    add_special_tokens,
)
from omnifusion_hf.build.chat_template import chat_template_for


VIT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "patch_size": 8}


FAMILIES = ("clip", "siglip", "dinov2", "internvl", "swin")  # those with a fast path


def encoder_config(family: str, image_size: int = 32):
    """A vision configuration of about 30 thousand parameters; 16 patches (Swin: 16) at 32 px."""
    if family == "dinov2":
        vit = {key: value for key, value in VIT.items() if key != "intermediate_size"}
        return transformers.Dinov2Config(**vit, mlp_ratio=2, image_size=image_size)
    if family == "swin":
        sizes = {"patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
        return transformers.DonutSwinConfig(image_size=image_size, **sizes)
    name = {"clip": "CLIP", "siglip": "Siglip", "internvl": "InternVL"}[family]
    return getattr(transformers, f"{name}VisionConfig")(**VIT, image_size=image_size)


def text_config(family: str = "mistral", **changes):
    """An LLM of two layers whose vocabulary has room for the special tokens."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    cls = {"mistral": transformers.MistralConfig, "llama": transformers.LlamaConfig}[family]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return cls(**sizes, num_key_value_heads=2, max_position_embeddings=512, **{"vocab_size": 512, **ids, **changes})


def llm_tokenizer(add_bos: bool = False) -> transformers.PreTrainedTokenizerFast:
    """A byte-fallback BPE tokenizer of the Llama kind with 400 tokens, as an LLM would bring it."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(steps)
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    text = ["This is a dialog with AI assistant. What colour is the sky? The sky is blue and the grass is green."] * 3
    more = "Describe the picture: a red square above two small circles, one left of the other. Привет, как дела?"
    text += [more] * 3  # ids in the tests follow from every word
    raw.train_from_iterator(text, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False))
    if add_bos:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **names)


def config(encoders=("clip",), text="mistral", image_sizes=None, encoder_sizes=None, **changes) -> OmniFusionConfig:
    """A whole configuration; `encoder_sizes` are the encoders' own sizes, `image_sizes` those they are run at."""
    encoder_sizes = encoder_sizes or [32] * len(encoders)
    vision = {"encoder_configs": [encoder_config(*pair) for pair in zip(encoders, encoder_sizes)]}
    tokenizer = tokenizer_with_special_tokens()
    ids = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in tokenizer.init_kwargs["extra_special_tokens"]}
    text = text_config(text) if isinstance(text, str) else text
    return OmniFusionConfig(vision_config=vision | {"image_sizes": image_sizes}, text_config=text, **ids, **changes)


def tokenizer_with_special_tokens(add_bos: bool = False) -> transformers.PreTrainedTokenizerFast:
    return add_special_tokens(llm_tokenizer(add_bos))


def processor(model_config: OmniFusionConfig, **image_options) -> OmniFusionProcessor:
    side = model_config.vision_config.image_size
    image_processor = OmniFusionImageProcessor(size={"height": side, "width": side}, **image_options)
    tokenizer, template = tokenizer_with_special_tokens(), chat_template_for(llm_tokenizer())
    return OmniFusionProcessor(image_processor, tokenizer, model_config.image_seq_length, chat_template=template)


def model(model_config: OmniFusionConfig | None = None, seed: int = 0) -> OmniFusionForConditionalGeneration:
    torch.manual_seed(seed)
    return OmniFusionForConditionalGeneration(model_config or config()).eval()


def image(seed: int = 0, size: tuple[int, int] = (40, 60)) -> Image.Image:
    """A smooth random RGB image, `size` = (height, width)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


def user(*content) -> dict:
    """A user message of images (PIL images) and texts."""
    parts = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "image": c} for c in content]
    return {"role": "user", "content": parts}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def prompt(model_processor, *conversations, processor_kwargs: dict | None = None, **options):
    """Model inputs for a batch of conversations that end with a question."""
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"} | options
    given = {"padding": True} | (processor_kwargs or {})
    return model_processor.apply_chat_template(list(conversations), processor_kwargs=given, **options)


def answers(model, inputs, new_tokens: int = 6, **options) -> torch.Tensor:
    """The ids that a model adds to a prompt, by default greedily."""
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False} | options
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]


def cached(cache) -> dict:
    """A kept cache as the argument of `generate()` or `forward`, which transformers 5.24 renamed."""
    names = inspect.signature(transformers.GenerationMixin.prepare_inputs_for_generation).parameters
    return {"cache" if "cache" in names else "past_key_values": cache}


def checkpoint_activations(model, options: dict | None = None):
    """Activation checkpointing by the method's name in this version of transformers."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(options)


def cache_of(outputs):
    """The kept cache that `generate()` or `forward` gave back, by its name in this version of transformers."""
    return outputs.cache if hasattr(outputs, "cache") else outputs.past_key_values
