"""The rules side by side: a table and a plot of what each detects, locates, diagnoses and rejects wrongly."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from jaxmodels import pages


matplotlib.use("Agg", force=False)

LARGEST_DIVERGENCE = 1e-3  # of logits that pass
LEAST_EFFECT = 1e-6  # of a mistake on the outputs, relative to their largest value
Found = Mapping[str, Any]


class Rule(NamedTuple):
    """A way to judge a pair: its name, and whether it calls a finding different."""

    name: str
    differs: Callable[[Found], bool]


OURS = "jaxmodels compare"
RULES = (
    *(Rule(f"allclose, {t:g}", lambda found, t=t: found["closeness"] > t) for t in (5e-2, 1e-2, 1e-3, 1e-5)),
    Rule(f"KL of the logits, {LARGEST_DIVERGENCE:g}", lambda found: found["divergence"] > LARGEST_DIVERGENCE),
    Rule("outputs alone, measured tolerance", lambda found: found["outputs_differ"]),
    Rule(OURS, lambda found: found["verdict"] == "different"),
)


def share(found: Sequence[Found], holds: Callable[[Found], bool]) -> str:
    """How many of how many, and the share."""
    if not found:
        return "–"
    count = sum(map(holds, found))
    return f"{count} of {len(found)} ({count / len(found):.1%})"


def table(results: Mapping[str, Any]) -> str:
    """The rules as Markdown, and below it the numbers of the run."""
    wrong, right = _parts(results)
    lines = ["| rule | detected | located | diagnosed | false alarms |", "| --- | --: | --: | --: | --: |"]
    for rule in RULES:
        cells = [share(wrong, rule.differs), "–", "–", share(right, rule.differs)]
        if rule.name == OURS:
            cells[1] = share(wrong, lambda found: found["located"])
            cells[2] = share(wrong, lambda found: found["diagnosed"])
        lines.append(f"| {rule.name} | {' | '.join(cells)} |")
    kinds, architectures = ({found[key] for found in wrong} for key in ("kind", "architecture"))
    seconds = sorted(found["seconds"] for found in [*wrong, *right]) or [0.0]
    idle = sum(bool(found["kind"]) and not _has_effect(found) for found in results["cases"].values())
    without = (
        f"{idle} more mistake{' has' if idle == 1 else 's have'} no effect beyond rounding. " if idle else ""
    )
    closing = (
        f"{len(wrong)} cases: {len(kinds)} kinds of mistake in {len(architectures)} architectures with random weights, "
        f"and {len(right)} correct ports. {without}"
        f"A comparison takes {seconds[len(seconds) // 2]:.1f} s in the median, diagnosis included. "
        f"{results['environment']}"
    )
    return "\n".join(lines) + f"\n\n{closing}\n"


def summary(results: Mapping[str, Any]) -> str:
    """What README says of them."""
    wrong, right = _parts(results)
    strictest = RULES[3]
    architectures = {found["architecture"] for found in wrong}
    return (
        f"Of {len(wrong)} mistakes planted in ports of {len(architectures)} architectures it found "
        f"{sum(map(RULES[-1].differs, wrong))}, placed {sum(found['located'] for found in wrong)} and named "
        f"{sum(found['diagnosed'] for found in wrong)}; of {len(right)} correct ports it rejected "
        f"{sum(map(RULES[-1].differs, right))}. `np.allclose` of the outputs at {strictest.name.split()[-1]} found "
        f"{sum(map(strictest.differs, wrong))} and rejected {sum(map(strictest.differs, right))} "
        "([how it was measured](docs/compare.md#how-many-mistakes-it-finds)).\n"
    )


def missed(results: Mapping[str, Any]) -> str:
    """The cases that were not detected, located or diagnosed: one line each, for whoever works on them."""
    wrong, right = _parts(results)
    lines = []
    for found in wrong:
        faults = [key for key in ("located", "diagnosed") if not found[key]]
        faults += ["detected"] if found["verdict"] != "different" else []
        if faults:
            lines.append(
                f"not {', '.join(faults)}: {found['architecture']}, {found['kind']} at {found['place']}: "
                f"{found['detail']} | {found['diagnosis']}"
            )
    lines += [
        f"false alarm: {found['architecture']}: {found['detail']}"
        for found in right
        if RULES[-1].differs(found)
    ]
    return "\n".join(lines)


def figure(results: Mapping[str, Any]) -> Figure:
    """The share of mistakes that each rule detects, and of correct ports that it rejects."""
    wrong, right = _parts(results)
    with matplotlib.rc_context(pages.plot_settings()):
        drawn = Figure(figsize=(8, 3.2), layout="constrained")
        axes = drawn.subplots()
        for place, rule in enumerate(reversed(RULES)):
            detected = 100 * sum(map(rule.differs, wrong)) / max(len(wrong), 1)
            alarms = 100 * sum(map(rule.differs, right)) / max(len(right), 1)
            labels = ("mistakes detected", "correct ports rejected") if place == 0 else (None, None)
            axes.barh(place + 0.18, detected, 0.36, color=pages.JAX, label=labels[0])
            axes.barh(place - 0.18, alarms, 0.36, color=pages.TORCH, label=labels[1])
            axes.text(detected + 1, place + 0.18, f"{detected:.0f}%", va="center", fontsize=8)
            axes.text(alarms + 1, place - 0.18, f"{alarms:.0f}%", va="center", fontsize=8)
        axes.set_yticks(range(len(RULES)), [rule.name for rule in reversed(RULES)])
        axes.set_xlim(0, 108)
        axes.set_xlabel("% of the cases")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.4, 1), ncols=2)
    return drawn


def _parts(results: Mapping[str, Any]) -> tuple[list[Found], list[Found]]:
    found = list(results["cases"].values())
    wrong = [one for one in found if one["kind"] and _has_effect(one)]
    return wrong, [one for one in found if not one["kind"]]


def _has_effect(found: Found) -> bool:
    """A mistake that moves the outputs by no more than rounding is none: a scale in front of a norm, for example."""
    return found["effect"] is None or found["effect"] > LEAST_EFFECT
