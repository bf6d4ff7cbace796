"""What changed between two results.json by more than the noise."""

from jaxmodels.benchmark.rows import LABELS, Results, Row, rows


MACHINE = ("device", "cores", "threads", "system")  # times in ms are compared only if these are equal
SOFTWARE = ("python", "jax", "jaxlib", "flax", "optax", "torch", "numpy", "commit")


def changes_since(earlier: Results, results: Results) -> str:
    """Which rows changed since an earlier run: JAX against eager PyTorch and, on the same machine, each time.

    The text also names differences in machine, versions and workloads, and rows that only one run has.
    """
    before, after = earlier["environment"], results["environment"]
    lines = [
        f"Compared with {before.get('date', 'an undated run')}, commit {before.get('commit') or 'unknown'}:"
    ]
    for title, keys in (("another machine", MACHINE), ("other versions", SOFTWARE)):
        different = [f"{k} {before.get(k)} → {after.get(k)}" for k in keys if before.get(k) != after.get(k)]
        if different:
            lines.append(f"  {title}: {', '.join(different)}")
    same_machine = all(before.get(key) == after.get(key) for key in MACHINE)
    if not same_machine:
        lines.append("  times in ms are not compared; ratios are")

    old, new = ({row.key: row for row in rows(r)} for r in (earlier, results))
    for title, keys in (
        ("only in the earlier run", old.keys() - new.keys()),
        ("only in this run", new.keys() - old.keys()),
    ):
        if keys:
            lines.append(f"  {title}: {', '.join(sorted(' '.join(key) for key in keys))}")
    other_workload = {key for key in old.keys() & new.keys() if _other_workload(earlier, results, *key[:2])}
    if other_workload:
        names = sorted({f"{model} {size}" for model, size, *_ in other_workload})
        lines.append(f"  another workload under the same name, not compared: {', '.join(names)}")

    compared = [key for key in new if key in old and key not in other_workload]
    changed = [line for key in compared if (line := _change(old[key], new[key], times=same_machine))]
    lines += changed
    lines.append(
        f"  {len(compared) - len(changed)} of {len(compared)} rows did not change by more than the noise"
    )
    return "\n".join(lines) + "\n"


def _change(old: Row, new: Row, *, times: bool) -> str | None:
    """One line about a row; None if nothing changed by more than the noise.

    Args:
      old, new: the row in both runs.
      times: also compare times in ms, not only the ratio of JAX to eager PyTorch.
    """
    found = []
    before, after = old.ratio("eager"), new.ratio("eager")
    if before and after:
        change, noise = after.value / before.value - 1, before.noise + after.noise
        if abs(change) > noise:
            values = f"{before.value:.2f} → {after.value:.2f}"
            found.append(f"JAX / eager {values} ({change:+.0%}, noise {noise:.0%})")
    for name, label in LABELS.items():
        medians = old.median(name), new.median(name)
        if times and medians[0] and medians[1]:
            change, noise = medians[1] / medians[0] - 1, old.noise(name) + new.noise(name)
            if abs(change) > noise:
                values = f"{medians[0]:.2f} → {medians[1]:.2f} ms"
                found.append(f"{label} {values} ({change:+.0%}, noise {noise:.0%})")
    return f"  {new.name}: {'; '.join(found)}" if found else None


def _other_workload(earlier: Results, results: Results, model: str, size: str) -> bool:
    """Whether both runs record a workload under this name, and the two differ."""
    workloads = [r.get("workloads", {}).get(f"{model} {size}") for r in (earlier, results)]
    return None not in workloads and workloads[0] != workloads[1]
