"""The command line of training: presets, flags, messages."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx

import jaxmodels as jm
from jaxmodels.training.command import parse
from jaxmodels.training.experiment import Experiment, differences
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
        (["no-such-preset"], "Unrecognized options: no-such-preset"),
        (["glom-emoji", "--workdir", "run", "--model.dim", "0"], "dim must be an integer"),
        (["glom-emoji", "--workdir", "run", "--optim.b2", "1"], "b2 must lie in"),
        (["glom-emoji", "--workdir", "run", "--steps", "0"], "steps must be"),
        (["glom-emoji", "--workdir", "run", "--learning-rate", "1"], "--optim.learning-rate"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


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
    import json

    for name in PRESETS:
        experiment: Experiment = parse([name, "--workdir", "run", "--data", "somewhere"])
        described = experiment.describe()
        assert differences(json.loads(json.dumps(described)), described) == []
