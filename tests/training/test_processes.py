"""Processes of training: killed at any moment, asked to stop, several that train together, on a full disk."""

import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxmodels as jm


ROOT = Path(__file__).parents[2]
KILLS = 20


@pytest.fixture(scope="module")
def fork() -> Callable[..., Any]:
    """Starts a run in a forked process, which need not import anything again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.run_in_process"])
    from tests.training.run_in_process import child

    def start(workdir: Path, steps: int, log: Path, killed_in: str = "", **settings: Any) -> Any:
        process = context.Process(target=child, args=(str(workdir), steps, settings, str(log), killed_in))
        process.start()
        return process

    return start


def command(workdir: Path, steps: int, *settings: str) -> list[str]:
    return [sys.executable, "-m", "tests.training.run_in_process", str(workdir), str(steps), *settings]


STARTED: list[subprocess.Popen[str]] = []


def start(workdir: Path, steps: int, *settings: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    STARTED.append(
        subprocess.Popen(command(workdir, steps, *settings), cwd=ROOT, text=True, stdout=pipe, stderr=pipe)
    )
    return STARTED[-1]


@pytest.fixture(autouse=True)
def _end_what_was_started() -> Iterator[None]:
    """A test that fails must not leave a run behind that trains on beside the tests after it."""
    yield
    while STARTED:
        with STARTED.pop() as process:  # closes its pipes
            process.kill()


def weights(workdir: Path) -> dict[str, np.ndarray]:
    return jm.to_state_dict(jm.from_pretrained(workdir / "model"))


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def losses(workdir: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def steps_logged(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_until(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_killed_twenty_times_and_ending_with_the_same_bits(tmp_path: Path, fork: Callable[..., Any]) -> None:
    """SIGKILL at random moments; every step saves, so that many of them fall into a save."""
    steps, draw = 150, random.Random(0)
    settings = {"checkpoint_every": 1}
    unbroken = fork(tmp_path / "unbroken", steps, tmp_path / "unbroken.log", checkpoint_every=100)
    unbroken.join()
    assert unbroken.exitcode == 0, (tmp_path / "unbroken.log").read_text()

    workdir, log = tmp_path / "killed", tmp_path / "killed.log"
    torn = 0
    for _ in range(KILLS):
        process = fork(workdir, steps, log, **settings)
        lines = steps_logged(workdir)
        wait_until(lambda p=process, before=lines: steps_logged(workdir) > before or not p.is_alive())
        time.sleep(draw.uniform(0, 0.3))
        assert process.is_alive(), log.read_text()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        torn += any("tmp" in path.name for path in (workdir / "checkpoints").iterdir())
    assert torn > 0  # at least one kill fell into a save
    process = fork(workdir, steps, log, checkpoint_every=100)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert_same_weights(tmp_path / "unbroken", workdir)
    assert losses(tmp_path / "unbroken") == losses(workdir)


@pytest.mark.parametrize("name", ["hourglass", "scalable_vit", "glom"])
def test_killed_after_a_checkpoint_in_the_export_and_in_the_report(
    tmp_path: Path, fork: Callable[..., Any], name: str
) -> None:
    """Each time the next run goes on; at the end there are the same weights, and nothing that a killed one left."""
    settings = {"name": name, "checkpoint_every": 2}
    unbroken, workdir, log = tmp_path / "unbroken", tmp_path / "killed", tmp_path / "log"
    process = fork(unbroken, 8, log, **settings)
    process.join()
    assert process.exitcode == 0, log.read_text()

    process = fork(workdir, 8, log, **settings)
    wait_until(lambda: (workdir / "checkpoints" / "2").exists() or not process.is_alive())
    assert process.is_alive(), log.read_text()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    for killed_in, left in (("export", "model/.model.safetensors.*.tmp"), ("report", ".report.html.*.tmp")):
        process = fork(workdir, 8, log, killed_in, **settings)
        process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text()
        assert list(workdir.glob(left))
        assert not (workdir / "report.html").exists()
    process = fork(workdir, 8, log, **settings)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert_same_weights(unbroken, workdir)
    assert losses(unbroken) == losses(workdir)
    assert (workdir / "report.html").exists()
    assert not list(workdir.rglob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_ends(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path / "run", 100_000, "checkpoint_every=50000")
    wait_until(lambda: steps_logged(tmp_path / "run") > 3)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert f"asked to stop ({number.name}): finishing this step, then saving" in output
    saved = int(re.search(r"stopped and saved at step (\d+)", output).group(1))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [str(saved)]
    assert losses(tmp_path / "run")[-1][0] == saved
    assert "Traceback" not in errors


def test_control_c_once_saves_and_ends(tmp_path: Path) -> None:
    process = start(tmp_path / "run", 100_000, "checkpoint_every=50000")
    wait_until(lambda: steps_logged(tmp_path / "run") > 3)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "press Ctrl-C again to end at once" in output
    assert "stopped and saved at step" in output


def test_control_c_twice_ends_at_once_even_while_compiling(tmp_path: Path) -> None:
    """While XLA compiles, no Python handler can run; the step that would be finished has not even begun."""
    process = start(tmp_path / "run", 100_000)
    wait_until(lambda: (tmp_path / "run" / "checkpoints").exists())  # the next thing is to compile
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert steps_logged(tmp_path / "run") == 0
    assert "interrupted; saved checkpoints are intact" in errors
    assert "Traceback" not in errors


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    assert (
        subprocess.run(command(tmp_path / "run", 5, "checkpoint_every=5"), cwd=ROOT, check=False).returncode
        == 0
    )
    full = subprocess.run(
        command(tmp_path / "run", 10, "checkpoint_every=6", "largest_file=4000"),
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
        env={
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        },  # or its files would be cut as well
    )
    assert full.returncode == 2
    assert "a checkpoint could not be written" in full.stderr
    assert "the checkpoint of step 5 is intact" in full.stderr
    assert "Traceback" not in full.stderr
    again = subprocess.run(
        command(tmp_path / "run", 10), cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "going on from the checkpoint of step 5" in again.stdout


def two_processes(workdir: Path, steps: int, *settings: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [start(workdir, steps, *settings, f"port={port}", f"process={rank}") for rank in range(2)]


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    for process in [start(tmp_path / "one", 6), *two_processes(tmp_path / "two", 6)]:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    ours, theirs = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    np.testing.assert_allclose([x for _, x in ours], [x for _, x in theirs], rtol=1e-5)
    one_weights, two_weights = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key in one_weights:
        np.testing.assert_allclose(one_weights[key], two_weights[key], rtol=0, atol=1e-3, err_msg=key)


def test_sigterm_to_one_of_two_processes_stops_both_at_the_same_step(tmp_path: Path) -> None:
    processes = two_processes(tmp_path / "run", 100_000, "checkpoint_every=50000")
    wait_until(lambda: steps_logged(tmp_path / "run") > 3)
    processes[1].send_signal(signal.SIGTERM)
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [143, 143], results[0][1] + results[1][1]
    saved = int(re.search(r"stopped and saved at step (\d+)", results[0][0]).group(1))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [str(saved)]
    again = two_processes(tmp_path / "run", saved + 2)
    results = [process.communicate(timeout=120) for process in again]
    assert [process.returncode for process in again] == [0, 0], results[0][1] + results[1][1]
    assert f"going on from the checkpoint of step {saved}" in results[0][0]
    assert [step for step, _ in losses(tmp_path / "run")] == list(range(1, saved + 3))
