"""Why a common test is skipped, in our words, and the table of them, `SKIPS.md`.

`cd tests && python -m conformance.skips` runs all set-ups and rewrites the table; a test compares it with each run.
"""

import re
from collections import defaultdict
from pathlib import Path

from conformance.run import REFERENCE, SETUPS, Outcome, run


TABLE = Path(__file__).parent / "SKIPS.md"

# The first pattern that is found in "ModelTest.test_name: reason given by the test" decides.
REASONS = {
    r"^ModelTest\.test_pipeline_(?!image_text_to_text|any_to_any)": "a pipeline of another task",
    r"accelerator|MPS|Flash Attention|kernels library|deepspeed": "needs an accelerator or a package made for one",
    r"test is slow": "marked as slow by transformers, run nightly there",
    r"_video|_audio|audio_|librosa": "audio or video; ours takes images and text",
    r"grouped_mm|sparse experts|router_logits": "for mixtures of experts",
    r"encoder-decoder|position embeddings|RoPE|rope|sliding window": "a building block that these parts do not have",
    r"non_composite": "for models of one part; its twin for composite models runs",
    r"reverse_loading_mapping": "for models that rename old weights on loading; ours has no old names",
    r"tool_calls": "the chat template offers no tools",
    r"preprocess_arguments": "for image processors of transformers 4",
    r"override_instance_attributes": "reads sizes that are plain dictionaries; transformers' new size class is none",
    r"keep_in_fp32_modules_strict": "for models that keep parts in float32 whatever is asked for",
    r"cache as input to forward": "`forward` hands the cache on without naming it, which transformers 5.24 renamed",
    r"row of pixel_values per image": "counts one row of pixel_values per image; the grid gives one per view",
}

HEADER = """\
# What of transformers' common tests does not run here, and why

Written by `cd tests && python -m conformance.skips` from a run of all set-ups; `tests/test_conformance.py` compares it
with each run, so a new skip is seen. LLaVA is transformers' own, in the same harness; "runs": it passes there.

Left out as a whole:

- `GenerationTesterMixin` and `ExportTesterMixin`: the source distribution lacks their files. Generation has tests of
  our own in `tests/`.
- `TensorParallelTesterMixin`, `FSDPTesterMixin`, `ExpertParallelTesterMixin`: the source distribution lacks
  `distributed_testing_utils.py`, on which they stand.
- Processor and image processor tests of set-ups 2, 4 and 5 and the image processor's of set-up 3: they would repeat
  set-up 1's.
- `mlinter`'s TRF057 (suppressed where it would fire): `@auto_docstring` takes a model's name and checkpoint from its
  place in transformers' tree; outside it writes "the None Model" and prints an error for every field of ours.
  TRF016, of `do_resize`: views are always resized; False is refused before the place that the rule reads.

Adapted: `test_can_init_all_missing_weights` runs as if our classes lay inside transformers, which initialises custom
code in another way. Where a test passes `input_ids` alone, and in random ids, there is no `<image>`: our models refuse
one without an image, where LLaVA embeds the placeholder. A message with tool calls alone is refused by name.

The image processor has one class, on Pillow, registered under both backend names. The tests that compare backends thus
compare it with itself; exact pixels are tested in `tests/test_image_processing_omnifusion.py`.

| test | why it is skipped | set-ups | LLaVA |
|---|---|---|---|
"""


def reason(name: str, message: str) -> str:
    """Raises `ValueError` for a skip that nobody has looked at yet."""
    for pattern, words in REASONS.items():
        if re.search(pattern, f"{name}: {message}"):
            return words
    raise ValueError(f"{name} is skipped for a new reason: {message}; add it to tests/conformance/skips.py.")


def render(results: dict[str, dict[str, Outcome]]) -> str:
    """The table for the outcomes per set-up, the reference among them."""
    rows = defaultdict(list)
    for number, setup in enumerate(SETUPS, start=1):
        for name, outcome in results[setup].items():
            if outcome.status == "skipped":
                rows[reason(name, outcome.message), name].append(str(number))
    lines = []
    for (words, name), setups in sorted(rows.items()):
        there = "runs" if results[REFERENCE].get(name, Outcome("")).status == "passed" else "skipped"
        lines.append(f"| `{name}` | {words} | {', '.join(setups)} | {there} |\n")
    return HEADER + "".join(lines)


if __name__ == "__main__":
    TABLE.write_text(render({setup: run(setup) for setup in (*SETUPS, REFERENCE)}), encoding="utf-8")
