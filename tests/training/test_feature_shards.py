"""Shards on disk: rows come back as they were, shards are whole or absent, those of other settings are refused."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from omnifusion_hf.io import staged_file
from omnifusion_hf.training import feature_shards
from omnifusion_hf.training.feature_shards import FeatureShards, as_metadata, view_name, weights_hash


SETTINGS = {"weights": "a", "side": "32"}
ROWS = {"x": torch.arange(4.0), "y": torch.full((4,), torch.pi)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_back_in_the_order_asked_for_to_the_bit(tmp_path, dtype):
    rows = {name: row.to(dtype) for name, row in ROWS.items()}
    FeatureShards(tmp_path, SETTINGS).write(rows)
    shards = FeatureShards(tmp_path, SETTINGS)
    assert torch.equal(shards.read(["y", "x", "y"]), torch.stack([rows["y"], rows["x"], rows["y"]]))
    assert "x" in shards and "z" not in shards


def test_shards_of_other_processes_are_found_when_they_are_looked_for(tmp_path):
    mine, other = FeatureShards(tmp_path, SETTINGS), FeatureShards(tmp_path, SETTINGS)
    other.write({"x": ROWS["x"]})
    mine.write({"y": ROWS["y"]})
    assert "x" not in mine
    mine.find()
    assert torch.equal(mine.read(["x", "y"]), torch.stack([ROWS["x"], ROWS["y"]]))


def test_a_shard_cut_off_while_written_is_none(tmp_path, monkeypatch):
    def dies(rows, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(feature_shards, "save_file", dies)
        FeatureShards(tmp_path, SETTINGS).write(ROWS)
    assert not list(tmp_path.iterdir())
    with staged_file(tmp_path / "features-at-work.safetensors") as part:
        save_file(ROWS, part, SETTINGS)
        assert not FeatureShards(tmp_path, SETTINGS).shard_of
    (tmp_path / "features-at-work.safetensors").unlink()
    FeatureShards(tmp_path, SETTINGS).write(ROWS)
    assert FeatureShards(tmp_path, SETTINGS).shard_of.keys() == ROWS.keys()


def test_shards_of_other_settings_and_foreign_files_are_refused_by_what_differs(tmp_path):
    FeatureShards(tmp_path, SETTINGS).write(ROWS)
    with pytest.raises(
        ValueError, match="other settings: side was 32 and is 64. Set cache_vision_features to another"
    ):
        FeatureShards(tmp_path, SETTINGS | {"side": "64"})
    with pytest.raises(ValueError, match="other settings: side was 32 and is None"):
        FeatureShards(tmp_path, {"weights": "a"})
    save_file(ROWS, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a.safetensors holds .*: weights was None and is a; side was None and is 32"):
        FeatureShards(tmp_path, SETTINGS)


def test_a_shard_that_a_copy_cut_off_is_refused_by_name(tmp_path):
    FeatureShards(tmp_path, SETTINGS).write(ROWS)
    path = next(tmp_path.iterdir())
    for size in (path.stat().st_size - 1, 20, 0):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match=f"{path.name} is cut off .*; delete it"):
            FeatureShards(tmp_path, SETTINGS)


def test_views_and_weights_of_other_values_have_other_names():
    pixels = torch.rand(3, 4, 4)
    assert view_name(pixels) == view_name(pixels.transpose(1, 2).contiguous().transpose(1, 2))
    assert view_name(pixels) != view_name(pixels.nextafter(torch.ones(())))
    layer = nn.Linear(2, 2).bfloat16()
    before = weights_hash(layer)
    assert before == weights_hash(layer)
    layer.bias.data[0] += 1
    assert before != weights_hash(layer)


def test_settings_leave_out_what_changes_no_feature():
    settings = {"encoders": [{"width": 8, "dtype": "float32"}], "layers": [2, 3], "images": {"max_image_pixels": 9}}
    assert as_metadata(settings) == {"encoders.0.width": "8", "layers": "[2, 3]"}
