"""The encoder: labels hold the answers and nothing else; a broken sample is named, refused or skipped, never cut."""

import re

import conversations
import pytest
import tiny
from conversations import NONE, ONE, TWO
from PIL import Image
from tiny import user
from torch.utils.data import DataLoader
from transformers import processing_utils
from transformers.testing_utils import CaptureLogger

from omnifusion_hf import OmniFusionProcessor
from omnifusion_hf.build.chat_template import chat_template_for
from omnifusion_hf.training import preprocessing
from omnifusion_hf.training.conversations import BadSamples, BrokenSampleError
from omnifusion_hf.training.mixture import Mixture
from omnifusion_hf.training.preprocessing import ConversationEncoder, EncodedDataset, EncodedStream


PROCESSOR = tiny.processor(tiny.config())
ENCODE = ConversationEncoder(PROCESSOR)


def learnt(encoded: dict) -> str:
    return PROCESSOR.decode([token for token in encoded["labels"] if token != -100])


def test_labels_are_the_answers_with_their_eos():
    texts = [[text.strip() for text in learnt(ENCODE(each)).split("</s>")] for each in (NONE, ONE, TWO)]
    assert texts == [["Green.", ""], ["The sky is blue.", "Привет!", ""], ["Yes, it is.", ""]]
    assert learnt(ConversationEncoder(PROCESSOR, append_eos=False)(NONE)).strip() == "Green."
    encoded = ENCODE(ONE)
    assert {label - token for token, label in zip(encoded["input_ids"], encoded["labels"]) if label != -100} == {0}


def test_what_cannot_be_encoded_whole_is_refused_by_the_samples_name():
    length = len(ENCODE(ONE)["input_ids"])
    assert len(ConversationEncoder(PROCESSOR, max_length=length)(ONE)["input_ids"]) == length
    with pytest.raises(BrokenSampleError, match=f"sample of 4 turns: {length} tokens .* is {length - 1}"):
        ConversationEncoder(PROCESSOR, max_length=length - 1)(ONE)
    with pytest.raises(BrokenSampleError, match="sample of 1 turns: no token to learn"):
        ENCODE(conversations.item(user("Hello?")))
    with pytest.raises(BrokenSampleError, match="sample of 2 turns: .*regions"):
        ENCODE(TWO | {"regions": [[[0, 0, 2, 2]]]})


def test_a_template_that_does_not_mark_answers_is_refused():
    processor = tiny.processor(tiny.config())
    processor.chat_template = re.sub(r"\{%-? (end)?generation -?%\}", "", processor.chat_template)
    with pytest.raises(BrokenSampleError, match="sample of 4 turns: 2 answers, but the chat template marks 0"):
        ConversationEncoder(processor)(ONE)


def test_regions_become_views_of_their_own_image():
    width, height = tiny.image(1).size
    boxes = [[0, 0, width // 2, height // 2], [1, 1, width, height]]
    plain, regions = ENCODE(TWO), ENCODE(TWO | {"regions": [boxes, []]})
    assert plain["image_view_index"].tolist() == [0, 0] and plain["pixel_values"].shape == (2, 3, 32, 32)
    assert regions["image_view_index"].tolist() == [0, 1, 2, 0]
    assert regions["input_ids"].count(PROCESSOR.image_token_id) == 4 * PROCESSOR.image_seq_length
    assert learnt(regions) == learnt(plain)


def own_format() -> OmniFusionProcessor:
    """In the format of an LLM, which ends answers in its own way."""
    llm = tiny.llm_tokenizer()
    llm.chat_template = "{% for message in messages %}{{ message.role }}: {{ message.content }}</s>{% endfor %}"
    parts = PROCESSOR.image_processor, tiny.tokenizer_with_special_tokens(), 16
    return OmniFusionProcessor(*parts, chat_template=chat_template_for(llm, "own"))


def test_an_llms_own_template_is_not_told_about_eos_and_nobody_is_warned():
    """Before transformers 5.18 regions would be lost with it."""
    encode, boxes = ConversationEncoder(own_format()), [[[0, 0, 20, 20]], []]
    with CaptureLogger(processing_utils.logger) as log:
        encoded = encode(TWO | {"regions": boxes})
        assert log.io is not None and not log.io.getvalue()
        own_format().apply_chat_template([user("Hi")], tokenize=True, append_eos=True)  # control: it warns
        assert "processor_kwargs" in log.io.getvalue()
    assert encoded["image_view_index"].tolist() == [0, 1, 0] and learnt(encoded).endswith("Yes, it is.</s>")
    with pytest.raises(ValueError, match="append_eos=False .*ends answers in its own way"):
        ConversationEncoder(own_format(), append_eos=False)


@pytest.fixture
def half_broken(tmp_path):
    """Samples 1 and 2 of four: an image file that is cut off, and a dialogue far too long."""
    samples = [conversations.sample(index) for index in range(4)]
    samples[2]["conversations"][1]["value"] = "Because. " * 200
    path = conversations.write(tmp_path, samples)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    return conversations.load(path)


def encoded(dataset, policy: str) -> EncodedDataset:
    return EncodedDataset(dataset, ConversationEncoder(PROCESSOR, max_length=120), BadSamples(policy))


def test_broken_sample_is_an_error_by_default_and_data_of_nothing_else_always(half_broken):
    dataset = encoded(half_broken, "error")
    assert "sample 0 (id s0)" in dataset[0]["name"]
    for index, reason in ((1, r"cannot read .*1\.png"), (2, r"\d+ tokens with")):
        with pytest.raises(BrokenSampleError, match=rf"samples\.json, sample {index} \(id s{index}\).*{reason}"):
            dataset[index]
    with pytest.raises(ValueError, match="None of 4 samples"):
        EncodedDataset(half_broken, ConversationEncoder(PROCESSOR, max_length=3), BadSamples("skip"))[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_samples_give_their_place_to_the_next_good_one_and_are_counted(half_broken, workers, caplog):
    dataset = encoded(half_broken, "skip")
    names = [batch[0]["name"] for batch in DataLoader(dataset, collate_fn=list, num_workers=workers)]
    assert [name.split("sample ")[1][0] for name in names] == ["0", "3", "3", "3"]
    assert dataset.bad_samples.count == 3
    if not workers:
        assert "skipped 3 so far" in caplog.text and "sample 2 (id s2): " in caplog.text


@pytest.fixture
def of_many_lengths(tmp_path) -> EncodedDataset:
    """Samples with answers of many lengths, with an image of one of several shapes, or with none."""
    samples = [conversations.sample(index, image=None if index % 4 == 3 else f"{index}.png") for index in range(32)]
    for index, each in enumerate(samples):
        answer = "The sky is blue. " * (1 + index * 7 % 19)
        each["conversations"] = [conversations.turn("human", "What colour?"), conversations.turn("gpt", answer)]
    path = conversations.write(tmp_path, samples)
    for index in range(32):
        tiny.image(index, size=(40, 40 + 30 * (index % 3))).save(tmp_path / f"{index}.png")
    processor = tiny.processor(tiny.config(), view_strategy="grid")
    return EncodedDataset(conversations.load(path), ConversationEncoder(processor))


def test_lengths_are_those_of_the_encoded_samples_but_for_the_templates_words(of_many_lengths, monkeypatch):
    encoded = [len(of_many_lengths[index]["input_ids"]) for index in range(32)]
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("an image was decoded"))
    missing = [whole - length for whole, length in zip(encoded, of_many_lengths.lengths())]
    assert len(set(encoded)) > 10 and 0 < min(missing) and max(missing) - min(missing) <= 2
    with pytest.raises(pytest.fail.Exception, match="decoded"):
        of_many_lengths[0]


def test_lengths_of_a_mixture_are_those_of_its_sources_a_broken_image_has_none_and_streams_neither(
    of_many_lengths, tmp_path
):
    (tmp_path / "2.png").write_bytes(b"no image")
    lengths, source = of_many_lengths.lengths(), of_many_lengths.dataset
    assert len(lengths) == 32 and lengths[2] < min(lengths[:2])
    mixture = Mixture([source, source], [3, 40], seed=0)
    assert EncodedDataset(mixture, of_many_lengths.encoder).lengths() == [lengths[row] for row in mixture.rows]
    with pytest.raises(ValueError, match="these are streamed; use packing"):
        EncodedStream(None, ENCODE, BadSamples()).lengths()


def test_text_and_images_are_measured_apart():
    assert preprocessing.measure(NONE, PROCESSOR) == ("What colour is the grass? Green.", 0)
    text, tokens = preprocessing.measure(TWO | {"regions": [[], []]}, PROCESSOR)
    assert "left of" in text and tokens == 2 * (PROCESSOR.image_seq_length + 2)  # two marks around each


def test_size_of_an_image_as_file_bytes_and_image(tmp_path):
    image = tiny.image(0, size=(30, 50))
    image.save(tmp_path / "a.png")
    sources = (tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), image)
    assert [preprocessing.pixel_size_of(source) for source in sources] == [(30, 50)] * 3
