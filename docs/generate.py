"""Writes docs/metrics.md and docs/options.md from the explanations and declarations in the code.

python docs/generate.py           # after a change of an option or of a measure
python docs/generate.py --check   # exit code 1 where a page is not what the code says
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from pathlib import Path

from connector.report.glossary import METRICS
from connector.runs.describe import options_page

DOCS = Path(__file__).resolve().parent

# Where a measure is computed: the longest beginning of its key that stands here.
SOURCES = {
    "connectivity/": "connector.analysis.distances.dissimilarity",
    "connectivity/squared_error_of_n": "connector.analysis.distances.distance_of_n",
    "connectivity/r2_of_n": "connector.analysis.distances.distance_of_n",
    "connectivity/valente_dissimilarity": "connector.analysis.distances.valente_dissimilarity",
    "connectivity/determined_modes": "connector.connectivity.diagnosis.diagnose",
    "connectivity/output_shift": "connector.connectivity.drive_matching.fit_output_shift",
    "connectivity/predicted_error": "connector.connectivity.diagnosis.diagnose",
    "connectivity/entropy": "connector.connectivity.distribution.ConnectivityDistribution.entropy",
    "connectivity/groups": "connector.analysis.separated_groups.separated_groups",
    "connectivity/cell_types_p": "connector.analysis.cell_types.cell_type_test",
    "dynamics/": "connector.analysis.fields.field_error",
    "dynamics/attractors_kept": "connector.analysis.attractors.attractors_kept",
    "dynamics/stable_points": "connector.analysis.attractor_probabilities.count_attractors",
    "dynamics/several_stable_points": "connector.analysis.attractor_probabilities.count_attractors",
    "dynamics/drift_r2": "connector.analysis.fields.drift_r2",
    "lrrnn/": "connector.analysis.spike_scores",
    "lrrnn/val_loss": "connector.stages.lrrnn",
    "lrrnn/loadings_r2": "connector.stages.lrrnn.in_true_gauge",
    "lrrnn/latents_r2": "connector.stages.lrrnn.in_true_gauge",
    "lrrnn/origin_distance": "connector.stages.lrrnn.origin_distance",
    "lrrnn/posterior_": "connector.lrrnn.spikes.posterior.judge",
    "lrrnn/process_noise": "connector.lrrnn.spikes.posterior.sample_posterior",
    "lrrnn/rates_r2": "connector.analysis.explained.rates_explained",
    "lrrnn/bits_per_spike_null": "connector.analysis.spike_nulls",
    "loadings/": "connector.stages.loadings",
    "loadings/log_likelihood": "connector.connectivity.flow_selection",
    "loadings/gain_over_normal": "connector.connectivity.flow_selection",
    "loadings/gain_over_kernels": "connector.connectivity.flow_selection",
    "loadings/tail_advantage": "connector.connectivity.flow_selection",
    "outputs/": "connector.stages.outputs",
    "timing/": "connector.launch.job.all_metrics",
}
GROUPS = {
    "connectivity": "Distance to a known truth, and what the data determine",
    "dynamics": "What sampled networks do",
    "lrrnn": "Fit to the activity",
    "loadings": "Flow of the loadings",
    "outputs": "Flow of the output weights",
    "timing": "Time",
}
_SUFFIX = re.compile(r"_(standard|local)$")


def find(name: str):
    """The object of a dotted name."""
    module, attribute = name, []
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            attribute.insert(0, last)
    for part in attribute:
        found = getattr(found, part)
    return found


def source(key: str) -> str:
    """Where the measure of that key is computed, as a dotted name."""
    return SOURCES[max((prefix for prefix in SOURCES if key.startswith(prefix)), key=len)]


def metrics() -> str:
    said = [
        "# The numbers in metrics.json",
        "",
        "`metrics.json` holds one number for each key `stage/name`. The report of a run explains the same numbers where they "
        "stand. A measure that is not defined for a run is left out; it is never NaN. Distances to the truth need a "
        "simulated network, scores of spikes need spikes, and times are of stages that ran.",
        "",
        "For spikes, the model is scored with both baselines. The key alone belongs to the baseline that `lrrnn.baseline` "
        "chose (`local` by default). The other one has the suffix `_standard` or `_local`.",
        "",
        "This page is made from `connector/report/glossary.toml` by `python docs/generate.py`.",
    ]
    for group, title in GROUPS.items():
        said += ["", f"## {title}"]
        for key, metric in METRICS.items():
            if not key.startswith(f"{group}/") or _SUFFIX.sub("", key) != key:
                continue
            twins = [f"`{k.removeprefix(key)}`" for k in METRICS if k != key and _SUFFIX.sub("", k) == key]
            suffixes = f" (also {', '.join(twins)})" if twins else ""
            better = f"; {metric.direction} is better" if metric.direction in ("lower", "higher") else ""
            about = f"*Unit: {metric.unit}{better}. Computed in `{source(key)}`.*"
            said += ["", f"#### `{key}`{suffixes}", "", f"**{metric.label}.** {metric.explanation}", "", about]
    return "\n".join(said) + "\n"


PAGES = {"metrics.md": metrics, "options.md": options_page}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page is out of date")
    check, stale = parser.parse_args(arguments).check, []
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    if stale:
        print(f"{'out of date' if check else 'written'}: {', '.join(stale)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
