"""Grouping by length: less padding in batches, every sample once an epoch, no image decoded to measure them."""

import json

import conversations
import pytest
import tiny
import training_runs
from PIL import Image
from torch.utils.data import IterableDataset
from transformers import TrainingArguments

from omnifusion_hf.training.conversations import BadSamples, ConversationDataset, SampleReader
from omnifusion_hf.training.grouping import LengthGroupedDataset, group_by_length, lengths_of, pixel_size_of
from omnifusion_hf.training.mixture import Mixture
from omnifusion_hf.training.preprocessing import ConversationEncoder, EncodedDataset
from omnifusion_hf.training.readers import JsonRows
from omnifusion_hf.training.arguments import parse_recipe
from omnifusion_hf.training.train import train
from omnifusion_hf.training.vision_cache import CachedDataset


PROCESSOR = tiny.processor(tiny.config(), view_strategy="grid")


def dataset(folder, count: int = 32) -> EncodedDataset:
    """Samples with answers of many lengths, with an image of one of several shapes, or with none."""
    samples = [
        conversations.sample(
            index,
            image=None if index % 4 == 3 else f"{index}.png",
            conversations=[
                conversations.turn("human", "What colour is the sky?"),
                conversations.turn("gpt", " ".join(["The sky is blue."] * (1 + index * 7 % 19))),
            ],
        )
        for index in range(count)
    ]
    path = conversations.write(folder, samples)
    for index in range(count):
        tiny.image(index, size=(40, 40 + 30 * (index % 3))).save(folder / f"{index}.png")
    rows = ConversationDataset(JsonRows(path), SampleReader(image_folder=folder)).check(BadSamples())
    return EncodedDataset(rows, ConversationEncoder(PROCESSOR))


def padding(samples, batch_size: int = 4) -> float:
    """Share of the places in batches of samples in this order."""
    lengths = [len(samples[index]["input_ids"]) for index in range(len(samples))]
    batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


def test_padding_falls_and_every_epoch_has_every_sample_once(tmp_path):
    samples = dataset(tmp_path, count=96)
    grouped = LengthGroupedDataset(samples, lengths_of(samples, PROCESSOR), batch_size=4, seed=1)
    assert padding(samples) > 0.25 > 0.15 > padding(grouped)
    orders = []
    for epoch in (0, 1, 0):
        grouped.set_epoch(epoch)
        orders.append([grouped[index]["name"] for index in range(len(grouped))])
        assert sorted(orders[-1]) == sorted(samples[index]["name"] for index in range(96))
    assert orders[0] == orders[2] != orders[1]


def test_lengths_are_those_of_the_encoded_samples_but_for_the_templates_words(tmp_path, monkeypatch):
    samples = dataset(tmp_path)
    encoded = [len(samples[index]["input_ids"]) for index in range(len(samples))]
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("an image was decoded"))
    missing = [whole - length for whole, length in zip(encoded, lengths_of(samples, PROCESSOR))]
    assert len(set(encoded)) > 10 and 0 < min(missing) and max(missing) - min(missing) <= 2
    with pytest.raises(pytest.fail.Exception, match="decoded"):
        samples[0]


def test_mixtures_and_cached_features_are_measured_too(tmp_path):
    samples = dataset(tmp_path)
    lengths = lengths_of(samples, PROCESSOR)
    mixture = Mixture([samples.dataset, samples.dataset], [3, 40], seed=0)
    expected = [lengths[row] for row in mixture.rows]
    assert lengths_of(EncodedDataset(mixture, samples.encoder), PROCESSOR) == expected
    cached = CachedDataset([{"input_ids": [1] * length} for length in (3, 7)], shards=None)
    assert lengths_of(cached, PROCESSOR) == [3, 7]


def test_broken_image_is_left_to_the_encoder(tmp_path):
    samples = dataset(tmp_path)
    (tmp_path / "2.png").write_bytes(b"no image")
    lengths = lengths_of(samples, PROCESSOR)
    assert len(lengths) == 32 and lengths[2] < min(lengths[:2])


def test_size_of_an_image_as_file_bytes_and_image(tmp_path):
    image = tiny.image(0, size=(30, 50))
    image.save(tmp_path / "a.png")
    sources = (tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), image)
    assert [pixel_size_of(source) for source in sources] == [(30, 50)] * 3


def test_streams_cannot_be_grouped_and_the_other_strategy_that_measures_is_refused(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from ()

    args = TrainingArguments(tmp_path, train_sampling_strategy="group_by_length", use_cpu=True)
    with pytest.raises(ValueError, match="these are streamed; use packing"):
        group_by_length(Stream(), PROCESSOR, args)
    args.train_sampling_strategy = "batch_rebalance"
    with pytest.raises(ValueError, match="use group_by_length or packing"):
        group_by_length(Stream(), PROCESSOR, args)
    args.train_sampling_strategy = "random"
    stream = Stream()
    assert group_by_length(stream, PROCESSOR, args) is stream


def test_run_takes_batches_of_about_one_length_and_resumes_in_their_order(tmp_path):
    base = conversations.write_model(tmp_path / "base")
    changes = {"train_sampling_strategy": "group_by_length", "max_steps": 7, "save_steps": 6}
    training_runs.run(tmp_path / "run", base, **changes)
    whole = training_runs.weights(tmp_path / "run/out")
    history = json.loads((tmp_path / "run/out/checkpoint-6/trainer_state.json").read_text())["log_history"]
    first, second = ([entry["loss"] for entry in history[start : start + 4]] for start in (0, 4))
    assert first != second
    (tmp_path / "run/out/model.safetensors").unlink()
    resumed = "resume_from_checkpoint=" + str(tmp_path / "run/out/checkpoint-6")
    train(*parse_recipe(tmp_path / "run/recipe.yaml", [resumed]))
    assert not training_runs.changed(whole, training_runs.weights(tmp_path / "run/out"))
    training_runs.run(tmp_path / "random", base, **changes | {"train_sampling_strategy": "random"})
    assert training_runs.changed(whole, training_runs.weights(tmp_path / "random/out"))
