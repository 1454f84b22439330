"""A right fast tokenizer from a Llama-style SentencePiece model.

transformers' own loading of such folders mis-encodes leading spaces and text after special tokens; this builds the
pipeline from the SentencePiece model itself, and a test compares thousands of strings.
"""

from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges


PROBES = ["What is the sky color?", "Какого цвета небо?", "  two  spaces", "a\nb\n", "x\t∑🙂", "123,456.78"]


def fast_tokenizer(model_file: Path) -> PreTrainedTokenizerFast:
    """BPE with byte fallback and "▁" in front of every piece of text between special tokens; adds no BOS or EOS.

    Raises `ValueError` for a SentencePiece model of another kind.
    """
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
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)
