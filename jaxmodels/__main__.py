"""The command line: `jaxmodels compare`, `capture`, `benchmark`, `train`, `compile`, `convert`, `demo`.

JAX takes seconds to import. What can be answered without it is answered first.
"""

import importlib
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxmodels.checks import local_path, require_between, require_name
from jaxmodels.command_line import completion_script, plain_help, require_no_empty, version
from jaxmodels.models import MODEL_NAMES


MOST_ROUNDS = 1000
MOST_COMPARED_STEPS = 10_000  # differences add up with every step; more of them tell nothing


ComparedTargets = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(name="models", metavar="[MODEL|PAIR.py|CAPTURE ...]"),
]


def compare(
    targets: ComparedTargets = (),
    /,
    *,
    checkpoint: Path | None = None,
    config: str | None = None,
    steps: int = 3,
    dtype: Literal["float32", "float64"] = "float32",
    mode: Literal["eval", "train"] = "eval",
    optimizer: Literal["sgd", "adam", "adamw", "lion", "adafactor"] | None = None,
    seed: int = 0,
    map: Path | None = None,
    output: Path | None = None,
    format: Literal["text", "json", "github"] = "text",
    guide: bool = False,
) -> int:
    """Run both implementations on shared weights and inputs, and report where they differ.

    Compared are the outputs, what every layer receives and returns, the gradient of every parameter and the
    weights after optimiser steps. Tolerances come from PyTorch's own distance between float32 and float64.
    The exit status is 0 where all are equal, 1 where one differs, 2 where one could not be compared.

    Args:
        targets: glom, hourglass, colt5, mammut, scalable_vit, or files with a function pair() that returns a
            jaxmodels.compare.Pair or a list of them; the five models when left out. Or the folders of captures,
            A.capture B.capture; more of them measure the noise.
        checkpoint: weights to use instead of fresh ones: a hub folder, or a .safetensors, .pt, .pth or .bin
            file of a published package. Its class is recognised; naming a model checks it.
        config: constructor arguments that a bare checkpoint does not show: JSON, or the path of a JSON file.
        steps: optimiser steps after which the weights are compared; 0 leaves them out.
        dtype: precision of weights and inputs on both sides.
        mode: evaluation mode, or training mode with equal dropout masks and the update of running statistics.
        optimizer: that of the steps, with PyTorch's defaults and rate 1e-3; optax's and PyTorch's are compared as well.
            AdamW where none is named, without that comparison.
        seed: seed of the fresh weights.
        map: the table of a pair; where there is no such file, it is inferred and written.
        output: folder for report.json and report.html.
        format: text prints a table; json prints report.json and nothing else on stdout; github adds annotations
            and the summary of a workflow.
        guide: print how to use this command, and stop; for coding agents.
    """
    if guide:
        return _guide()
    require_between("steps", steps, 0, MOST_COMPARED_STEPS)
    require_between("seed", seed, 0, 2**63 - 1)
    checkpoint, map, output = (
        local_path(name, path)
        for name, path in (("checkpoint", checkpoint), ("map", map), ("output", output))
    )
    constructor = _json(config)
    return _comparison_of(targets).run(
        targets,
        checkpoint=checkpoint,
        config=constructor,
        map_file=map,
        output=output,
        steps=steps,
        dtype=dtype,
        mode=mode,
        optimizer=optimizer,
        seed=seed,
        output_format=format,
    )


def _comparison_of(targets: Sequence[str]) -> Any:
    """The command, after what it needs was found: captures are judged without either framework."""
    from jaxmodels.compare import command

    if not any(map(command.is_capture, targets)):
        with _torch_needed("comparing"):
            importlib.import_module("jaxmodels.compare.jobs")
        from jaxmodels.training.mesh import require_device

        require_device()
    return command


def capture(
    pair: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    side: Literal["torch", "jax"],
    output: Path,
    dtypes: tuple[Literal["float32", "float64", "bfloat16"], ...] = ("float32", "float64"),
    steps: int = 3,
    limit: int | None = None,
    full_precision: bool = True,
    mode: Literal["eval", "train"] = "eval",
    optimizer: Literal["sgd", "adam", "adamw", "lion", "adafactor"] | None = None,
    routing_from: Path | None = None,
) -> int:
    """Write what one side of a pair computes into a folder; jaxmodels compare A.capture B.capture judges two.

    Captured are weights, inputs, what every module receives and returns, losses, gradients and the weights after
    optimiser steps. The other side's framework is not needed.

    Args:
        pair: a file with a function torch_side() or jax_side() that returns the arguments of capture_torch or
            capture_jax as a dict, or with a pair() as jaxmodels compare takes it.
        side: which side is captured.
        output: the folder of the capture, such as port.capture.
        dtypes: the types in which the model runs; two of them measure the noise.
        steps: optimiser steps after the first gradient.
        limit: tensors of more numbers are kept as random projections; by default every tensor is kept as it is.
        full_precision: compute float32 products with all digits; otherwise the settings in force are kept, such as
            TF32, and the capture says which products they make.
        mode: evaluation mode, or training mode without dropout and with the update of running statistics.
        optimizer: that of the steps, with PyTorch's defaults and rate 1e-3; AdamW where none is named.
        routing_from: a PyTorch capture whose routers' choices the JAX side repeats, for models that choose tokens.
    """
    require_between("steps", steps, 0, MOST_COMPARED_STEPS)
    path, folder = local_path("pair", pair), local_path("output", output)
    from jaxmodels.compare.captures import command

    with _torch_needed("capturing the PyTorch side, or a pair(),"):
        return command.write(
            path,
            side=side,
            output=folder,
            dtypes=dtypes,
            steps=steps,
            limit=limit,
            full_precision=full_precision,
            mode=mode,
            optimizer=optimizer,
            routing_from=local_path("routing-from", routing_from),
        )


def _guide() -> int:
    print(resources.files("jaxmodels").joinpath("compare", "guide.md").read_text(encoding="utf-8"), end="")
    return 0


def benchmark(
    targets: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(name="models", metavar="MODEL|PAIR.py [...]")
    ],
    /,
    *,
    modes: tuple[Literal["forward", "train"], ...] = ("forward", "train"),
    implementations: tuple[Literal["eager", "compile", "jax"], ...] = ("eager", "compile", "jax"),
    device: Literal["cpu", "cuda"] = "cpu",
    rounds: int = 9,
    threads: int | None = None,
    quick: bool = False,
    output: Path = Path("out/benchmark"),
) -> int:
    """Time both sides of a pair, after checking that they agree.

    Compared are eager PyTorch, torch.compile and jax.jit, in float32 and evaluation mode: the forward pass and a
    training step of AdamW, first calls and memory, each with its noise.

    Args:
        targets: glom, hourglass, colt5, mammut, scalable_vit, or files with a function pair(), as for compare.
        modes: forward pass, training step, or both.
        implementations: the columns.
        device: where all of them run.
        rounds: how often each is timed, in turn.
        threads: cores that each may use; all by default.
        quick: leave out first calls and memory.
        output: folder for results.json, results.md and report.html.
    """
    output = local_path("output", output)
    require_between("rounds", rounds, 2, MOST_ROUNDS)
    for name, given in (("modes", modes), ("implementations", implementations)):
        if not given or len(set(given)) < len(given):
            raise ValueError(f"{name} must name one or more, each once; got {' '.join(given) or 'none'}")
    os.environ.setdefault(
        "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
    )  # the processes that measure need the memory
    with _torch_needed("timing a pair"):
        from jaxmodels.benchmark import command, machine

    cores = machine.cores()
    require_between("threads", cores if threads is None else threads, 1, cores)
    return command.run(
        targets,
        modes=modes,
        implementations=[name for name in ("eager", "compile", "jax") if name in implementations],
        device=device,
        rounds=rounds,
        threads=threads or cores,
        quick=quick,
        output=output,
    )


def train(preset: Annotated[str, tyro.conf.Positional], /) -> int:
    """Train one of the five models; `jaxmodels train --help` lists the presets.

    Args:
        preset: for instance scalable-vit-emoji; what follows it are its settings, such as --workdir DIR.
    """
    return _train([preset])


def _train(arguments: list[str]) -> int:
    """Presets have flags of their own, which only their own parser knows."""
    if arguments and not {"-h", "--help"} & set(arguments):
        with suppress(OSError):  # a run is worth more than its messages
            print(f"jaxmodels train {arguments[0]}: starting JAX", flush=True)
    from jaxmodels.training import command

    return command.run(arguments)


def compile(preset: Annotated[str, tyro.conf.Positional], /) -> int:
    """Compile a preset's training step, for a TPU that need not be there or for this machine, and say what it needs.

    Args:
        preset: for instance mammut-emoji-gpu; what follows it are its settings, such as --topology v6e:4x4.
    """
    return _compile([preset])


def _compile(arguments: list[str]) -> int:
    """Like `_train`."""
    from jaxmodels.training.compilation import command

    return command.run(arguments)


def convert(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")],
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")],
    /,
    *,
    model: str | None = None,
    config: str | None = None,
    encoder: str | None = None,
    entry: str | None = None,
    overwrite: bool = False,
) -> int:
    """Turn a PyTorch checkpoint into a hub folder, or a hub folder into a PyTorch checkpoint.

    Args:
        source: a .safetensors, .pt, .pth, .bin, .ckpt or .pth.tar file with a published package's state_dict, a
            folder with shards of one, or a hub folder.
        destination: a folder, or a .safetensors, .pt, .pth or .bin file.
        model: class name, such as ScalableViT, where the checkpoint's keys do not tell.
        config: constructor arguments that the checkpoint's shapes do not show: JSON, or the path of a JSON file.
        encoder: the same for the image encoder inside a MaMMUT.
        entry: which of several copies of the weights to take, such as ema.
        overwrite: replace the destination if it exists.
    """
    source, destination = local_path("source", source), local_path("destination", destination)
    from jaxmodels.convert import command
    from jaxmodels.training.mesh import require_device

    require_device()
    return command.run(
        source,
        destination,
        model=model,
        config=_json(config),
        encoder=_json(encoder, "encoder"),
        entry=entry,
        overwrite=overwrite,
    )


def demo(*, output: Path = Path("out/demo")) -> int:
    """Train a small model in JAX, compare it and all five with PyTorch, time them, and write one HTML report.

    Args:
        output: folder for report.html, report.json and the parts.
    """
    output = local_path("output", output)
    with _torch_needed("the demo"):
        from jaxmodels import demo as command

    return command.run(output)


def completion(shell: Annotated[Literal["bash", "zsh"], tyro.conf.Positional], /) -> int:
    """Print a script that completes commands, presets and flags: source <(jaxmodels completion bash).

    Args:
        shell: the one that will read the script.
    """
    from jaxmodels.training.command import flags
    from jaxmodels.training.presets import PRESETS

    words: dict[Sequence[str], Sequence[str]] = {
        (): [*COMMANDS, "--help", "--version"],
        ("train",): [*PRESETS, "--help"],
    }
    words["compile",] = words["train",]
    for name, preset in PRESETS.items():
        words["train", name] = flags(preset)
        words["compile", name] = ["--topology", *flags(preset)]
    for name in COMMANDS.keys() - {"train", "compile"}:
        parameters = inspect.signature(COMMANDS[name]).parameters.values()
        named = [f"--{p.name.replace('_', '-')}" for p in parameters if p.kind is p.KEYWORD_ONLY]
        first = {"compare": MODEL_NAMES, "benchmark": MODEL_NAMES, "completion": ("bash", "zsh")}.get(
            name, ()
        )
        words[name,] = [*first, *named, "--help"]
    print(completion_script(shell, words), end="")
    return 0


BROKEN_PIPE = 141  # by convention 128 + the number of the signal SIGPIPE

COMMANDS: dict[str, Callable[..., int]] = {
    "compare": compare,
    "capture": capture,
    "benchmark": benchmark,
    "train": train,
    "compile": compile,
    "convert": convert,
    "demo": demo,
    "completion": completion,
}


@contextmanager
def _torch_needed(what: str) -> Generator[None]:
    """Says how to get PyTorch where an import of it fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"{what} needs PyTorch: pip install -e '.[torch]' in a checkout of the repository, "
            "pip install 'jaxmodels[torch]' where the package comes from an index"
        ) from error


def main() -> None:
    """Entry point; the exit status is 0 only when what was asked for holds."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that cannot show a character must not end a run
    _use_compilation_cache()
    # PyTorch's waiting threads would hold cores that JAX needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["MPLBACKEND"] = "agg"  # figures go into files; a notebook's setting is of no use here
    try:
        status = _run(sys.argv[1:])
    except BrokenPipeError:  # `jaxmodels … | head` has read enough
        status = BROKEN_PIPE
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"jaxmodels: {_message(error)}", file=sys.stderr)
        status = 2
    except MemoryError as error:
        print(f"jaxmodels: out of memory: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("jaxmodels: interrupted", file=sys.stderr)
        status = 130
    _discard_unwritable_output()
    sys.exit(status)


def _discard_unwritable_output() -> None:
    """Python writes what is left when it ends, and would call a run failed whose messages cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout and not isinstance(error, BrokenPipeError):
                print(f"jaxmodels: the output could not be written: {error.strerror}", file=sys.stderr)


def _run(arguments: list[str]) -> int:
    require_no_empty(arguments)
    match arguments:
        case ["--version", *_]:
            print(version())
            return 0
        case ["help", *_]:
            arguments = ["--help"]
        case ["--tyro-print-completion", shell]:
            arguments = ["completion", shell]
        case ["train", *rest]:
            return _train(rest)
        case ["compile", *rest]:
            return _compile(rest)
        case ["compare" | "benchmark" as command, *rest]:
            arguments = [command, *_compared(rest)]
        case [command, *_] if not command.startswith("-"):
            require_name("command", command, COMMANDS)
    with plain_help():
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            args=arguments,
            prog="jaxmodels",
            description="GLOM, Hourglass, CoLT5 ViT, MaMMUT and ScalableViT in JAX, proven equal to PyTorch. "
            "`jaxmodels --version` names the versions.",
        )


SEVERAL_VALUES = ("--modes", "--implementations")  # of these flags


def _compared(words: list[str]) -> list[str]:
    """The words after `compare` or `benchmark`, with names such as scalable-vit as they are spelled here."""
    spelled, flag = [], ""
    for before, word in zip(["", *words], words, strict=False):
        flag = before if before.startswith("--") else flag
        is_value = flag in SEVERAL_VALUES or (before.startswith("--") and "=" not in before)
        if not word.startswith("-") and not is_value and not _is_path(word):
            word = word.lower().replace("-", "_")
            require_name("model", word, MODEL_NAMES)
        spelled.append(word)
    return spelled


def _is_path(word: str) -> bool:
    """Whether a word after `compare` is a file with a pair or the folder of a capture."""
    return word.rstrip("/").endswith((".py", ".capture")) or Path(word, "capture.json").is_file()


def _json(text: str | None, argument: str = "config") -> dict | None:
    """A JSON object, given as such or as the path of a file; ValueError names the argument otherwise."""
    if text is None:
        return None
    is_json = text.lstrip().startswith("{")
    if not is_json and not Path(text).is_file():
        raise ValueError(f"{argument} must be a JSON object or the path of a file with one; got {text!r}")
    try:
        value = json.loads(text if is_json else Path(text).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{argument} is not JSON: {error}; got {text!r}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{argument} must be a JSON object; {text!r} holds a {type(value).__name__}")
    return value


def _message(error: Exception) -> str:
    """What to tell the user; the system's errors begin with the file instead of a number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _use_compilation_cache() -> None:
    """Compiled programs are kept between runs, by default in the user's cache folder, if there is one."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home folder
        return
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "jaxmodels" / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


if __name__ == "__main__":
    main()
