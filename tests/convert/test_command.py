"""`jaxmodels convert`: what it converts, and one line on stderr instead of a traceback when it cannot."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import jaxmodels as jm
from jaxmodels import __main__
from jaxmodels.convert import command
from jaxmodels.convert.files import read_state_dict, write_state_dict
from tests.convert import small_models
from tests.convert.shards import write_shards
from tests.disk import names, unprivileged


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `jaxmodels convert …` and returns (exit status, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["jaxmodels", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            __main__.main()
        return (caught.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a hub folder and bare checkpoints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent))
    for variable in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(variable, os.environ.get(variable, ""))  # put back afterwards
    jm.save_pretrained(small_models.filled("Glom"), "hub")
    for name in ("Glom", "HourglassTransformer", "MaMMUT, SimpleViT"):
        write_state_dict(
            Path(f"{name.partition(',')[0]}.safetensors"), jm.to_state_dict(small_models.filled(name))
        )
    Path("taken").mkdir()
    Path("taken/file").write_text("mine")
    Path("text.safetensors").write_text("hello, I am no weights")
    Path("list.json").write_text("[1]")
    Path("half.json").write_text('{"dim":')
    Path("bytes.json").write_bytes(b"\xff")
    return tmp_path


def test_there_and_back(run: Run, place: Path) -> None:
    assert run("hub", "deep/er/w.safetensors") == (
        0,
        "Glom, 12 entries, 840 numbers -> deep/er/w.safetensors\n",
        "",
    )
    assert run("deep/er/w.safetensors", "again") == (
        0,
        "not visible in the checkpoint, taken as their defaults: consensus_self\n"
        "Glom, 12 entries, 840 numbers -> again\n",
        "",
    )
    assert small_models.weights(jm.from_pretrained("again")) == small_models.weights(
        small_models.filled("Glom")
    )
    assert Path("hub/model.safetensors").read_bytes() == Path("deep/er/w.safetensors").read_bytes()


@pytest.mark.parametrize("as_file", [False, True])
def test_arguments_as_json(run: Run, place: Path, as_file: bool) -> None:
    config, encoder = '{"pad_id": -1, "caption_loss_weight": 0.5}', ' {"image_size": [8, 4], "heads": 2}'
    if as_file:
        Path("config.json").write_text(config)
        Path("encoder.json").write_text(encoder)
        config, encoder = "config.json", "encoder.json"
    status, _, errors = run("MaMMUT.safetensors", "out", "--config", config, "--encoder", encoder)
    assert (status, errors) == (0, "")
    model = jm.from_pretrained("out")
    assert (model.config, model.img_encoder.config) == (small_models.MAMMUT, small_models.VIT)


def test_a_class_that_its_keys_do_not_tell(run: Run, place: Path) -> None:
    arguments = ("--model", "HourglassTransformer", "--config", '{"heads": 3, "causal": true}')
    assert run("HourglassTransformer.safetensors", "out", *arguments)[0] == 0
    assert jm.from_pretrained("out").config == small_models.LINEAR


def test_names_with_brackets_are_shown_as_they_are(run: Run, place: Path) -> None:
    destination = "[red]out[/red]" + "x" * 100
    assert run("Glom.safetensors", destination)[1].endswith(f"-> {destination}\n")


def test_overwriting(run: Run, place: Path) -> None:
    write_state_dict(Path("old.safetensors"), {})
    assert run("hub", "old.safetensors") == (
        2,
        "",
        "jaxmodels: old.safetensors exists; choose another destination or pass --overwrite\n",
    )
    assert read_state_dict(Path("old.safetensors")) == {}
    assert run("hub", "old.safetensors", "--overwrite")[0] == 0
    assert len(read_state_dict(Path("old.safetensors"))) == 12
    assert run("Glom.safetensors", "taken", "--overwrite")[0] == 0
    assert Path("taken/file").read_text() == "mine"
    Path("empty").mkdir()
    assert run("Glom.safetensors", "empty")[0] == 0


ENDINGS = ".safetensors, .pt, .pth, .bin"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope.pt", "out"], "no such checkpoint or folder: nope.pt"),
        (
            ["list.json", "out"],
            f"the name of a weights file must end in one of {ENDINGS}, .ckpt, .pth.tar, .pt.tar; got list.json",
        ),
        (
            ["text.safetensors", "out"],
            "text.safetensors is damaged or not a safetensors file: Error while deser",
        ),
        (
            ["hub", "out"],
            f"the destination must be a file name with the ending {ENDINGS}, as hub is a folder; got out",
        ),
        (
            ["hub", "w.npz"],
            f"the destination must be a file name with the ending {ENDINGS}, as hub is a folder; got w",
        ),
        (
            ["Glom.safetensors", "w.pt"],
            "the destination must be a folder, as Glom.safetensors is a file; got w.pt",
        ),
        (["Glom.safetensors", "taken"], "taken exists; choose another destination or pass --overwrite"),
        (["Glom.safetensors", "list.json", "--overwrite"], "list.json is a file; choose another destination"),
        (["Glom.safetensors", "list.json/out"], "list.json/out: Not a directory"),
        (
            ["taken", "w.safetensors"],
            "taken must be a folder with a config.json, as save_pretrained writes it",
        ),
        (["Glom.safetensors", "out", "--config", "{"], "config is not JSON: Expecting property name"),
        (["Glom.safetensors", "out", "--config", "half.json"], "config is not JSON: Expecting value"),
        (["Glom.safetensors", "out", "--config", "bytes.json"], "config is not JSON: 'utf-8' codec"),
        (
            ["Glom.safetensors", "out", "--config", "hub"],
            "config must be a JSON object or the path of a file with one",
        ),
        (
            ["Glom.safetensors", "out", "--config", "list.json"],
            "config must be a JSON object; 'list.json' holds a list",
        ),
        (
            ["Glom.safetensors", "out", "--config", "[1]"],
            "config must be a JSON object or the path of a file with one;",
        ),
        (
            ["Glom.safetensors", "out", "--encoder", "nope.json"],
            "encoder must be a JSON object or the path of a file",
        ),
        (
            ["Glom.safetensors", "out", "--encoder", "{}"],
            "Glom.safetensors: encoder is for a MaMMUT with an image enc",
        ),
        (
            ["Glom.safetensors", "out", "--config", '{"dims": 3}'],
            "Glom.safetensors: Glom has no argument dims; it has",
        ),
        (
            ["Glom.safetensors", "out", "--config", '{"levels": "x"}'],
            "Glom.safetensors: levels must be an integer ≥ 2;",
        ),
        (
            ["Glom.safetensors", "out", "--model", "glom"],
            "Glom.safetensors: model must be one of Glom, Hourglass",
        ),
        (
            ["Glom.safetensors", "out", "--model", "MaMMUT"],
            "Glom.safetensors: not the weights of a MaMMUT: there is no",
        ),
        (
            ["HourglassTransformer.safetensors", "out"],
            "HourglassTransformer.safetensors: the keys are those of no publ",
        ),
        (
            ["hub", "w.pth", "--model", "Glom", "--config", "{}"],
            "hub has a config.json; --model, --config would only be for a bare checkpoint",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_line_says_what_is_wrong(run: Run, place: Path, arguments: list[str], message: str) -> None:
    before = names(place)
    status, output, errors = run(*arguments)
    assert (status, output if "list.json/out" not in arguments else "") == (2, "")
    assert errors.startswith(f"jaxmodels: {message}")
    assert errors.count("\n") == 1
    assert names(place) == before


def test_misfits_are_listed(run: Run, place: Path) -> None:
    status, output, errors = run("Glom.safetensors", "out", "--config", json.dumps({"image_size": 8}))
    assert (status, output) == (2, "")
    assert errors == (
        "jaxmodels: Glom.safetensors: the state_dict does not fit Glom\n"
        "  pos_emb.weight: shape (9, 4), the model needs (16, 4)\n"
    )


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("arguments", [["hub", "w.pt"], ["w.bin", "out"]])
def test_without_pytorch(run: Run, place: Path, arguments: list[str]) -> None:
    Path("w.bin").write_bytes(b"")
    status, _, errors = run(*arguments)
    assert status == 2
    assert errors.startswith("jaxmodels: PyTorch is needed for .pt, .pth, .bin and .ckpt files: pip install")


def test_places_of_others(run: Run, open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(open_folder)
    write_state_dict(Path("w.safetensors"), jm.to_state_dict(small_models.filled("Glom")))
    with unprivileged():
        status, _, errors = run("w.safetensors", "out")
    assert (status, errors) == (2, "jaxmodels: out: Permission denied\n")
    Path("w.safetensors").chmod(0)
    with unprivileged():
        status, _, errors = run("w.safetensors", "out")
    assert status == 2
    assert errors.startswith("jaxmodels: w.safetensors: Permission denied")
    assert names(open_folder) == ["w.safetensors"]


def test_control_c(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "save_pretrained", interrupted)
    status, _, errors = run("Glom.safetensors", "out")
    assert (status, errors) == (130, "jaxmodels: interrupted\n")


def test_a_mistake_of_ours_shows_where(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Only what a user can put right is told in one line."""

    def wrong(*_: object, **__: object) -> int:
        raise RuntimeError("inside")

    monkeypatch.setattr(command, "run", wrong)
    monkeypatch.setattr("sys.argv", ["jaxmodels", "convert", "Glom.safetensors", "out"])
    with pytest.raises(RuntimeError, match="inside"):
        __main__.main()


@pytest.mark.parametrize("arguments", [[], ["one"], ["hub", "out", "--confg", "{}"]])
def test_usage(run: Run, place: Path, arguments: list[str]) -> None:
    status, output, errors = run(*arguments)
    assert status == 2
    assert "Traceback" not in output + errors
    assert "jaxmodels convert --help" in output + errors or "jaxmodels --help" in output + errors


def test_help(run: Run) -> None:
    status, output, _ = run("--help")
    assert status == 0
    assert all(
        word in output for word in ("SRC", "DST", "--model", "--config", "--encoder", "--overwrite", "False")
    )


def test_an_entry_is_chosen_and_said(run: Run, place: Path) -> None:
    state_dict = jm.to_state_dict(small_models.filled("Glom"))
    both = {f"{part}.{key}": array for part in ("model", "ema") for key, array in state_dict.items()}
    both["ema.init_levels"] = both["ema.init_levels"] + 1
    write_state_dict(Path("both.safetensors"), both)
    status, output, errors = run("both.safetensors", "out")
    assert (status, errors) == (0, "")
    assert output.startswith(
        "both.safetensors: removed from the keys: 'model.'; also there: 'ema', chosen with entry= (--entry)\n"
    )
    status, output, _ = run("both.safetensors", "average", "--entry", "ema")
    assert output.startswith("both.safetensors: removed from the keys: 'ema.'; also there: 'model'")
    expected = np.asarray(jm.from_pretrained("out").init_levels[...]) + 1
    np.testing.assert_array_equal(jm.from_pretrained("average").init_levels[...], expected)
    assert run("hub", "w.pth", "--entry", "ema")[2].startswith(
        "jaxmodels: hub has a config.json; --entry would"
    )


def test_a_folder_of_shards(run: Run, place: Path) -> None:
    """Such folders often have a config.json of other software."""
    write_shards(Path("shards"), jm.to_state_dict(small_models.filled("Glom")))
    Path("shards/config.json").write_text('{"architectures": ["Glom"]}')
    assert run("shards", "out")[0] == 0
    assert small_models.weights(jm.from_pretrained("out")) == small_models.weights(
        small_models.filled("Glom")
    )
    assert run("shards", "w.safetensors")[2].startswith(
        "jaxmodels: the destination must be a folder, as shards is a checkpoint; got w.safetensors"
    )
