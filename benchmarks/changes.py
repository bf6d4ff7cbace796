"""What moved between two results.json by more than their noise."""

from benchmarks.report import NAMES, Results, Row, rows


MACHINE = ("device", "cores", "threads", "system")  # absolute times of different ones say nothing
SOFTWARE = ("python", "jax", "jaxlib", "flax", "optax", "torch", "numpy", "commit")


def changes_since(earlier: Results, results: Results) -> str:
    """Text: what differs in machine, versions and sizes, and which rows moved, against eager and absolutely."""
    before, after = earlier["environment"], results["environment"]
    lines = [
        f"Compared with {before.get('date', 'an undated run')}, commit {before.get('commit') or 'unknown'}:"
    ]
    for title, keys in (("another machine", MACHINE), ("other versions", SOFTWARE)):
        changes = [f"{k} {before.get(k)} → {after.get(k)}" for k in keys if before.get(k) != after.get(k)]
        if changes:
            lines.append(f"  {title}: {', '.join(changes)}")
    same_machine = all(before.get(key) == after.get(key) for key in MACHINE)
    if not same_machine:
        lines.append("  absolute times are therefore left out")

    old, new = ({row.key: row for row in rows(r)} for r in (earlier, results))
    for title, keys in (("only earlier", old.keys() - new.keys()), ("only now", new.keys() - old.keys())):
        if keys:
            lines.append(f"  {title}: {', '.join(sorted(' '.join(key) for key in keys))}")
    resized = {key for key in old.keys() & new.keys() if _resized(earlier, results, key[0], key[1])}
    if resized:
        names = sorted({f"{model} {size}" for model, size, *_ in resized})
        lines.append(f"  another workload under the same name, not compared: {', '.join(names)}")

    compared = [key for key in new if key in old and key not in resized]
    moved = [line for key in compared if (line := _moved(old[key], new[key], absolute=same_machine))]
    lines += moved
    still = len(compared) - len(moved)
    lines.append(f"  {still} of {len(compared)} rows did not move by more than the noise")
    return "\n".join(lines) + "\n"


def _moved(old: Row, new: Row, *, absolute: bool) -> str | None:
    """A line about one row, or None if nothing moved."""
    found = []
    ratios = old.ratio("eager"), new.ratio("eager")
    if ratios[0] and ratios[1]:
        change = ratios[1].value / ratios[0].value - 1
        noise = ratios[0].noise + ratios[1].noise
        if abs(change) > noise:
            values = f"{ratios[0].value:.2f} → {ratios[1].value:.2f}"
            found.append(f"JAX / eager {values} ({change:+.0%}, noise {noise:.0%})")
    for name, label in NAMES.items():
        times = old.median(name), new.median(name)
        if absolute and times[0] and times[1]:
            change, noise = times[1] / times[0] - 1, old.noise(name) + new.noise(name)
            if abs(change) > noise:
                values = f"{times[0]:.2f} → {times[1]:.2f} ms"
                found.append(f"{label} {values} ({change:+.0%}, noise {noise:.0%})")
    return f"  {new.name}: {'; '.join(found)}" if found else None


def _resized(earlier: Results, results: Results, model: str, size: str) -> bool:
    """Whether a name stands for different workloads in two files that both say for which."""
    workloads = [r.get("workloads", {}).get(f"{model} {size}") for r in (earlier, results)]
    return None not in workloads and workloads[0] != workloads[1]
