"""Weights: renamed by tables, read from the preferred files, written in pieces; hostile pickles are refused."""

import pytest
import torch
from release import Marker

from conversion.weights import KeyTable, in_pieces, locate, shard_tensors


@pytest.mark.parametrize("name", ["a.weight.more", "x.a.weight", "head", "Qkv.weight"])
def test_a_name_must_match_as_a_whole(name):
    table = KeyTable({r"a\.(weight|bias)": r"b.\1"}, {r"qkv\.weight": ["q", "k", "v"]}, [r"head\..+"])
    with pytest.raises(ValueError, match=f"file holds the unknown tensor `{name}`"):
        table.place(name, torch.zeros(3), "file")


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
