"""The text that says what changed between two runs of the benchmarks."""

from benchmarks.changes import changes_since
from tests.benchmarks.sample_results import cell, results


def pair(eager: float, jax: float, **more: object) -> list[dict]:
    return [cell("eager", eager, **more), cell("jax", jax, again_ms=jax * 1.02, **more)]


def test_a_slower_jax_changes_the_ratio_and_a_slower_machine_does_not() -> None:
    earlier = results(*pair(10.0, 8.0), *pair(10.0, 8.0, mode="train"))
    now = results(*pair(10.0, 10.0), *pair(11.0, 8.8, mode="train"))
    text = changes_since(earlier, now)
    assert "glom small forward float32: JAX / eager 0.80 → 1.00 (+25%, noise 4%); JAX 8.00 → 10.00 ms" in text
    train = next(line for line in text.splitlines() if "train" in line)
    assert "JAX / eager" not in train  # the ratio is what it was
    assert "eager 10.00 → 11.00 ms (+10%, noise 4%)" in train
    assert "0 of 2 rows did not change" in text


def test_less_than_the_noise_of_both_is_no_change() -> None:
    text = changes_since(results(*pair(10.0, 8.0)), results(*pair(10.0, 8.24)))  # 3% against 2% + 2%
    assert "→" not in text
    assert "1 of 1 rows did not change by more than the noise" in text


def test_another_machine_and_other_versions_are_named_and_only_ratios_compared() -> None:
    earlier, now = results(*pair(10.0, 8.0)), results(*pair(20.0, 20.0))
    now["environment"] |= {"device": "a faster one", "jax": "2"}
    text = changes_since(earlier, now)
    assert "another machine: device a processor → a faster one" in text
    assert "other versions: jax 1 → 2" in text
    assert "times in ms are not compared; ratios are" in text
    assert "JAX / eager 0.80 → 1.00" in text
    assert " ms (" not in text


def test_rows_and_workloads_that_are_not_in_both_are_named() -> None:
    earlier = results(*pair(10.0, 8.0), *pair(10.0, 8.0, model="colt5"), workloads={"glom small": "dim=64"})
    now = results(*pair(10.0, 1.0), *pair(10.0, 8.0, model="mammut"), workloads={"glom small": "dim=32"})
    text = changes_since(earlier, now)
    assert "only in the earlier run: colt5 small forward float32" in text
    assert "only in this run: mammut small forward float32" in text
    assert "another workload under the same name, not compared: glom small" in text
    assert "0 of 0 rows" in text
