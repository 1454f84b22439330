"""The converted tokenizer equals the SentencePiece model it was made from."""

import json
import random
from pathlib import Path

import pytest
from release import write_tokenizer
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import normalizers
from transformers import AutoTokenizer

from omnifusion_hf import add_special_tokens
from omnifusion_hf.build.chat_template import adds_bos
from omnifusion_hf.build.tokenization import fast_tokenizer, load_tokenizer


RELEASE = Path(__file__).parents[3] / "shared/airi/release_files/tokenizer/tokenizer.model"
CHARACTERS = "abcdefghijklmnop ABC  \n\n\tпривет мир как дела небо.,!?:()[]{}0123456789éüñ中文字🙂🚀'\"-_/\\<>"
PIECES = [*"What is the sky color ? Какого цвета небо <s unk> \\frac{a}".split(), " ", "  ", "\n"]


def strings(count: int) -> list[str]:
    """Half random characters, half random words; English, Russian, leading spaces, newlines, emoji."""
    rng = random.Random(0)
    half = ["".join(rng.choices(CHARACTERS, k=rng.randint(0, 40))) for _ in range(count // 2)]
    return half + [" ".join(rng.choices(PIECES, k=rng.randint(1, 12))) for _ in range(count // 2)]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    write_tokenizer(folder)
    return folder / "tokenizer.model"


def both(model_file: Path):
    return fast_tokenizer(model_file), SentencePieceProcessor(model_file=str(model_file))


def different(tokenizer, reference, texts: list[str]) -> list[str]:
    return [text for text in texts if tokenizer.encode(text, add_special_tokens=False) != reference.encode(text)]


@pytest.mark.parametrize("name", ["tiny", "release"])
def test_ids_and_decoded_text_are_those_of_sentencepiece(name, tiny_model):
    if name == "release" and not RELEASE.is_file():
        pytest.skip("../shared/airi is absent: the release's own tokenizer is not tried")
    tokenizer, reference = both({"tiny": tiny_model, "release": RELEASE}[name])
    assert different(tokenizer, reference, strings(3000)) == []
    for text in ("What is the sky color?", "Небо синее.", "two\nlines 🙂"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")  # control: without the leading space
    assert len(different(tokenizer, reference, strings(100))) > 50


@pytest.mark.skipif(not RELEASE.is_file(), reason="../shared/airi is absent: no folder of Mistral's kind to load")
def test_tokenizer_of_an_llm_folder_is_loaded_as_it_is():
    """AutoTokenizer would pick a class that rebuilds Mistral's pipeline wrongly."""
    reference = SentencePieceProcessor(model_file=str(RELEASE))
    texts = strings(200)
    assert different(load_tokenizer(RELEASE.parent), reference, texts) == []
    assert different(AutoTokenizer.from_pretrained(RELEASE.parent), reference, texts)  # control


@pytest.mark.parametrize("add_bos", [True, False, None])
def test_an_llm_folder_without_a_tokenizer_json_is_loaded_as_its_sentencepiece_model(add_bos, tiny_model, tmp_path):
    """Vicuna's is such a folder; the Llama convention is a BOS where nothing is said."""
    (tmp_path / "tokenizer.model").write_bytes(tiny_model.read_bytes())
    settings = {"chat_template": "{{ messages }}"} | ({} if add_bos is None else {"add_bos_token": add_bos})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    assert different(tokenizer, SentencePieceProcessor(model_file=str(tiny_model)), strings(200)) == []
    assert adds_bos(tokenizer) == (add_bos is not False) and tokenizer.chat_template == "{{ messages }}"


def test_text_after_a_special_token_is_tokenised_by_itself(tiny_model):
    tokenizer, reference = both(tiny_model)
    tokenizer = add_special_tokens(tokenizer)
    ids = tokenizer.encode("<user>What is it?<bot>  two\nlines", add_special_tokens=False)
    question, answer = reference.encode("What is it?"), reference.encode("  two\nlines")
    assert ids == [tokenizer.user_token_id, *question, tokenizer.bot_token_id, *answer]


def test_another_kind_of_model_and_tokens_beside_it_are_refused(tiny_model, tmp_path):
    (tmp_path / "corpus.txt").write_text("What is the sky color? The sky is blue.\n" * 50)
    options = {"input": str(tmp_path / "corpus.txt"), "vocab_size": 22, "model_type": "unigram"}
    SentencePieceTrainer.train(**options, model_prefix=str(tmp_path / "m"))
    with pytest.raises(ValueError, match="not a Llama-style BPE"):
        fast_tokenizer(tmp_path / "m.model")
    (tmp_path / "tokenizer.model").write_bytes(tiny_model.read_bytes())
    added = {str(index): {"content": f"<{index}>"} for index in range(5)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(ValueError, match="adds tokens to its SentencePiece model"):
        load_tokenizer(tmp_path)
