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
"""A right fast tokenizer from a Llama-style SentencePiece model.

transformers' own loading of such folders mis-encodes leading spaces and text after special tokens; this builds the
pipeline from the SentencePiece model itself, and a test compares thousands of strings.
"""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges


PROBES = ["What is the sky color?", "Какого цвета небо?", "  two  spaces", "a\nb\n", "x\t∑🙂", "123,456.78"]


def fast_tokenizer(model_file: str | Path, add_bos: bool = False) -> PreTrainedTokenizerFast:
    """BPE with byte fallback and "▁" in front of every piece of text between special tokens; adds no EOS.

    Raises `ValueError` for a SentencePiece model of another kind, `ImportError` without the package sentencepiece.
    """
    try:  # remote code is refused where a package that it imports elsewhere is not installed
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise ImportError(f"{model_file} is read with sentencepiece: pip install sentencepiece") from None
    reference = SentencePieceProcessor(model_file=str(model_file))
    pieces = [reference.id_to_piece(index) for index in range(reference.get_piece_size())]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    # in the order in which SentencePiece joins them
    merges = generate_merges(vocabulary, {piece: reference.get_score(index) for piece, index in vocabulary.items()})
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special.values()])
    for text in PROBES:
        ids, expected = backend.encode(text).ids, reference.encode(text)
        if ids != expected:
            raise ValueError(
                f"{model_file} is no Llama-style BPE with byte fallback: {text!r} gives {expected} there, {ids} here."
            )
    if add_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)
