# Copyright 2026 The omnifusion_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokenizers for OmniFusion: an LLM's own, exactly, and with OmniFusion's special tokens."""

import json
from pathlib import Path

from huggingface_hub import hf_hub_download
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..model.configuration_omnifusion import SPECIAL_TOKENS
from ..model.processing_omnifusion import ESCAPE, escape, special_tokens
from .gguf import load_gguf_tokenizer


PROBES = ["What is the sky color?", "Какого цвета небо?", "  two  spaces", "a\nb\n", "x\t∑🙂", "123,456.78"]


def find_file(source: str | Path, name: str) -> Path | None:
    """A file of a folder or Hub repository; None if it is missing or cannot be reached."""
    if Path(source).is_dir():
        return Path(source) / name if (Path(source) / name).is_file() else None
    try:
        return Path(hf_hub_download(str(source), name))
    except (OSError, ValueError):
        return None


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerFast:
    """An LLM's tokenizer exactly as its tokenizer.json or its SentencePiece model says.

    AutoTokenizer is the last resort: its classes rebuild the pipeline and mis-encode leading spaces and text after
    special tokens for Mistral v0.1, Vicuna and similar LLMs. Raises `ValueError` if there is no tokenizer.
    """
    if Path(name).suffix == ".gguf":
        return load_gguf_tokenizer(name, find_file(Path(name).parent, Path(name).name))
    if find_file(name, "tokenizer.json"):
        return PreTrainedTokenizerFast.from_pretrained(name)
    pieces, settings = find_file(name, "tokenizer.model"), find_file(name, "tokenizer_config.json")
    if pieces is None:
        try:
            return AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(f"{name} has no tokenizer that loads; give the folder or Hub id of an LLM.") from error
    settings = json.loads(settings.read_text(encoding="utf-8")) if settings else {}
    tokenizer = fast_tokenizer(pieces, add_bos=settings.get("add_bos_token", True))
    tokenizer.chat_template = settings.get("chat_template")
    if len(settings.get("added_tokens_decoder", {})) > len(tokenizer.added_tokens_decoder):
        raise ValueError(f"{name} adds tokens to its SentencePiece model; write its tokenizer.json once and check it.")
    return tokenizer


def merges_of(reference: SentencePieceProcessor, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The BPE merges of a SentencePiece model in the order in which it joins pieces: best score, longest left part."""
    merges = [
        (reference.get_score(index), cut, (piece[:cut], piece[cut:]))
        for piece, index in vocabulary.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    return [
        pair for _, _, pair in sorted(merges, key=lambda merge: (merge[0], merge[1], len(merge[2][1])), reverse=True)
    ]


def fast_tokenizer(model_file: str | Path, add_bos: bool = False) -> PreTrainedTokenizerFast:
    """A fast tokenizer from a Llama-style SentencePiece model: BPE with byte fallback, "▁" before every piece of text
    between special tokens, no EOS. (transformers' own loading mis-encodes leading spaces and text after such tokens.)
    Raises `ValueError` for a SentencePiece model of another kind.
    """
    reference = SentencePieceProcessor(model_file=str(model_file))
    pieces = [reference.id_to_piece(index) for index in range(reference.get_piece_size())]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(
        models.BPE(vocabulary, merges_of(reference, vocabulary), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special.values()])
    for text in PROBES:
        ids, expected = backend.encode(text).ids, reference.encode(text)
        if ids != expected:
            raise ValueError(
                f"{model_file} is not a Llama-style BPE with byte fallback: {text!r} gives {expected}, here {ids}."
            )
    if add_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def add_special_tokens(tokenizer) -> PreTrainedTokenizerFast:
    """The LLM's tokenizer with OmniFusion's special tokens, as a plain fast tokenizer (all of it in tokenizer.json).

    It adds no BOS or EOS (the chat template does) and pads on the left, as generation needs; without a padding token
    EOS pads. Special tokens are matched in the text before normalization, because ESCAPE is gone after it.

    Raises `ValueError` for a tokenizer without a fast backend, without an EOS (the end of answers), or whose model has
    a special token as a piece, so that no text could hold its characters.
    """
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
    unescape = normalizers.Replace(ESCAPE, "")
    backend.normalizer = normalizers.Sequence([unescape, *([backend.normalizer] if backend.normalizer else [])])
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
        # all of its characters: a byte token such as "<0x30>" may be special and mean a typed "0"
        whole = [token_id for token_id, (start, end) in zip(ids, places) if end - start >= len(token)]
        found += [token] if tokenizer.convert_tokens_to_ids(token) in whole else []
    if found:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path} makes special tokens of a user's text: {found[:3]}. They are "
            "single characters or pieces of its model; use an LLM with another tokenizer."
        )
