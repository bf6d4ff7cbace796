"""What the command line answers without importing JAX, and its error messages."""

import contextlib
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import jaxmodels.__main__ as program
from jaxmodels.checks import local_path, require_name
from jaxmodels.command_line import completion_script


ROOT = Path(__file__).parents[1]


def run(*arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in (os.environ | environment).items() if value is not None}
    return subprocess.run(
        [sys.executable, "-m", "jaxmodels", *arguments],
        cwd=ROOT,
        env=given,
        text=True,
        capture_output=True,
        check=False,
    )


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status, without a process of its own."""
    monkeypatch.setattr(sys, "argv", ["jaxmodels", *arguments])
    with pytest.raises(SystemExit) as stopped:
        program.main()
    return stopped.value.code or 0


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(monkeypatch, "--version") == 0
    assert "jax 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian", "glom-emoji"), "there is no command 'trian'; did you mean train?"),
        (
            ("x",),
            "there is no command 'x'; known: compare, capture, benchmark, train, compile, convert, demo, completion",
        ),
        (("train", "glom-emjoi"), "there is no preset 'glom-emjoi'; did you mean glom-emoji?"),
        (("compare", "scalable-vti"), "there is no model 'scalable_vti'; did you mean scalable_vit?"),
        (("train", "glom-emoji", "--workdir", ""), "--workdir must not be empty"),
    ],
)
def test_near_misses(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.startswith(f"jaxmodels: {message}")


def test_models_may_be_spelled_as_in_the_presets() -> None:
    words = ["scalable-vit", "GLOM", "--output", "scalable-vit", "--dtype=float64"]
    assert program._compared(words) == [
        "scalable_vit",
        "glom",
        "--output",
        "scalable-vit",
        "--dtype=float64",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "--output", ""), "--output must not be empty"),
        (("compare", "--output="), "--output must not be empty"),
        (("convert", "", "model"), "an argument must not be empty"),
        (
            ("demo", "--output", "s3://bucket/demo"),
            "output must be a path in the file system, not an address that",
        ),
        (
            ("compare", "--output", "gs://bucket/a"),
            "output must be a path in the file system, not an address that",
        ),
        (
            ("convert", "a", "b", "--config", "/dev/zero"),
            "config must be a JSON object or the path of a file",
        ),
        (("compare", "--seed", str(2**64)), "seed must be an integer between 0 and 9223372036854775807; got"),
        (("compare", "--seed", "-1"), "seed must be an integer ≥ 0; got seed=-1"),
        (
            ("compare", "--steps", "1000000000000"),
            "steps must be an integer between 0 and 10000; got steps=1000",
        ),
        (("convert", "hf://a/b", "model"), "source must be a path in the file system, not an address that"),
    ],
)
def test_paths_and_numbers_of_all_commands(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.startswith(f"jaxmodels: {message}")


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("output", Path("~/demo")) == Path("/home/me/demo")
    assert local_path("output", None) is None


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert main(monkeypatch, "--help") == 0
    assert "compare" in capsys.readouterr().out
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_pytorch_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("jaxmodels.compare")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(monkeypatch, "compare", "glom") == 2
    assert "pip install -e '.[torch]' in a checkout" in capsys.readouterr().err


def test_the_guide_needs_no_pytorch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page for coding agents is the file that the documentation includes."""
    assert main(monkeypatch, "compare", "--guide") == 0
    printed = capsys.readouterr().out
    included = (ROOT / "docs" / "agents.md").read_text().split()[1]
    assert printed == (ROOT / "docs" / included).read_text()
    assert printed.startswith("# Compare a port")


def test_a_console_without_the_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(monkeypatch, "train", "猫") == 2
    sys.stderr.flush()
    assert raw.getvalue().startswith(b"jaxmodels: there is no preset '?'")


def test_help_as_a_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Also: a notebook's setting for figures, which Matplotlib may not know here, is of no consequence."""
    monkeypatch.setenv("MPLBACKEND", "module://of_a_notebook")
    assert main(monkeypatch, "help") == 0
    assert "usage: jaxmodels" in capsys.readouterr().out
    assert os.environ["MPLBACKEND"] == "agg"


def test_a_platform_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def devices() -> None:
        raise RuntimeError("Unable to initialize backend 'cpuu'")

    monkeypatch.setattr("jax.devices", devices)
    assert main(monkeypatch, "convert", "a", "b") == 2
    assert capsys.readouterr().err.startswith("jaxmodels: JAX must find a device; got JAX_PLATFORMS=")


@pytest.mark.parametrize(
    ("unbuffered", "device", "status", "message"),
    [
        ("1", None, 141, ""),
        ("", None, 0, ""),
        (
            "",
            "/dev/full",
            0,
            "jaxmodels: the output could not be written: No space left on device\n",
        ),
    ],
)
def test_output_that_cannot_be_written(
    unbuffered: str, device: str | None, status: int, message: str
) -> None:
    """A pipe whose reader has gone, or a full disk; Python writes at once, or what is left at the end."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(device or writing, "w") as output:
        command = [sys.executable, "-m", "jaxmodels", "--version"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert (done.returncode, done.stderr) == (status, message)


def test_training_begins_without_its_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxmodels.training import command

    monkeypatch.setattr(command, "run", lambda arguments: 7)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert program._train(["glom-emoji"]) == 7
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what is left goes there


def test_nothing_heavy_is_imported_before_the_first_line() -> None:
    """JAX takes seconds to import, more on a busy machine."""
    code = (
        "import sys, jaxmodels.__main__; heavy = {'jax', 'flax', 'numpy', 'matplotlib'} & sys.modules.keys(); "
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_something_is_printed_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jaxmodels.training import command

    def train(arguments: list[str]) -> int:
        assert capsys.readouterr().out == "jaxmodels train glom-emoji: starting JAX\n"
        return 7

    monkeypatch.setattr(command, "run", train)
    assert main(monkeypatch, "train", "glom-emoji", "--workdir", "run") == 7


def complete(script: str, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    listed = " ".join(f"'{word}'" for word in words)
    code = f"{script}\nCOMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _jaxmodels; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", code], text=True, capture_output=True, check=True)
    return done.stdout.split()


def test_completion(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from jaxmodels.training import PRESETS

    assert main(monkeypatch, "completion", "bash") == 0
    script = capsys.readouterr().out
    assert main(monkeypatch, "--tyro-print-completion", "bash") == 0
    assert capsys.readouterr().out == script
    assert complete(script, "jaxmodels", "") == [*program.COMMANDS, "--help", "--version"]
    assert complete(script, "jaxmodels", "train", "") == [*PRESETS, "--help"]
    assert complete(script, "jaxmodels", "train", "mammut-p") == ["mammut-paper"]
    assert complete(script, "jaxmodels", "train", "glom-emoji", "--steps", "5", "--model.l") == [
        "--model.levels",
        "--model.local-consensus-radius",
    ]
    assert complete(script, "jaxmodels", "compare", "sc") == ["scalable_vit"]
    assert complete(script, "jaxmodels", "compare", "glom", "--out") == ["--output"]
    assert complete(script, "jaxmodels", "convert", "--conf") == ["--config"]
    assert not set(complete(script, "jaxmodels", "compare", "")) & {"the", "and", "of"}


def test_completion_of_another_shell() -> None:
    assert completion_script("zsh", {}).startswith("autoload")
    with pytest.raises(ValueError, match="there is no completion for the shell 'csh'"):
        completion_script("csh", {})


def test_names() -> None:
    require_name("preset", "a", ("a", "b"))
    with pytest.raises(ValueError, match="there is no preset 'glom'; did you mean glam"):
        require_name("preset", "glom", ("glam",))


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("1", False)])
def test_no_color(no_color: str | None, coloured: bool) -> None:
    """On a terminal."""
    main_end, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"} | ({"NO_COLOR": no_color} if no_color else {})
    command = [sys.executable, "-m", "jaxmodels", "--help"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=terminal) as process:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # Linux ends the output of a terminal with an error
            while piece := os.read(main_end, 4096):
                shown += piece
    os.close(main_end)
    assert process.returncode == 0
    assert (b"\x1b[" in shown) == coloured
