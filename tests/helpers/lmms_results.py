"""Result files as lmms-eval writes them."""

import json


POPE = {"alias": "pope", "pope_accuracy,none": 0.8, "pope_accuracy_stderr,none": 0.02, "pope_f1_score,none": 0.7}
POPE |= {"pope_f1_score_stderr,none": "N/A", "pope_accuracy_stderr_clt,none": 0.02}
RECORD = {"model": "/models/mine", "dtype": "float32", "versions": {"torch": "9.9"}}
RECORD |= {"processor_sha256": "ab" * 32, "prompts_sha256": "cd" * 32}


def write_results(folder, date="20260101_000000", results=None, **content):
    """A result file as lmms-eval writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{date}_results.json"
    content = {"results": results or {"pope": POPE}, "model_name": "/models/mine", "date": date} | content
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_samples(folder, task, rows, date="20260101_000000"):
    lines = [{"doc_id": i, "input": "q?", "target": "a", "filtered_resps": "a"} | row for i, row in enumerate(rows)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"{date}_samples_{task}.jsonl").write_text(text, encoding="utf-8")
