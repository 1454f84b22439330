"""Other content gives another hash, of files, samples, streams and mixtures."""

import conversations
import data_files
import yaml

from omnifusion_hf.training.fingerprints import content_hash


def test_large_files_are_known_by_their_size_their_end_and_a_part_of_them(tmp_path):
    path, hashes = tmp_path / "x.safetensors", set()
    with path.open("wb") as file:
        file.truncate(2**27)
    for place in (None, 0, 2**26 + 5, 2**27 - 1):
        with path.open("rb+") as file:
            file.seek(place or 0)
            file.write(b"" if place is None else b"x")
        hashes.add(content_hash([path]))
    assert len(hashes) == 4


def test_streams_are_known_by_their_first_rows_and_mixtures_by_what_they_draw(tmp_path):
    samples = data_files.mixed(12)
    data_files.hf_dataset(samples).to_parquet(tmp_path / "rows.parquet")
    known = [conversations.load(tmp_path / "rows.parquet", streaming=True).identity() for _ in range(2)]
    samples[0]["conversations"][1]["value"] = "Grey."
    data_files.hf_dataset(samples).to_parquet(tmp_path / "rows.parquet")
    other = conversations.load(tmp_path / "rows.parquet", streaming=True).identity()
    assert known[0] == known[1] != other
    path = tmp_path / "mixture.yaml"
    for drawn in (3, 4):
        path.write_text(yaml.safe_dump({"sources": [{"path": str(tmp_path / "rows.parquet"), "samples": drawn}]}))
        assert [source["drawn"] for source in conversations.load(path).identity()] == [drawn]
