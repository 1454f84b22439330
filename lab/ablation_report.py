"""Table and figure of lab.ablations, from the files of its finished runs, beside the paper's own figures."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from omnifusion_hf.io import write_whole


COLUMNS = ("colour", "shape", "count", "digit", "text, 1 character", "text, 2 characters", "text, 3 characters")
TITLES = ("colour", "shape", "count", "digit", "text 1", "text 2", "text 3", "all")
GROUPS = {"scenes": COLUMNS[:3], "text": COLUMNS[4:], "all": COLUMNS}
MARKS = ("<!-- figures: python -m lab.ablations -->", "<!-- end of figures -->")


@dataclass(frozen=True)
class Comparison:
    """One answer: what changes with `name` as against `baseline`, and the paper's differences in points."""

    question: str
    name: str
    baseline: str
    paper: dict[str, float]


# Section 4 of arXiv 2404.06212. Beside its mixes stands CLIP L/14 with the transformer adapter; with the MLP it prints
# the same figures but for MMMU (30.90, not 32.30). Its grid also has another encoder (InternViT whole, CLIP grid). It
# prints no figures for one stage alone or for regions.
PAPER_MIXES = {
    "concatenation": {"TextVQA": -3.18, "VQAv2": -2.47, "POPE": 0.90, "MMMU": 1.80},
    "summation": {"TextVQA": 3.67, "VQAv2": 0.35, "POPE": 1.23, "MMMU": 4.20},
    "attention": {"TextVQA": -9.45, "VQAv2": -7.58, "POPE": 0.43, "MMMU": -2.90},
}
COMPARISONS = (
    Comparison("a", "transformer", "mlp", {"OCR tasks, at worst": -4.0}),
    *(Comparison("b", name, "transformer", paper) for name, paper in PAPER_MIXES.items()),
    *(Comparison("b", name, "mlp", paper | {"MMMU": paper["MMMU"] + 1.4}) for name, paper in PAPER_MIXES.items()),
    Comparison("b", "summation", "summation, CLIP alone", {}),
    Comparison("c", "grid", "whole", {"TextVQA": 1.74, "DocVQA": 8.32, "POPE": 2.25}),
    Comparison("d", "mlp, stage 2 alone", "mlp", {}),
    Comparison("e", "regions", "whole", {}),
)


def read_results(folder: Path) -> dict[str, dict[int, dict]]:
    """experiment -> seed -> result. `ValueError` where runs differ in split or samples and cannot share a table."""
    results, settings = defaultdict(dict), set()
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        results[result["experiment"]][result["seed"]] = result
        read = sum(stage["samples"] for stage in result["stages"].values())
        settings.add((result["split"], read, *sorted({topic["n"] for topic in result["topics"].values()})))
    if len(settings) > 1:
        raise ValueError(f"{folder} mixes runs of (split, training samples, samples a topic) {settings}; delete some.")
    return results


def column_of(topic: str) -> str:
    """Topics of lab.small stand in the column of their larger kin."""
    return topic.removeprefix("small ")


def scores_of(result: dict, metric: str) -> dict[str, float]:
    """column or group -> score of one run; groups are averages over the topics that the run has."""
    scores = {column_of(topic): row[metric] for topic, row in result["topics"].items() if metric in row}
    if not scores:
        return {}
    groups = {name: mean(scores[c] for c in columns if c in scores) for name, columns in GROUPS.items()}
    return scores | groups


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (NaN for a single value)."""
    return mean(values), stdev(values) if len(values) > 1 else float("nan")


def cell(values: list[float], sign: str = "") -> str:
    """ "0.812 ± 0.014"; a dash where there is nothing."""
    if not values:
        return "–"
    average, deviation = spread(values)
    return f"{average:{sign}.3f}" + (f" ± {deviation:.3f}" if len(values) > 1 else "")


def score_table(results: dict, metric: str, order: list[str]) -> str:
    """A row an experiment: mean ± sample standard deviation over its seeds, a column a topic."""
    lines = ["| run | seeds | " + " | ".join(TITLES) + " |", "|---" * (len(TITLES) + 2) + "|"]
    for name in (n for n in order if n in results):
        scores = [scores_of(result, metric) for result in results[name].values()]
        cells = [cell([s[c] for s in scores if c in s]) for c in (*COLUMNS, "all")]
        lines.append(f"| {name} | {sum(map(bool, scores))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(results: dict, comparison: Comparison, group: str) -> list[float]:
    """Accuracy minus the baseline's, seed by seed (a seed has the same data and order in both)."""
    ours, base = (results.get(name, {}) for name in (comparison.name, comparison.baseline))
    seeds = sorted(set(ours) & set(base))
    return [scores_of(ours[s], "accuracy")[group] - scores_of(base[s], "accuracy")[group] for s in seeds]


def interval(values: list[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean (Student's t)."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def difference_table(results: dict) -> str:
    lines = [
        "| question | run | against | scenes | text | all | 95 % interval of all | the paper, points |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for comparison in COMPARISONS:
        found = {group: differences(results, comparison, group) for group in GROUPS}
        if found["all"]:
            cells = [cell(values, "+") for values in found.values()]
            half = f"± {interval(found['all']):.3f}" if len(found["all"]) > 1 else "–"
            paper = ", ".join(f"{name} {value:+.2f}" for name, value in comparison.paper.items()) or "no figures"
            row = [comparison.question, comparison.name, comparison.baseline, *cells, half, paper]
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def cost_table(results: dict, order: list[str]) -> str:
    lines = ["| run | trained in stage 2, adapter | CPU-seconds of training | loss at the end |", "|---|---|---|---|"]
    for name in (n for n in order if n in results):
        runs = list(results[name].values())
        adapter = runs[0]["stages"]["stage2"]["trained_parameters"]["multi_modal_projector"]
        seconds = mean(run["cpu_seconds"]["training"] for run in runs)
        loss = cell([run["stages"]["stage2"]["final_loss"] for run in runs])
        lines.append(f"| {name} | {adapter:,} | {seconds:.0f} | {loss} |")
    return "\n".join(lines)


def draw(results: dict, path: Path) -> None:
    """Left: our differences, a dot a seed, a bar for the mean. Right: the paper's for the same rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [c for c in COMPARISONS if differences(results, c, "all")]
    size = (9.5, 0.68 * len(rows) + 1.4)
    figure, (ours, paper) = plt.subplots(1, 2, sharey=True, figsize=size, layout="constrained")
    for y, comparison in enumerate(rows):
        for group, colour, lift in (("scenes", "#c2571a", -0.18), ("text", "#1f5fa8", 0.18)):
            values = [100 * v for v in differences(results, comparison, group)]
            label = group if y == 0 else None
            ours.plot(values, [y + lift] * len(values), "o", color=colour, alpha=0.5, markersize=6, mew=0, label=label)
            ours.plot([mean(values)] * 2, [y + lift - 0.13, y + lift + 0.13], color=colour, linewidth=2.5)
        for i, (name, value) in enumerate(comparison.paper.items()):
            lift = 0.2 * (i - (len(comparison.paper) - 1) / 2)
            paper.plot(value, y + lift, "s", color="#444444", markersize=4)
            paper.annotate(name, (value, y + lift), (5, 0), textcoords="offset points", va="center", fontsize=7)
        if not comparison.paper:
            paper.text(0, y, " no figures", va="center", fontsize=7, color="#777777")
    ours.set_yticks(range(len(rows)), [f"({c.question}) {c.name}\nminus {c.baseline}" for c in rows])
    ours.invert_yaxis()
    ours.legend(loc="best", fontsize=8)
    for axis, title in ((ours, "here: accuracy, a dot a seed, a bar the mean"), (paper, "the paper")):
        axis.set(title=title, xlabel="difference, points")
        axis.axvline(0, color="#999999", linewidth=1)
        axis.spines[["top", "right"]].set_visible(False)
    paper.margins(x=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def report(results_folder: Path, document: Path, order: list[str]) -> None:
    """Writes the tables between the marks of `document`, and the figure beside it."""
    results = read_results(results_folder)
    text = document.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise ValueError(f"{document} must hold the lines {MARKS[0]!r} and {MARKS[1]!r}; the tables go between them.")
    parts = {
        "Accuracy": score_table(results, "accuracy", order),
        "Accuracy with the images exchanged: what the questions alone give away": score_table(
            results, "blind_accuracy", order
        ),
        "Edit distance (lower is better)": score_table(results, "edit_distance", order),
        "Differences in accuracy, seed by seed": difference_table(results),
        "Cost": cost_table(results, order),
    }
    tables = "\n\n".join(f"**{title}**\n\n{table}" for title, table in parts.items())
    write_whole(document, f"{before}{MARKS[0]}\n{tables}\n{MARKS[1]}{after}")
    draw(results, document.with_suffix(".svg"))
