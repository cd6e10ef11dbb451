"""The page of the scoreboard: tables, what they say, and the figure, all from the rows."""

from __future__ import annotations

import statistics
from pathlib import Path

from marked_pages import rewrite
from matplotlib.figure import Figure
from scoreboard_sets import SIMULATED

from connector.figures.style import GROUPS, INK, MUTED, styled
from connector.files import atomic

METHODS = ("ours, fit", "ours, sampled", "LINT", "published", "LDS", "PCA + ridge")
# Key -> (column, whether larger is better, digits). time_scale_error and counts are told otherwise below.
COLUMNS = {
    "rate_r2": ("rate R²", True),
    "state_r2": ("state R²", True),
    "cycle_consistency": ("cycle", True),
    "time_scale_error": ("time scale", False),
    "attractors_found": ("found", True),
    "attractors_false": ("false", False),
    "dissimilarity": ("D", False),
    "coverage": ("coverage", None),
}
OF_SPIKES = {"co_smoothing": ("co-smoothing", True), "few_shot": ("few-shot", True)}
# Cited, not measured here: (rate R², state R², co-bps, cycle consistency) of the Computation-through-Dynamics Benchmark, 3-bit
# flip-flop: a noisy GRU network as teacher, spikes of it as data, rates and states inferred with the spikes of the trial itself.
CITED = {
    "GRU": (0.969, 0.962, 0.1358, 0.918),
    "LFADS": (0.930, 0.881, 0.1292, 0.721),
    "LDS": (0.244, 0.488, 0.0353, 0.722),
}
_WORST, _LARGEST, _CLOSE = -10.0, 100.0, 0.005


def number(value: float | None) -> str:
    if value is None:
        return "—"
    if not _WORST <= value <= _LARGEST:
        return f"< {_WORST:g}" if value < _WORST else f"> {_LARGEST:g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"


def cell(row: dict, key: str) -> str:
    """A number with its null in brackets; — where it is not defined."""
    score = row["scores"].get(key)
    if score is None:
        return "—"
    if key.startswith("attractors"):
        null = "" if score["null"] is None else f" ({score['null']:.0f})"
        return f"{score['value']:.0f}{' ' + score['note'] if score['note'] else ''}{null}"
    null = "" if score["null"] is None else f" ({number(score['null'])})"
    return number(score["value"]) + null


def cost_cell(row: dict) -> str:
    seconds = f"{row['cpu_s']:.3g}" if row["cpu_s"] >= 0.1 else "< .1"
    return seconds if not row["cut"] else f"{seconds} of {row['whole_s']:,.0f}"


def ordered(rows: list[dict]) -> list[dict]:
    return sorted(rows, key=lambda row: METHODS.index(row["method"]))


def table(rows: list[dict], columns: dict) -> str:
    """A table in markdown of the rows of one set."""
    there = [key for key in columns if any(key in row["scores"] for row in rows)]
    head = ["method", *(columns[key][0] for key in there), "CPU s", "GiB"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in ordered(rows):
        lines.append([row["method"], *(cell(row, key) for key in there), cost_cell(row), f"{row['peak_gib']:.2f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def best(rows: list[dict], key: str, larger: bool) -> tuple[str, float]:
    """Method and value of the best row."""
    values = [(row["scores"][key]["value"], row["method"]) for row in rows if key in row["scores"]]
    value, method = max(values) if larger else min(values)
    return method, value


def lost(rows: list[dict], columns: dict) -> list[str]:
    """Where no row of ours is the best, a clause each, told from the numbers."""
    said = []
    for key, (title, larger) in columns.items():
        ours = [row for row in rows if row["method"].startswith("ours") and key in row["scores"]]
        if larger is None or not any(key in row["scores"] for row in rows) or not ours:
            continue
        method, value = best(rows, key, larger)
        own_method, own = best(ours, key, larger)
        behind = value - own if larger else own - value
        if not method.startswith("ours") and behind > (_CLOSE if not key.startswith("attractors") else 0.5):
            said.append(f"{title}: {_value(key, value)} of {method}, {_value(key, own)} of {own_method}")
    sampled = [row for row in rows if row["method"] == "ours, sampled" and "attractors_false" in row["scores"]]
    if (
        sampled
        and (wrong := sampled[0]["scores"]["attractors_false"]["value"]) > best(rows, "attractors_false", False)[1]
    ):
        said.append(f"false attractors of ours, sampled: {wrong:.0f}")
    return said


def _value(key: str, value: float) -> str:
    return f"{value:.0f}" if key.startswith("attractors") else number(value)


def verdicts(by_set: dict[str, list[dict]]) -> list[str]:
    """A line a set: where ours is not the best."""
    lines = []
    for name, rows in by_set.items():
        clauses = lost(rows, COLUMNS | OF_SPIKES)
        if clauses:
            lines.append(f"- **{name}**: ours is not the best in {'; '.join(clauses)}.")
    with_ours = [name for name, rows in by_set.items() if any(row["method"].startswith("ours") for row in rows)]
    whole = [name for name in with_ours if not lost(by_set[name], COLUMNS | OF_SPIKES)]
    if whole:
        others = "the others that it was run on" if len(whole) < len(with_ours) else "all that it was run on"
        lines.append(
            f"- {len(whole)} of {len(with_ours)} sets, {others}: ours is the best, or within {_CLOSE} of it, in every column."
        )
    return lines


def cheaper(rows: list[dict]) -> str:
    """Which methods take less CPU time than ours, whole recipes compared; a sentence, or nothing."""
    taken = {
        method: [row["whole_s"] for row in rows if row["method"] == method and "rate_r2" in row["scores"]]
        for method in METHODS
    }
    medians = {method: statistics.median(of) for method, of in taken.items() if of}
    own = medians.get("ours, fit")
    less = [
        f"{method} {value:.2g}"
        for method, value in medians.items()
        if own is not None and not method.startswith("ours") and value < own
    ]
    return (
        f"- Ours is not the cheapest: its fit takes a median of {own:.2g} CPU seconds, {', '.join(less)}."
        if less
        else ""
    )


def missing(by_set: dict[str, list[dict]]) -> str:
    """Rows that were not run, in one sentence."""
    lacking: dict[str, list[str]] = {}
    for name, rows in by_set.items():
        there = {row["method"] for row in rows}
        expected = ["ours, fit", "LDS", "PCA + ridge"]
        if any("rate_r2" in row["scores"] for row in rows):
            expected += ["ours, sampled", "LINT"]
        if any("dissimilarity" in row["scores"] for row in rows):
            expected.append("published")
        for method in expected:
            if method not in there:
                lacking.setdefault(method, []).append(name)
    return " ".join(f"Not run yet on {', '.join(names)}: {method}." for method, names in lacking.items())


def totals(by_set: dict[str, list[dict]]) -> str:
    """Medians over the sets that ours was run on, of what every method has, as a table."""
    by_set = {name: rows for name, rows in by_set.items() if any(row["method"] == "ours, fit" for row in rows)}
    keys = ("rate_r2", "state_r2", "cycle_consistency", "time_scale_error")
    lines = [
        ["method", "sets", *(COLUMNS[key][0] for key in keys), "found of all", "false", "CPU s"],
        ["---", *["---:"] * 8],
    ]
    for method in METHODS:
        rows = [
            row for some in by_set.values() for row in some if row["method"] == method and "rate_r2" in row["scores"]
        ]
        if not rows:
            continue
        values = {key: [row["scores"][key]["value"] for row in rows if key in row["scores"]] for key in keys}
        cells = [number(statistics.median(values[key])) if values[key] else "—" for key in keys]
        found = [row["scores"]["attractors_found"] for row in rows if "attractors_found" in row["scores"]]
        true = sum(int(one["note"].split()[-1]) for one in found)
        wrong = sum(row["scores"]["attractors_false"]["value"] for row in rows if "attractors_false" in row["scores"])
        spent = statistics.median(row["whole_s"] for row in rows)
        lines.append(
            [
                method,
                f"{len(rows)}",
                *cells,
                f"{sum(one['value'] for one in found):.0f} of {true}",
                f"{wrong:.0f}",
                f"{spent:,.3g}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def short_rows(rows: list[dict]) -> str:
    """What was cut short, in one sentence."""
    runs = [row["cut"]["lrrnn"] for row in rows if row["method"] == "LINT" and "lrrnn" in row["cut"]]
    if not runs:
        return ""
    epochs, whole = (
        [done for done, _ in runs],
        [row["whole_s"] for row in rows if row["method"] == "LINT" and "lrrnn" in row["cut"]],
    )
    return (
        f"LINT and the published recipe were cut short on {len(runs)} set{'s' * (len(runs) > 1)}. LINT ran {_between(epochs)} of {runs[0][1]} "
        f"epochs there, and would take {_between(whole)} CPU seconds in all. The tables give the seconds that were run, of those that the "
        "whole recipe would take. These rows are not what the two methods reach in the end."
    )


def _between(values: list[float]) -> str:
    low, high = (f"{value:,.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def cited() -> str:
    lines = ["| cited | rate R² | state R² | co-bps | cycle consistency |", "|---|---:|---:|---:|---:|"]
    for method, values in CITED.items():
        lines.append(f"| {method} | " + " | ".join(f"{value:g}" for value in values) + " |")
    return "\n".join(lines)


def text_of(rows: list[dict], about: str, spent: float) -> str:
    """What stands between the markers of the page."""
    by_set: dict[str, list[dict]] = {}
    for row in sorted(rows, key=lambda row: (row["set"] not in SIMULATED, [*SIMULATED, row["set"]].index(row["set"]))):
        by_set.setdefault(row["set"], []).append(row)
    lines = [
        f"{about}. All rows together took {spent / 60:.1f} CPU minutes, sets and scores included.",
        short_rows(rows),
        missing(by_set),
    ]
    lines += ["![Rate R², state R², true and false attractors of each method](scoreboard.png)"]
    lines += [
        "### All simulated sets",
        "Medians over the sets that ours was run on; attractors are summed.",
        totals(by_set),
    ]
    lines += ["### Where ours is not the best", "\n".join([*verdicts(by_set), cheaper(rows)])]
    for name, some in by_set.items():
        spikes = any("few_shot" in row["scores"] for row in some)
        lines += [f"### {name}", table(some, OF_SPIKES if spikes else COLUMNS)]
        if name == "flipflop3":
            lines += ["Cited beside, of another teacher (a noisy GRU network) and from its spikes:", cited()]
    return "\n\n".join(line for line in lines if line)


def drawn_value(score: dict) -> float:
    """A score as it is drawn: of attractors found the share of the true ones."""
    return score["value"] / int(score["note"].split()[-1]) if score["note"].startswith("of ") else score["value"]


@styled
def picture(rows: list[dict]) -> Figure:
    """Four panels: a measure each, sets along the axis, a mark for each method."""
    there = {row["set"] for row in rows if "rate_r2" in row["scores"]}
    sets = [*(name for name in SIMULATED if name in there), *sorted(there - set(SIMULATED))]
    figure = Figure(figsize=(9.5, 6.2), layout="constrained")
    axes = list(figure.subplots(2, 2, sharex=True).flat)
    for ax, key in zip(axes, ("rate_r2", "state_r2", "attractors_found", "attractors_false")):
        for j, method in enumerate(METHODS):
            points = [
                (sets.index(row["set"]) + (j - 2.5) * 0.12, drawn_value(row["scores"][key]))
                for row in rows
                if row["method"] == method and row["set"] in sets and key in row["scores"]
            ]
            if points:
                x, y = zip(*points)
                low = 0.0
                shown = [max(value, low) for value in y]
                ax.plot(x, shown, "o", ms=4.5, color=GROUPS[j], label=method, clip_on=False)
                below = [(a, b) for a, b in zip(x, y) if b < low]
                if below:
                    ax.plot([a for a, _ in below], [low] * len(below), "v", ms=6, color=GROUPS[j], clip_on=False)
        titles = {"attractors_found": "share of the true attractors found", "attractors_false": "false attractors"}
        ax.set_title(titles.get(key, COLUMNS[key][0]))
        ax.set_xticks(range(len(sets)), sets, rotation=40, ha="right")
        if key != "attractors_false":
            ax.set_ylim(0, 1.02)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
    figure.supxlabel("triangles: below 0", fontsize=8, color=MUTED)
    for ax in axes:
        ax.tick_params(colors=INK)
    return figure


def write_page(page: Path, rows: list[dict], about: str, spent: float) -> str:
    """Rewrite the results on a page, and the figure beside it; returns what was written."""
    text = text_of(rows, about, spent)
    rewrite(page, "scoreboard", text)
    if rows:
        with atomic(page.with_suffix(".png")) as aside:
            picture(rows).savefig(aside, format="png", dpi=110)
    return text
