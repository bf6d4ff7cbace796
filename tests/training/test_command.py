"""The command line of training: presets, flags, messages."""

import contextlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx

import jaxmodels as jm
from jaxmodels.training import command
from jaxmodels.training.command import flags, parse
from jaxmodels.training.experiment import Experiment, differences, require_given
from jaxmodels.training.presets import DESCRIPTIONS, PRESETS


NAMED_IN_THE_API = ("glom-emoji", "hourglass-sotu", "colt5-vit-emoji", "mammut-emoji", "scalable-vit-emoji")
# Sizes that the READMEs' models have in the published packages.
PUBLISHED_SIZES = {"scalable-vit-readme": 75_917_544, "colt5-vit-readme": 95_512_552}


def model_of(experiment: Any) -> nnx.Module:
    kinds = {
        "HourglassExperiment": jm.HourglassTransformerLM,
        "ScalableViTExperiment": jm.ScalableViT,
        "CoLT5Experiment": jm.ConditionalRoutedViT,
        "GlomExperiment": jm.Glom,
    }
    rngs = nnx.Rngs(0)
    if type(experiment).__name__ == "MaMMUTExperiment":
        return jm.MaMMUT(experiment.model, img_encoder=jm.SimpleViT(experiment.encoder, rngs=rngs), rngs=rngs)
    return kinds[type(experiment).__name__](experiment.model, rngs=rngs)


def test_names() -> None:
    assert set(NAMED_IN_THE_API) <= PRESETS.keys()
    assert PRESETS.keys() == DESCRIPTIONS.keys()
    for name in NAMED_IN_THE_API:
        assert f"{name}-gpu" in PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_built(name: str) -> None:
    experiment = parse([name, "--workdir", "run", "--data", "somewhere"])
    assert experiment.workdir == Path("run")
    model = nnx.eval_shape(lambda: model_of(experiment))
    size = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
    assert size == PUBLISHED_SIZES.get(name, size)
    assert size > 50_000


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith(("emoji-gpu", "sotu-gpu"))])
def test_gpu_presets_fit_the_data(name: str) -> None:
    task = parse([name, "--workdir", "run"]).task()
    assert task.examples > 1000


def test_flags_reach_every_level() -> None:
    flags = [
        "--model.dim",
        "48",
        "--optim.learning-rate",
        "3e-4",
        "--steps",
        "7",
        "--mesh.fsdp",
        "2",
        "--seed",
        "5",
    ]
    experiment: Any = parse(["scalable-vit-emoji", "--workdir", "run", *flags])
    values = experiment.model.dim, experiment.optim.learning_rate, experiment.steps, experiment.mesh.fsdp
    assert values == (48, 3e-4, 7, 2)
    assert experiment.seed == 5


@pytest.mark.parametrize(
    ("words", "depth"),
    [
        (["1", "2", "1"], (1, 2, 1)),
        (["1", "1", "2", "1", "1"], (1, (1, 2, 1), 1)),
        (["1", "1", "(1,3,1)", "1", "1"], (1, (1, (1, 3, 1), 1), 1)),
    ],
)
def test_depth_of_an_hourglass(words: list[str], depth: Any) -> None:
    factors = ["--model.shorten-factor", *["2"] * (str(depth).count("("))]
    experiment: Any = parse(["hourglass-sotu", "--workdir", "run", "--model.depth", *words, *factors])
    assert experiment.model.depth == depth


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scalable-vit-emoji"], "--workdir"),
        (["hourglass-enwik8", "--workdir", "run"], "--data"),
        (["glom-emoji", "--workdir", "run", "--model.dim", "0"], "dim must be an integer"),
        (["glom-emoji", "--workdir", "run", "--optim.b2", "1"], "b2 must lie in"),
        (["glom-emoji", "--workdir", "run", "--steps", "0"], "steps must be an integer ≥ 1; got steps=0"),
        (["glom-emoji", "--workdir", "run", "--steps", str(2**31)], "steps must be an integer between 1 and"),
        (
            ["glom-emoji", "--workdir", "run", "--batch-size", "1000000000000"],
            "batch_size must be an integer",
        ),
        (
            ["glom-emoji", "--workdir", "run", "--seed", str(2**64 - 1)],
            "seed must be an integer between 0 and",
        ),
        (["glom-emoji", "--workdir", "run", "--seed", "-1"], "seed must be an integer ≥ 0; got seed=-1"),
        (
            ["glom-emoji", "--workdir", "run", "--image-size", "100000"],
            "image_size must be an integer between",
        ),
        (
            ["glom-emoji", "--workdir", "run", "--model.dim", "1000000000"],
            "model.dim must be at most 16,777,216",
        ),
        (
            ["glom-emoji", "--workdir", "run", "--noise", "nan"],
            "noise must be a finite number > 0; got noise=nan",
        ),
        (["glom-emoji", "--workdir", "run", "--shift", "32"], "shift must be an integer between 0 and 31"),
        (
            ["mammut-emoji", "--workdir", "run", "--model.depth", "99999"],
            "depth must be at most 4,096 layers",
        ),
        (["hourglass-sotu", "--workdir", "run", "--first-year", "-5"], "first_year must be an integer ≥ 0"),
        (
            ["mammut-emoji", "--workdir", "run", "--context", "0"],
            "context must be an integer ≥ 3; got context=0",
        ),
        (["mammut-emoji", "--workdir", "run", "--zoom", "1"], "zoom must be a number in [0, 1); got zoom=1"),
        (
            ["mammut-emoji", "--workdir", "run", "--encoder.depth", "5000"],
            "encoder.depth must be at most 4,096",
        ),
        (
            ["colt5-vit-emoji", "--workdir", "run", "--label-smoothing", "1"],
            "label_smoothing must be a number",
        ),
        (["glom-emoji", "--workdir", "gs://bucket/run"], "not an address that begins with gs://"),
        (["glom-emoji", "--workdir", "gs:///bucket//run"], "got workdir='gs://bucket/run'"),
        (["glom-emoji", "--workdir", "a\udcff/run"], r"workdir must have a name in UTF-8, which the files"),
        (
            ["glom-emoji", "--workdir", "./tests/run", "--data", "tests"],
            "workdir must be outside of the folder of",
        ),
        (
            ["glom-emoji", "--workdir", "tests", "--data", "./tests/"],
            "workdir must be outside of the folder of",
        ),
        (["glom-emoji", "--workdir", "run", "--data", "https://example.com/data"], "begins with https://"),
        (
            ["glom-emoji", "--workdir", "~nobody-of-that-name/run"],
            "names a home folder that is not known here",
        ),
        (["glom-emoji", "--workdir", "run", "--learning-rate", "1"], "--optim.learning-rate"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["glom-emjoi"], "there is no preset 'glom-emjoi'; did you mean glom-emoji?"),
        (["zzz"], "there is no preset 'zzz'; known: glom-emoji, hourglass-sotu, "),
        (["glom-emoji", "--workdir", ""], "--workdir must not be empty"),
        (["glom-emoji", "--workdir="], "--workdir must not be empty"),
        (["glom-emoji", "--workdir", "run", "--data", " "], "--data must not be empty"),
    ],
)
def test_what_is_refused_before_it_is_parsed(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(arguments)


def test_what_the_data_decides_is_not_overruled() -> None:
    wanted: Any = parse(["scalable-vit-emoji", "--workdir", "run", "--model.num-classes", "7"])
    fitted = replace(wanted, model=replace(wanted.model, num_classes=3))
    require_given(wanted, fitted, {"model.dim", "steps"})
    message = r"model\.num_classes must be that of the data, 3, or be left out; got model\.num_classes=7"
    with pytest.raises(ValueError, match=message):
        require_given(wanted, fitted, {"model.num_classes"})


@pytest.mark.parametrize("flag", ["--model.num-classes=7", "--model.num_classes"])
def test_what_was_given_is_told_to_training(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(command, "train", lambda experiment, **settings: asked.update(settings) or 0)
    monkeypatch.setattr(command, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(command.gc, "freeze", lambda: None)
    words = [flag] if "=" in flag else [flag, "7"]
    assert command.run(["scalable-vit-emoji", "--workdir", "run", *words, "--steps", "5"]) == 0
    assert asked == {"preset": "scalable-vit-emoji", "given": {"model.num_classes"}}


def test_the_workdir_beside_the_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "images.csv").touch()
    for data in ("data", "images.csv"):
        parse(["mammut-emoji", "--workdir", f"{tmp_path}/data-run", "--data", f"{tmp_path}/{data}"])


def test_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    experiment = parse(["glom-emoji", "--workdir=~/run", "--data", "~/images"])
    assert (experiment.workdir, experiment.data) == (Path("/home/me/run"), Path("/home/me/images"))


def test_every_flag_can_be_completed() -> None:
    for name, preset in PRESETS.items():
        for flag in set(flags(preset)) - {"--help"}:
            assert re.fullmatch(r"--[a-z0-9.-]+", flag)
        with pytest.raises(SystemExit), contextlib.redirect_stdout(StringIO()) as help_text:
            parse([name, "--help"])
        shown = set(re.findall(r"--(?!no-)[a-z0-9.-]+", help_text.getvalue().partition("options")[2]))
        assert set(flags(preset)) <= shown | {"--help"}


def test_docstrings_of_presets_give_the_measured_numbers() -> None:
    """The description of a preset gives the time and the main metric of docs/results.json."""
    rows = json.loads((Path(__file__).parents[2] / "docs" / "results.json").read_text())["rows"]
    for row in rows:
        description = DESCRIPTIONS[row["command"].split()[0]]
        value = row["test"][row["metric"]["name"]]
        written = [f"{value:.3f}", f"{value:.2f} dB", f"{100 * value:.1f}%"]
        assert any(text in description for text in written), (row["command"], written)
        assert f"{row['minutes']:.1f} minutes" in description
    for name, description in DESCRIPTIONS.items():
        assert f"jaxmodels train {name} --workdir" in description
        assert name in {row["command"] for row in rows} or "has not been run" in description


def test_errors_have_no_traceback(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "jaxmodels",
        "train",
        "hourglass-sotu",
        "--workdir",
        str(tmp_path / "run"),
    ]
    process = subprocess.run(
        [*command, "--data", str(tmp_path / "none")], text=True, capture_output=True, check=False
    )
    assert process.returncode == 2
    assert process.stderr.startswith("jaxmodels: path must be a file or folder that exists")
    assert len(process.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_settings_survive_json() -> None:
    """What run.json holds is what a continuation is compared with."""
    for name in PRESETS:
        experiment: Experiment = parse([name, "--workdir", "run", "--data", "somewhere"])
        described = experiment.describe()
        assert differences(json.loads(json.dumps(described)), described) == []
