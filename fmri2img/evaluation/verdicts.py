"""What the audit decides, by rules with intervals: each says what a decoder must show, and whether this one has.

A rule over several metrics takes the best of them at intervals widened to hold together (Bonferroni), so that a decoder
that shows nothing is cleared by luck in at most one of forty audits, the lower half of 5 %.
"""

from collections.abc import Mapping

from fmri2img.evaluation.audit_parts import CHANCE
from fmri2img.evaluation.audit_results import ByCluster, Control, DimensionsKept, Finding, NearTraining
from fmri2img.evaluation.intervals import Estimate

COLLAPSED = 0.1
"""Share of the true features' effective dimensions below which predictions have collapsed."""
LEAKED = 0.01
"""Share of test pictures with a near-duplicate in training from which on a split leaks."""


def decide(
    controls: Mapping[str, Control],
    by_cluster: Mapping[str, ByCluster],
    dimensions: Mapping[str, DimensionsKept],
    near: Mapping[str, NearTraining],
) -> list[Finding]:
    """All findings, in the order in which they matter."""
    return [
        uses_responses(controls["shuffled"]),
        beats_a_look_up(controls["nearest"], near),
        tells_similar_apart(by_cluster),
        keeps_dimensions(dimensions),
        split_leaks(near),
    ]


def uses_responses(shuffled: Control) -> Finding:
    """Found unless a metric that identifies is above what shuffled responses score."""
    best = _best(shuffled.strict)
    if best is not None and shuffled.strict[best].low > 0:
        told = (
            f"{_label(shuffled, best)} is {_gap(shuffled.strict[best])} above what shuffled responses score."
        )
        return Finding(name="responses", found=False, sentence=told)
    told = "No metric that identifies pictures is clearly above what shuffled responses score"
    told += "." if best is None else f"; the best is {_label(shuffled, best)}, {_gap(shuffled.strict[best])}."
    return Finding(name="responses", found=True, sentence=f"{told} Scores like these need no brain activity.")


def beats_a_look_up(nearest: Control, near: Mapping[str, NearTraining]) -> Finding:
    """Found where most predictions are training pictures, or no metric is above the nearest training picture's."""
    copied = [name for name, value in near.items() if value.copies.low > 0.5]
    if copied:
        share = near[copied[0]].copies
        told = (
            f"{share.value:.0%} of the predictions ({share.low:.0%} to {share.high:.0%}) are those of a training "
            f"picture by {copied[0]}: the decoder looks pictures up."
        )
        return Finding(name="look-up", found=True, sentence=told)
    best = _best(nearest.strict)
    if best is not None and nearest.strict[best].low > 0:
        told = f"{_label(nearest, best)} is {_gap(nearest.strict[best])} above that of the nearest training picture."
        return Finding(name="look-up", found=False, sentence=told)
    told = "No metric that identifies pictures is clearly above that of the nearest training picture"
    told += "." if best is None else f"; the best is {_label(nearest, best)}, {_gap(nearest.strict[best])}."
    return Finding(name="look-up", found=True, sentence=f"{told} A look-up would score as well.")


def tells_similar_apart(by_cluster: Mapping[str, ByCluster]) -> Finding:
    """Found unless a metric identifies pictures among those of their own cluster."""
    within = {name: value.strict for name, value in by_cluster.items() if value.strict is not None}
    if not within:
        told = "No cluster holds two pictures: use fewer clusters to ask whether similar pictures are told apart."
        return Finding(name="clusters", found=True, sentence=told)
    best = max(within, key=lambda name: within[name].low)
    found, label = within[best], by_cluster[best].label
    told = f"{label} within clusters is {found.value:.1%} ({found.low:.1%} to {found.high:.1%}), chance 50%."
    if found.low > CHANCE:
        return Finding(name="clusters", found=False, sentence=f"Similar pictures are told apart: {told}")
    told = f"Similar pictures are not told apart: the best, {told} Scores may be those of the cluster alone."
    return Finding(name="clusters", found=True, sentence=told)


def keeps_dimensions(dimensions: Mapping[str, DimensionsKept]) -> Finding:
    """Found where a space's predictions keep clearly less than a tenth of the effective dimensions."""
    lines = [
        f"{name} {kept.predicted:.1f} of {kept.true:.1f} ({kept.ratio:.0%}, {kept.low:.0%} to {kept.high:.0%})"
        for name, kept in dimensions.items()
    ]
    collapsed = [name for name, kept in dimensions.items() if kept.high < COLLAPSED]
    told = f"Effective dimensions, predicted of true: {'; '.join(lines)}."
    if collapsed:
        told += f" {', '.join(collapsed)} collapsed: below {COLLAPSED:.0%}."
    return Finding(name="dimensions", found=bool(collapsed), sentence=told)


def split_leaks(near: Mapping[str, NearTraining]) -> Finding:
    """Found where clearly more than one test picture in a hundred has a near-duplicate in training."""
    lines = [
        f"{name} {value.duplicates.value:.1%} ({value.duplicates.low:.1%} to {value.duplicates.high:.1%})"
        for name, value in near.items()
    ]
    leaking = [name for name, value in near.items() if value.duplicates.low > LEAKED]
    told = f"Test pictures with a near-duplicate in training: {'; '.join(lines)}."
    return Finding(name="near-duplicates", found=bool(leaking), sentence=told)


def _best(differences: Mapping[str, Estimate]) -> str | None:
    return max(differences, key=lambda name: differences[name].low, default=None)


def _label(control: Control, metric: str) -> str:
    return control.metrics[metric].label


def _gap(found: Estimate) -> str:
    low, value, high = (f"{100 * part:.1f}" for part in (found.low, found.value, found.high))
    return f"{value} points ({low} to {high})"
