# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The paper's tables as data, and the lmms-eval score of each of their columns.

All numbers are percent, higher is better, except the edit distance of formulas. The paper (arXiv 2404.06212,
section 4) measured zero-shot with the lmms-eval of early 2024; the release's README gives two more rows.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """A column of the paper.

    sources: lmms-eval's (task, metric, factor to the paper's unit); the first one that was measured counts.
    """

    column: str
    sources: tuple[tuple[str, str, float], ...]
    higher_is_better: bool = True


@dataclass(frozen=True)
class PaperTable:
    """Rows of the paper: a model's name and a number per column."""

    title: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]
    note: str = ""

    def values(self, row: str) -> dict[str, float]:
        return dict(zip(self.columns, self.rows[row], strict=True))


BENCHMARKS = (
    Benchmark("SQA-full", (("scienceqa", "exact_match", 100),)),
    Benchmark("SQA-img", (("scienceqa_img", "exact_match", 100),)),
    Benchmark("TextVQA", (("textvqa_val", "exact_match", 100),)),
    Benchmark("TextVQA, OCR given", (("textvqa_val_ocr", "exact_match", 100),)),
    Benchmark("VQAv2", (("vqav2_val", "exact_match", 100),)),
    Benchmark("VizWiz", (("vizwiz_vqa_val", "exact_match", 100),)),
    Benchmark("POPE", (("pope", "pope_accuracy", 100),)),
    # lmms-eval gives these two in percent already.
    Benchmark("MMBench", (("mmbench_en_dev", "gpt_eval_score", 1), ("mmbench_en_dev_static", "gpt_eval_score", 1))),
    Benchmark("MMMU", (("mmmu_val", "mmmu_acc", 100),)),
    Benchmark("MM-Vet", (("mmvet", "gpt_eval_score", 1),)),
    Benchmark("GQA", (("gqa", "exact_match", 100),)),
    Benchmark("OK-VQA", (("ok_vqa_val2014", "exact_match", 100),)),
    Benchmark("InfoVQA", (("infovqa_val", "anls", 100),)),
    Benchmark("ChartQA", (("chartqa", "relaxed_overall", 100),)),
    Benchmark("DocVQA", (("docvqa_val", "anls", 100),)),
    Benchmark("multiDocVQA, ANLS", (("multidocvqa_val", "anls", 100),)),
    Benchmark("multiDocVQA, accuracy", (("multidocvqa_val", "accuracy", 100),)),
    Benchmark(
        "TeX, edit distance", (("im2latex", "edit_distance", 1), ("tex", "edit_distance", 1)), higher_is_better=False
    ),
)

# The paper gives InternViT-6B's 61.57 in the table of encoders and, as "with OCR", in that of high resolution.
_OCR_NOTE = (
    "TextVQA was probably measured with the dataset's OCR tokens in the question here, as lmms-eval did by default "
    "then; compare `textvqa_val_ocr`."
)
_NINE = ("SQA-full", "SQA-img", "TextVQA", "VQAv2", "VizWiz", "POPE", "MMBench", "MMMU", "MM-Vet")

ENCODERS = PaperTable(
    "Encoders (GigaChat-7B, MLP adapter)",
    _NINE,
    {
        "CLIP ViT-bigG/14": (68.71, 66.68, 47.58, 73.28, 49.92, 82.80, 61.73, 30.60, 30.10),
        "CLIP ViT-L/14": (71.21, 68.17, 57.20, 78.42, 54.11, 84.50, 65.72, 30.90, 33.60),
        "SigLIP-base/16": (71.92, 68.62, 57.05, 78.88, 51.84, 86.50, 66.80, 31.60, 33.70),
        "InternViT-6B": (73.38, 69.71, 61.57, 80.08, 52.78, 84.47, 67.10, 35.40, 35.10),
    },
    _OCR_NOTE,
)
MIXES = PaperTable(
    "Two encoders: CLIP ViT-L/14 and DINOv2 (GigaChat-7B)",
    _NINE,
    {
        "one encoder (transformer)": (71.21, 68.17, 57.20, 78.42, 54.11, 84.50, 65.72, 32.30, 33.60),
        "concatenation": (72.25, 68.62, 54.02, 75.95, 51.33, 85.40, 67.87, 34.10, 30.60),
        "projection & summation": (71.09, 67.18, 60.87, 78.77, 57.09, 85.73, 69.24, 36.50, 34.60),
        "projection & attention": (72.01, 68.17, 47.75, 70.84, 50.82, 84.93, 57.47, 29.40, 21.90),
    },
    _OCR_NOTE,
)
GRID = PaperTable(
    "High resolution (GigaChat-7B)",
    ("TextVQA, OCR given", "POPE", "DocVQA", "InfoVQA", "ChartQA", "multiDocVQA, ANLS", "multiDocVQA, accuracy"),
    {
        "whole, InternViT-6B": (61.57, 84.47, 38.44, 29.24, 19.92, 22.50, 11.43),
        "grid, CLIP ViT-L/14": (63.31, 86.72, 46.76, 30.20, 20.20, 27.09, 14.50),
        "grid, with Russian DocVQA data": (65.53, 87.21, 62.82, 36.99, 28.96, 36.38, 20.55),
    },
)
OPEN = PaperTable(
    "Open LLMs (CLIP ViT-L/14 and DINOv2, projection & summation)",
    ("SQA-full", "SQA-img", "TextVQA", "TextVQA, OCR given", "POPE", "GQA", "MMMU", "MM-Vet"),
    {
        "Mistral-7B": (70.30, 67.55, 48.93, 59.15, 82.18, 64.00, 35.90, 33.10),
        "Vicuna-7B": (71.26, 69.96, 49.58, 61.04, 85.81, 62.60, 36.90, 33.60),
    },
)
RELEASE = PaperTable(
    "Release v1.1 (Mistral-7B; its README)",
    ("TextVQA", "SQA-full", "POPE", "GQA", "OK-VQA"),
    {
        "one encoder": (48.93, 68.02, 78.18, 46.00, 51.87),
        "two encoders": (47.55, 67.32, 81.53, 47.61, 53.17),
    },
    "The README says ScienceQA and does not name its part; its numbers are listed under SQA-full here.",
)
FORMULAS = PaperTable(
    "Formulas (normalised edit distance, lower is better)",
    ("TeX, edit distance",),
    {"CLIP ViT-L/14": (0.32,), "Texify's encoder": (0.19,)},
)
TABLES = (ENCODERS, MIXES, GRID, OPEN, RELEASE, FORMULAS)

# The radar plot after the paper's Figure 1: its axes, and paper rows for comparison.
RADAR_COLUMNS = _NINE
RADAR_ROWS = {
    "paper: CLIP ViT-L/14": ENCODERS.values("CLIP ViT-L/14"),
    "paper: InternViT-6B": ENCODERS.values("InternViT-6B"),
    "paper: CLIP + DINOv2, summation": MIXES.values("projection & summation"),
}
