"""Weights: renamed by tables, read from the preferred files, written in pieces; hostile pickles are refused."""

import pytest
import torch
from release import Marker
from safetensors.torch import load_file

from conversion.weights import KeyTable, in_pieces, locate, shard_tensors, write_weights


TABLE = KeyTable(
    keys={r"a\.(weight|bias)": r"b.\1"},
    split={r"qkv\.(weight|bias)": [r"q.\1", r"k.\1", r"v.\1"]},
    dropped=[r"head\..+"],
)


def test_a_table_maps_splits_and_drops():
    rows = torch.arange(6).view(6, 1)
    assert TABLE.place("a.bias", rows, "file") == [("b.bias", rows)]
    parts = {name: part.flatten().tolist() for name, part in TABLE.place("qkv.weight", rows, "file")}
    assert parts == {"q.weight": [0, 1], "k.weight": [2, 3], "v.weight": [4, 5]}
    assert TABLE.place("head.weight", rows, "file") == []


@pytest.mark.parametrize("name", ["a.weight.more", "x.a.weight", "head", "Qkv.weight"])
def test_a_name_must_match_as_a_whole(name):
    with pytest.raises(ValueError, match=f"file holds the unknown tensor `{name}`"):
        TABLE.place(name, torch.zeros(3), "file")


def test_parts_of_a_split_tensor_can_be_written(tmp_path):
    """safetensors refuses tensors that share memory; parts are copies."""
    model = torch.nn.ModuleDict({part: torch.nn.Linear(2, 2, bias=False) for part in "qkv"})
    qkv = torch.randn(6, 2)
    write_weights(tmp_path, in_pieces(TABLE.place("qkv.weight", qkv, "file"), 10**6), model, None)
    written = load_file(tmp_path / "model-00001-of-00001.safetensors")
    assert torch.equal(torch.cat([written[f"{part}.weight"] for part in "qkv"]), qkv)


@pytest.mark.parametrize("limit, sizes", [(7, [1, 1, 1, 1]), (8, [2, 1, 1]), (16, [3, 1]), (1000, [4])])
def test_pieces_hold_as_many_tensors_as_fit_and_a_larger_one_alone(limit, sizes):
    tensors = [(name, torch.zeros(count)) for name, count in (("a", 1), ("b", 1), ("c", 2), ("d", 5))]
    pieces = list(in_pieces(iter(tensors), limit))
    assert [len(piece) for piece in pieces] == sizes
    assert [name for piece in pieces for name in piece] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("published, downloads", [("model.safetensors", 1), ("pytorch_model.bin", 2)])
def test_pickles_are_downloaded_only_where_no_safetensors_are(published, downloads, tmp_path, monkeypatch):
    calls = []

    def download(source: str, allow_patterns: list[str]) -> str:
        calls.append(allow_patterns)
        if any(published.endswith(pattern.lstrip("*")) for pattern in allow_patterns):
            (tmp_path / published).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert locate("owner/name", ["*.json", "*.safetensors"], ["*.json", "*.bin"]) == tmp_path
    assert len(calls) == downloads


FOREIGN = {
    "a list": lambda path, marker: torch.save([torch.zeros(1)], path),
    "numbers": lambda path, marker: torch.save({"epoch": 3}, path),
    "code": lambda path, marker: torch.save({"state_dict": {}, "hook": Marker(marker)}, path),
    "TorchScript": lambda path, marker: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path),
    "text": lambda path, marker: path.write_text("nothing"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*TorchScript:UserWarning")
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_pickles_are_named_and_nothing_in_them_runs(kind, tmp_path):
    path, marker = tmp_path / "weights.pt", tmp_path / "marker"
    FOREIGN[kind](path, marker)
    with pytest.raises(ValueError, match="weights.pt (was not read|does not hold a state dict)"):
        list(shard_tensors(path))
    assert not marker.exists()


def test_a_state_dict_is_read_alone_or_inside_a_training_checkpoint(tmp_path):
    for content in ({"a": torch.ones(1)}, {"state_dict": {"a": torch.ones(1)}, "epoch": 3, "optimizer": {}}):
        torch.save(content, tmp_path / "weights.pt")
        assert dict(shard_tensors(tmp_path / "weights.pt")) == {"a": torch.ones(1)}
