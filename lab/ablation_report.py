"""Tables and figure of lab.ablations, from the files of its finished runs, beside the paper's figures."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from omnifusion_hf.figures import new_figure
from omnifusion_hf.io import write_whole
from omnifusion_hf.markdown import table


COLUMNS = ("colour", "shape", "count", "digit", "text, 1 character", "text, 2 characters", "text, 3 characters")
TITLES = ("colour", "shape", "count", "digit", "text 1", "text 2", "text 3", "all")
GROUPS = {"scenes": COLUMNS[:3], "text": COLUMNS[4:], "all": COLUMNS}
MARKS = ("<!-- figures: python -m lab.ablations -->", "<!-- end of figures -->")


@dataclass(frozen=True)
class Comparison:
    """The change from `baseline` to `name` that answers a question, and the paper's differences in points."""

    question: str
    name: str
    baseline: str
    paper: dict[str, float]


# Section 4 of arXiv 2404.06212 compares its mixes with CLIP L/14 and the transformer adapter; its figures with the MLP
# differ only in MMMU (30.90 instead of 32.30). Its grid run also has another encoder (InternViT whole, CLIP grid). It
# gives no figures for a single stage or for regions.
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
    """experiment -> seed -> result. Raises `ValueError` for runs that differ in split or samples."""
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
    """The column of a topic; topics of lab.small share it with the plain topic of the same kind."""
    return topic.removeprefix("small ")


def scores_of(result: dict, metric: str) -> dict[str, float]:
    """column or group -> score of one run; a group's score is the mean over those of its topics that the run has."""
    scores = {column_of(topic): row[metric] for topic, row in result["topics"].items() if metric in row}
    if not scores:
        return {}
    groups = {name: mean(scores[c] for c in columns if c in scores) for name, columns in GROUPS.items()}
    return scores | groups


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (NaN for a single value)."""
    return mean(values), stdev(values) if len(values) > 1 else float("nan")


def cell(values: list[float], sign: str = "") -> str:
    """Mean and deviation as "0.812 ± 0.014"; a dash for no values."""
    if not values:
        return "–"
    average, deviation = spread(values)
    return f"{average:{sign}.3f}" + (f" ± {deviation:.3f}" if len(values) > 1 else "")


def score_table(results: dict, metric: str, order: list[str]) -> str:
    """A row per experiment: mean ± sample standard deviation over its seeds, a column per topic."""
    rows = []
    for name in (n for n in order if n in results):
        scores = [scores_of(result, metric) for result in results[name].values()]
        cells = [cell([s[c] for s in scores if c in s]) for c in (*COLUMNS, "all")]
        rows.append([name, sum(map(bool, scores)), *cells])
    return table(["run", "seeds", *TITLES], rows)


def differences(results: dict, comparison: Comparison, group: str) -> list[float]:
    """Accuracy minus the baseline's for each seed; both runs of a seed have the same data in the same order."""
    ours, base = (results.get(name, {}) for name in (comparison.name, comparison.baseline))
    seeds = sorted(set(ours) & set(base))
    return [scores_of(ours[s], "accuracy")[group] - scores_of(base[s], "accuracy")[group] for s in seeds]


def interval(values: list[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean (Student's t)."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def difference_table(results: dict) -> str:
    rows = []
    for comparison in COMPARISONS:
        found = {group: differences(results, comparison, group) for group in GROUPS}
        if found["all"]:
            cells = [cell(values, "+") for values in found.values()]
            half = f"± {interval(found['all']):.3f}" if len(found["all"]) > 1 else "–"
            paper = ", ".join(f"{name} {value:+.2f}" for name, value in comparison.paper.items()) or "no figures"
            rows.append([comparison.question, comparison.name, comparison.baseline, *cells, half, paper])
    heads = ["question", "run", "against", *GROUPS, "95 % interval of all", "the paper, points"]
    return table(heads, rows)


def cost_table(results: dict, order: list[str]) -> str:
    rows = []
    for name in (n for n in order if n in results):
        runs = list(results[name].values())
        adapter = runs[0]["stages"]["stage2"]["trained_parameters"]["multi_modal_projector"]
        seconds = mean(run["cpu_seconds"]["training"] for run in runs)
        loss = cell([run["stages"]["stage2"]["final_loss"] for run in runs])
        rows.append([name, f"{adapter:,}", f"{seconds:.0f}", loss])
    return table(["run", "trained in stage 2, adapter", "CPU-seconds of training", "loss at the end"], rows)


def draw(results: dict, path: Path) -> None:
    """Left: our differences, a dot per seed and a bar for the mean. Right: the paper's in the same rows."""
    rows = [c for c in COMPARISONS if differences(results, c, "all")]
    figure = new_figure(9.5, 0.68 * len(rows) + 1.4)
    ours, paper = figure.subplots(1, 2, sharey=True)
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
        "Accuracy with swapped images: what the questions alone give away": score_table(
            results, "blind_accuracy", order
        ),
        "Edit distance (lower is better)": score_table(results, "edit_distance", order),
        "Differences in accuracy, seed by seed": difference_table(results),
        "Cost": cost_table(results, order),
    }
    tables = "\n\n".join(f"**{title}**\n\n{content}" for title, content in parts.items())
    write_whole(document, f"{before}{MARKS[0]}\n{tables}\n{MARKS[1]}{after}")
    draw(results, document.with_suffix(".svg"))
