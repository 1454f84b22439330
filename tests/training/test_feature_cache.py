"""The cache of features: a run on it is the run on images, each view is encoded once, stale shards are refused."""

from pathlib import Path
from types import SimpleNamespace

import conversations
import data_files
import pytest
import ranks
import tiny
import torch
import training_runs
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset
from transformers import TrainingArguments

from omnifusion_hf.training import feature_cache
from omnifusion_hf.training.conversations import BadSamples
from omnifusion_hf.training.feature_cache import FeatureShards, as_metadata, view_name
from omnifusion_hf.training.preprocessing import ConversationEncoder, EncodedStream


# Encoders and image strategy: one layer of one encoder, of two, every layer of two.
GRID = {"view_strategy": "grid"}
MODELS = {"mlp": (["clip"], {}), "grid": (["clip", "siglip"], GRID), "summation": (["clip", "dinov2"], {})}


def model_and_processor(name: str = "mlp", seed: int = 0, **changes):
    encoders, image_options = MODELS[name]
    config = tiny.config(encoders, projector_type="summation" if name == "summation" else "mlp")
    return tiny.model(config, seed).requires_grad_(False), tiny.processor(config, **image_options | changes)


class Samples(Dataset):
    """Encoded samples, two of them with the same image and one with none; notes which are read."""

    def __init__(self, processor, images=(0, 1, 1, None, 2)):
        self.encoder, self.images, self.read = ConversationEncoder(processor), images, []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        self.read.append(index)
        image = self.images[index]
        images = [] if image is None else [tiny.image(image)]
        return self.encoder(conversations.item(tiny.user(*images, "Sky?"), tiny.assistant("Blue.")))


def cached(folder: Path, model, processor, samples=None, **options) -> feature_cache.CachedDataset:
    options = {"use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 2} | options
    args = TrainingArguments(output_dir=folder / "out", **options)
    samples = samples or Samples(processor)
    return feature_cache.cached_dataset(samples, model, processor.image_processor, folder / "cache", args)


def stored(folder: Path) -> list[str]:
    """Names of all rows of the cache in a folder, shard by shard."""
    return [name for path in (folder / "cache").iterdir() for name in safe_open(path, "pt").keys()]


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many views each call of the encoders got, but for the blank one that tells the features' sizes."""
    counts, compute = [], feature_cache.compute_features

    def counting(tower, views, args):
        if views.any():
            counts.append(len(views))
        return compute(tower, views, args)

    monkeypatch.setattr(feature_cache, "compute_features", counting)
    return counts


def run(folder: Path, base: Path, **changes) -> list[tuple]:
    """Trains two epochs on six samples, two without an image; loss and gradient norm of each step."""
    training_runs.run(folder, base, data_files.mixed(6), max_steps=6, save_steps=6, **changes)
    return training_runs.figures(folder / "out", "loss", "grad_norm")


LORA = {"stage": "lora", "lora_rank": 4, "packing": True, "max_length": 128, "bf16": True}


@pytest.mark.parametrize(("name", "options"), [*((name, {"stage": "finetune"}) for name in MODELS), ("mlp", LORA)])
def test_losses_equal_the_uncached_runs_to_the_bit(tmp_path, monkeypatch, name, options):
    for part in model_and_processor(name):
        part.save_pretrained(tmp_path / "base")
    cache = {"cache_vision_features": str(tmp_path / "cache")}
    plain = run(tmp_path / "plain", tmp_path / "base", **options)
    assert plain == run(tmp_path / "cached", tmp_path / "base", dataloader_num_workers=1, **options, **cache)
    if options is LORA:
        read = FeatureShards.read
        monkeypatch.setattr(FeatureShards, "read", lambda shards, views: 1.5 * read(shards, views))
        assert plain != run(tmp_path / "other", tmp_path / "base", **options, **cache)


def test_kept_samples_hold_no_tensor_of_a_worker_which_is_an_open_file(tmp_path):
    model, processor = model_and_processor()
    rows = cached(tmp_path, model, processor, Samples(processor))
    assert not any(torch.is_tensor(value) for row in rows.samples for value in row.values())
    assert any(torch.is_tensor(row.get("image_view_index")) for row in rows)  # control: as the collator expects it


def test_images_are_read_to_name_and_to_encode_their_new_views_and_never_again(tmp_path, encoded):
    model, processor = model_and_processor()
    samples = Samples(processor)
    rows = cached(tmp_path, model, processor, samples)
    assert samples.read == [0, 1, 2, 3, 4, 0, 2, 4] and sum(encoded) == 3
    assert [rows[index] for index in range(5)] and len(samples.read) == 8
    cached(tmp_path, model_and_processor()[0], processor, samples)
    assert samples.read[8:] == [0, 1, 2, 3, 4] and sum(encoded) == 3
    cached(tmp_path, model_and_processor()[0], processor, Samples(processor, (2, 7, 1, 8)))
    assert sum(encoded) == len(stored(tmp_path)) == len(set(stored(tmp_path))) == 5


def test_killed_while_encoding_it_goes_on_with_what_is_missing(tmp_path, monkeypatch, encoded):
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 1)
    counting = feature_cache.compute_features

    def dies(tower, views, args):
        if encoded:
            raise KeyboardInterrupt
        return counting(tower, views, args)

    monkeypatch.setattr(feature_cache, "compute_features", dies)
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, *model_and_processor())
    assert 0 < len(stored(tmp_path)) < 3
    monkeypatch.setattr(feature_cache, "compute_features", counting)
    cached(tmp_path, *model_and_processor())
    assert sum(encoded) == len(stored(tmp_path)) == 3


OTHERS = [
    (1, {}, {}, "encoder_weights was .* and is .*"),
    (0, {"image_fit": "pad"}, {}, 'settings: image_processor.image_fit was "crop" and is "pad"'),
    (0, {}, {"bf16": True}, 'autocast was "None" and is "torch.bfloat16"'),
]


@pytest.mark.parametrize(("weights", "image", "options", "changed"), OTHERS)
def test_cache_of_other_encoders_or_settings_is_refused_with_its_cure(tmp_path, weights, image, options, changed):
    cached(tmp_path, *model_and_processor())
    with pytest.raises(ValueError, match=f"{changed}. Set cache_vision_features to another folder, or delete this"):
        cached(tmp_path, *model_and_processor(seed=weights, **image), **options)
    assert cached(tmp_path, *model_and_processor(max_image_pixels=9999))


def test_what_cannot_be_cached_is_refused_with_its_reason_before_anything_is_encoded(tmp_path, monkeypatch, encoded):
    model, processor = model_and_processor()
    with pytest.raises(ValueError, match="streamed"):
        cached(tmp_path, model, processor, EncodedStream(None, None, BadSamples()))
    with pytest.raises(ValueError, match="here they train"):
        cached(tmp_path, model_and_processor()[0].requires_grad_(True), processor)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="does not work with FSDP or DeepSpeed"):
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        cached(tmp_path, model, processor)
    free = 3 * 16 * 32 * 4 - 1
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(ValueError, match="no room: 3 views to encode, .* larger disk"):
        cached(tmp_path, model, processor)
    assert not encoded
    free += 1
    assert cached(tmp_path, model, processor)


def test_the_room_that_is_needed_is_said_before_it_is_filled(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * 10**18))
    layout = feature_cache.FeatureLayout(shapes=((1, 1),), last=(0,), row_bytes=2 * 10**12)
    feature_cache._check_disk(10**6, layout, tmp_path, announce=True)
    views, folder = "1,000,000 views to encode, 2,000,000.00 MB each (1 feature maps)", f"GB in {tmp_path}"
    assert f"{views}: 2,000,000,000.00 {folder}, where 3,000,000,000.00 GB are free" in capsys.readouterr().out


@pytest.mark.parametrize(("process", "disabled", "shown"), [(0, False, True), (1, False, False), (0, True, False)])
def test_the_first_process_shows_its_progress_unless_that_is_disabled(process, disabled, shown, capsys):
    args = SimpleNamespace(per_device_train_batch_size=1, dataloader_num_workers=0, process_index=process)
    args.disable_tqdm = disabled
    assert list(feature_cache._batches("ab", range(2), list, "naming views", args)) == [["a"], ["b"]]
    assert ("naming views" in capsys.readouterr().err) == shown


def test_tower_that_serves_features_still_takes_pixels(tmp_path):
    tower = model_and_processor("summation")[0].model.vision_tower
    args = TrainingArguments(output_dir=tmp_path, use_cpu=True)
    pixels = torch.randn(3, 3, 32, 32)
    computed = tower(pixels, return_dict=True)
    layout = feature_cache.FeatureLayout.of(tower, args)
    rows = feature_cache.join(feature_cache.compute_features(tower, pixels, args))
    served = feature_cache.FeatureVisionModel.of(tower, layout)
    assert served.state_dict().keys() == tower.state_dict().keys()
    for given in (rows, pixels):
        outputs = served(given, return_dict=True)
        assert len(outputs.features) == 6 and all(map(torch.equal, outputs.features, computed.features))
        assert all(map(torch.equal, outputs.last_features, computed.last_features))
    assert not torch.equal(served(rows.flip(0)).features[0], computed.features[0])


def fill_as_one_of_two(rank: int, folder: Path):
    ranks.join_as(rank, folder / "store")
    rows = cached(folder, *model_and_processor(), ddp_backend="gloo")
    torch.save([rows[index] for index in range(len(rows))], folder / f"{rank}.pt")


def test_processes_share_the_encoding_and_have_all_of_it(tmp_path):
    assert ranks.start_ranks(fill_as_one_of_two, tmp_path) == [0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert len(stored(tmp_path)) == len(set(stored(tmp_path))) == 3
    rows = cached(tmp_path, *model_and_processor())
    assert rows.lengths() == [len(rows[index]["input_ids"]) for index in range(5)]
    assert rows[0]["name"] == "sample of 2 turns" and rows[0]["pixel_values"].shape == (1, 16 * 32)
    for rank in range(2):
        for index, row in enumerate(torch.load(tmp_path / f"{rank}.pt", weights_only=False)):
            kept = [{key: torch.as_tensor(each[key]) for key in each if key != "name"} for each in (row, rows[index])]
            torch.testing.assert_close(*kept, rtol=0, atol=0)


SETTINGS = {"weights": "a", "side": "32"}
ROWS = {"x": torch.arange(4.0), "y": torch.full((4,), torch.pi)}


def test_shards_of_fewer_settings_cut_off_by_a_copy_and_foreign_files_are_refused_by_what_is_wrong(tmp_path):
    def refused(reason: str, settings=SETTINGS):
        with pytest.raises(ValueError, match=reason):
            FeatureShards(tmp_path, settings)

    FeatureShards(tmp_path, SETTINGS).write(ROWS)
    refused("other settings: side was 32 and is None", {"weights": "a"})
    path = next(tmp_path.iterdir())
    for size in (path.stat().st_size - 1, 20, 0):
        path.write_bytes(path.read_bytes()[:size])
        refused(f"{path.name} is cut off .*; delete it")
    path.unlink()
    save_file(ROWS, tmp_path / "a.safetensors")
    refused("a.safetensors holds .*: weights was None and is a; side was None and is 32")


def test_views_of_other_values_have_other_names_and_settings_leave_out_what_changes_no_feature():
    pixels = torch.rand(3, 4, 4)
    assert view_name(pixels) == view_name(pixels.transpose(1, 2).contiguous().transpose(1, 2))
    assert view_name(pixels) != view_name(pixels.nextafter(torch.ones(())))
    settings = {"encoders": [{"width": 8, "dtype": "float32"}], "layers": [2, 3], "images": {"max_image_pixels": 9}}
    assert as_metadata(settings) == {"encoders.0.width": "8", "layers": "[2, 3]"}
