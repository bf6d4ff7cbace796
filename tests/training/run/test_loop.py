"""A whole run: its files, its continuation, its refusals."""

import json
import shutil
import sys
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jaxmodels as jm
from jaxmodels.training.experiment import Experiment
from jaxmodels.training.mesh import HostsConfig, MeshConfig
from jaxmodels.training.optimizer import OptimizerConfig
from jaxmodels.training.run.loop import train
from jaxmodels.training.run.workdir import Workdir
from tests.training.toy_task import ToyTask


pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ONE = MeshConfig(data=1)
# Products of a step: 4 patches of 48 numbers, half of them left out, 16 wide; 4 classes; all 8 images with each other.
# The backward pass takes twice as many as the forward pass.
FLOP = 3 * 2 * 8 * (4 * 48 * 16 + 2 * (16 * 48 + 2 * 2 * 2 * 8 + 16 * 16 + 2 * 16 * 16) + 16 * 4 + 8 * 4)
UNTIMED = (
    "examples_per_second",
    "images_per_second",
    "step_seconds",
    "data_wait_seconds",
    "flop_per_second",
    "seconds",
)


@dataclass(frozen=True, kw_only=True)
class ToyExperiment(Experiment):
    width: int = 16  # stands for the configuration of a model
    poison: int | None = None

    def task(self) -> Any:
        return ToyTask(patch_dropout=0.5, poison=self.poison)


def experiment(workdir: Path, **changes: Any) -> ToyExperiment:
    settings: dict[str, Any] = {
        "workdir": workdir,
        "steps": 12,
        "batch_size": 8,
        "mesh": ONE,
        "evaluate_every": 6,
    }
    return ToyExperiment(**settings | changes)


def run(experiment: Experiment) -> tuple[int, str]:
    """Exit status and everything that was output."""
    out = StringIO()
    status = train(experiment, preset="toy", console=Console(file=out, width=200))
    return status, out.getvalue()


def metrics(workdir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in UNTIMED} for line in lines]


def weights(workdir: Path) -> dict[str, np.ndarray]:
    return jm.to_state_dict(jm.from_pretrained(workdir / "model"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    workdir = tmp_path_factory.mktemp("run") / "workdir"
    status, output = run(experiment(workdir))
    assert status == 0
    return workdir, output


def test_what_a_run_leaves(finished: tuple[Path, str]) -> None:
    workdir, output = finished
    lines = metrics(workdir)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert [line["step"] for line in lines if "validation_accuracy" in line] == [6, 12]
    timed = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(UNTIMED) <= timed.keys()
    assert 0 <= timed["data_wait_seconds"] <= timed["step_seconds"]
    assert timed["flop_per_second"] * timed["step_seconds"] == pytest.approx(FLOP, rel=0.01)
    assert "share_of_peak" not in timed  # a CPU's is not known
    assert {path.name for path in (workdir / "model").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessing.json",
        "decoder.safetensors",
    }
    results = json.loads((workdir / "results.json").read_text())
    assert results["baselines"] == {"chance": {"accuracy": 0.25}}
    assert results["test"]["accuracy"] == lines[-1]["validation_accuracy"]
    page = (workdir / "report.html").read_text()
    assert "<svg" in page
    for name in ("learning rate", "gradient norm", "examples per second", "training, smoothed"):
        assert f">{name}</text>" in page
    assert "jm.from_pretrained(" in page
    assert "jm.load_preprocessing(" in page
    assert '<th class="wrap">chance</th>' in page
    assert "--optim.learning-rate" in page
    assert "test: accuracy" in output
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["11", "12"]


def test_the_saved_model_is_the_trained_one(finished: tuple[Path, str]) -> None:
    workdir, _ = finished
    task = ToyTask()
    model = jm.from_pretrained(workdir / "model")
    logits = np.asarray(model(jnp.asarray(task.images)))
    accuracy = float(np.mean(np.argmax(logits, axis=1) == task.labels))
    assert accuracy == json.loads((workdir / "results.json").read_text())["test"]["accuracy"]


def test_a_second_run_is_the_same(finished: tuple[Path, str], tmp_path: Path) -> None:
    run(experiment(tmp_path / "again"))
    assert metrics(tmp_path / "again") == metrics(finished[0])
    for key, value in weights(finished[0]).items():
        np.testing.assert_array_equal(weights(tmp_path / "again")[key], value)


def test_a_run_is_not_overwritten(finished: tuple[Path, str]) -> None:
    before = (finished[0] / "metrics.jsonl").read_bytes()
    with pytest.raises(
        ValueError, match=r"already holds a run; pass --resume to continue it, or choose another"
    ):
        run(experiment(finished[0]))
    assert (finished[0] / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 32}, "width: 16 in the run, 32 now"),
        ({"batch_size": 16}, "batch_size: 8 in the run, 16 now"),
        ({"seed": 1}, "seed: 0 in the run, 1 now"),
        ({"optim": OptimizerConfig(learning_rate=0.5)}, r"optim\.learning_rate: 0\.001 in the run, 0\.5 now"),
    ],
)
def test_going_on_with_other_settings_is_refused(
    finished: tuple[Path, str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(
        ValueError, match=f"holds a run with other settings or data; resume it with the same.*\n  {message}$"
    ):
        run(experiment(finished[0], resume=True, **changes))


def test_going_on_with_other_data_is_refused(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyTask, "examples", 39)
    with pytest.raises(ValueError, match=r"data\.examples: 40 in the run, 39 now"):
        run(experiment(finished[0], resume=True))


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also its log: a line that was cut short, and lines after the checkpoint, are written again."""
    from jaxmodels.training.run import interrupts

    monkeypatch.setattr(interrupts.Interrupts, "requested", lambda self, step: step == 5)
    status, output = run(experiment(tmp_path / "run"))
    assert status == 128 + 15
    assert "stopped and saved at step 5; continue with --resume" in output
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.undo()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 99.0}\n{"step": 7, "lo')
    status, output = run(experiment(tmp_path / "run", resume=True))
    assert status == 0
    assert "going on from the checkpoint of step 5" in output
    assert metrics(tmp_path / "run") == metrics(finished[0])
    for key, value in weights(finished[0]).items():
        np.testing.assert_array_equal(weights(tmp_path / "run")[key], value, err_msg=key)


def test_resuming_where_there_is_nothing_begins(tmp_path: Path) -> None:
    status, output = run(experiment(tmp_path / "run", resume=True, steps=2))
    assert status == 0
    assert "no checkpoint to continue from: beginning" in output


def test_resuming_a_complete_run_only_evaluates(finished: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    status, _ = run(experiment(tmp_path / "run", resume=True))
    assert status == 0
    assert metrics(tmp_path / "run") == metrics(finished[0])
    for key, value in weights(finished[0]).items():
        np.testing.assert_array_equal(weights(tmp_path / "run")[key], value)


def test_a_run_may_be_made_longer(finished: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    status, _ = run(experiment(tmp_path / "run", resume=True, steps=14))
    assert status == 0
    assert [line["step"] for line in metrics(tmp_path / "run")][-2:] == [13, 14]


def test_a_run_is_not_made_shorter(finished: tuple[Path, str]) -> None:
    with pytest.raises(ValueError, match=r"steps must be at least 12, which the run .* got steps=4"):
        run(experiment(finished[0], resume=True, steps=4))


def test_the_time_of_all_sessions_counts(finished: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    first = json.loads((tmp_path / "run" / "results.json").read_text())["seconds"]
    run(experiment(tmp_path / "run", resume=True))
    assert json.loads((tmp_path / "run" / "results.json").read_text())["seconds"] == first > 0
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]) == 2


def test_batches_of_one_example(tmp_path: Path) -> None:
    status, _ = run(experiment(tmp_path / "run", batch_size=1, steps=3))
    assert status == 0


def test_a_checkpoint_of_what_is_not_finite_is_not_written(tmp_path: Path) -> None:
    """The only step has a finite loss and gradient; what it makes of the parameters overflows."""
    wild = OptimizerConfig(learning_rate=1e300, warmup_steps=0)
    status, output = run(experiment(tmp_path / "run", optim=wild, steps=1))
    assert status == 1
    assert "stopped after step 1: its update is not finite." in output
    assert "These parameters are not finite: " in output
    assert "There is no earlier checkpoint." in output
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert not (tmp_path / "run" / "results.json").exists()


class Refusing(ToyTask):
    def forward(self, model: Any, batch: Any, rngs: Any) -> Any:
        raise ValueError("images must be larger")


def test_what_the_model_refuses_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyExperiment, "task", lambda self: Refusing())
    with pytest.raises(ValueError, match="images must be larger"):
        run(experiment(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxmodels.training.run.program.memory_of_a_device", lambda device: 10_000)
    with pytest.raises(ValueError, match=r"model must fit into memory: .* GiB per device.*; lower the sizes"):
        run(experiment(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    with Workdir(tmp_path / "run").lock(), pytest.raises(ValueError, match="in use by another run"):
        run(experiment(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_full_disk_names_the_file_and_the_checkpoint(
    tmp_path: Path, finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished[0], tmp_path / "run")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxmodels.training.run.finish.write_report", full)
    message = r"report\.html could not be written \(No space .*\); the checkpoint of step 12 is intact; make"
    with pytest.raises(OSError, match=message):
        run(experiment(tmp_path / "run", resume=True))


def test_not_a_number_stops_the_run(tmp_path: Path) -> None:
    status, output = run(experiment(tmp_path / "run", poison=33, checkpoint_every=1))
    assert status == 1
    last = int(output.split("stopped at step ")[1].split(":")[0])
    assert last > 1
    assert "The batch itself holds values that are not finite: images." in output
    assert f"The checkpoint of step {last - 1} is intact." in output
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, last))
    assert not (tmp_path / "run" / "model").exists()


def test_divergence_names_the_parameters(tmp_path: Path) -> None:
    wild = OptimizerConfig(learning_rate=1e30, clip_norm=0.0, warmup_steps=0)
    status, output = run(experiment(tmp_path / "run", optim=wild))
    assert status == 1
    assert "First bad are the gradients of " in output or "These parameters are not finite: " in output
    assert "A lower --optim.learning-rate" in output


def test_the_average_is_what_is_saved(tmp_path: Path, finished: tuple[Path, str]) -> None:
    averaged = OptimizerConfig(ema_decay=0.9)
    status, _ = run(experiment(tmp_path / "run", optim=averaged))
    assert status == 0
    one, other = weights(tmp_path / "run"), weights(finished[0])
    assert any((one[key] != other[key]).any() for key in one)
    for line, plain in zip(metrics(tmp_path / "run"), metrics(finished[0]), strict=True):
        assert line["loss"] == pytest.approx(plain["loss"], rel=1e-5)


@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=4)])
def test_many_devices(finished: tuple[Path, str], tmp_path: Path, mesh: MeshConfig) -> None:
    status, output = run(experiment(tmp_path / "run", mesh=mesh))
    assert status == 0
    assert f"mesh data={mesh.data} fsdp={mesh.fsdp}" in output
    for one, other in zip(metrics(tmp_path / "run"), metrics(finished[0]), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_accumulation_and_rematerialisation_keep_the_losses(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    plain = replace(experiment(tmp_path / "plain", steps=3), accumulate=1)
    run(plain)
    run(replace(plain, workdir=tmp_path / "remat", remat=True))
    for one, other in zip(metrics(tmp_path / "plain"), metrics(tmp_path / "remat"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"steps must be an integer ≥ 1; got steps=0"),
        ({"keep": 0}, r"keep must be an integer ≥ 1"),
        ({"log_every": 0}, r"log_every must be an integer ≥ 1"),
        ({"seed": -1}, r"seed must be an integer ≥ 0"),
        (
            {"attention": "cudnn"},
            r"precision must be 'bfloat16' with attention='cudnn'; got precision='float32'",
        ),
        (
            {"attention": "pallas", "precision": "float64"},
            r"precision must be 'bfloat16', .* with attention='pallas'; got precision='float64'",
        ),
        ({"accumulate": 3}, r"batch_size must be a multiple of accumulate=3; got batch_size=8"),
    ],
)
def test_wrong_settings(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment(tmp_path, **changes)


def test_the_kernel_of_a_gpu_needs_one(tmp_path: Path) -> None:
    for kernel in ("cudnn", "pallas"):
        message = rf"attention must be 'auto' or 'xla' on a CPU.*got attention='{kernel}'"
        with pytest.raises(ValueError, match=message):
            run(experiment(tmp_path / "run", attention=kernel, precision="bfloat16"))
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide(tmp_path: Path) -> None:
    message = r"batch_size must be a multiple of devices × accumulate = 8 × 1; got batch_size=12"
    with pytest.raises(ValueError, match=message):
        run(experiment(tmp_path / "run", batch_size=12, mesh=MeshConfig()))
    assert not (tmp_path / "run").exists()


def test_float64_must_be_switched_on(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"precision='float64' needs jax\.config\.update\('jax_enable_x64', True\)"
    ):
        run(experiment(tmp_path / "run", precision="float64"))


def test_workdir_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"workdir must be a folder; .*file is a file"):
        run(experiment(tmp_path / "file"))


def test_workdir_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"holds checkpoints or metrics but no run\.json"):
        run(experiment(tmp_path, resume=True))


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ({"coordinator": "a:1"}, r"hosts\.coordinator, hosts\.processes and hosts\.process belong together"),
        (
            {"coordinator": "a:1", "processes": 2, "process": 2},
            r"hosts\.process must lie in \[0, hosts\.processes=2\)",
        ),
        (
            {"coordinator": "a", "processes": 2, "process": 0},
            r"hosts\.coordinator must be HOST:PORT; got 'a'",
        ),
    ],
)
def test_wrong_hosts(hosts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HostsConfig(**hosts)


def test_profile_and_tensorboard(tmp_path: Path) -> None:
    status, _ = run(experiment(tmp_path / "run", steps=16, profile=True, tensorboard=True))
    assert status == 0
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    events = b"".join(path.read_bytes() for path in (tmp_path / "run" / "tensorboard").iterdir())
    assert b"validation_accuracy" in events
    assert b"Labels" in events


def test_tensorboard_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxmodels\[tensorboard\]'"):
        run(experiment(tmp_path / "run", tensorboard=True))
