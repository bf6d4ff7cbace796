"""What the command line answers without importing JAX: names, near misses, and words to complete."""

import difflib
import os
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata


def require_name(kind: str, name: str, names: Collection[str]) -> None:
    """ValueError, with the nearest name, unless `name` is one of `names`."""
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"there is no {kind} {name!r}; {meant}known: {', '.join(names)}")


def completion_script(shell: str, words: Mapping[Sequence[str], Sequence[str]]) -> str:
    """A script that completes `jaxmodels` in bash or zsh.

    Args:
      shell: "bash" or "zsh".
      words: what may follow, by the words before: {(): commands, ("train",): presets, ("train", PRESET): flags}.

    Raises:
      ValueError: another shell.
    """
    require_name("completion for the shell", shell, ("bash", "zsh"))
    cases = "\n".join(
        f'    {_pattern(before)}) words="{" ".join(after)}" ;;' for before, after in words.items()
    )
    script = f"""_jaxmodels() {{
  local words="" before="" previous="${{COMP_WORDS[COMP_CWORD-1]}}" word count=0
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    [[ "$word" == -* || $count -ge 2 ]] && break
    before="${{before:+$before }}$word"
    count=$((count + 1))
  done
  case "$before" in
{cases}
  esac
  case "$previous" in
    --workdir|--data|--output|--checkpoint) COMPREPLY=($(compgen -f -- "${{COMP_WORDS[COMP_CWORD]}}")); return ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _jaxmodels jaxmodels
"""
    return f"autoload -U +X bashcompinit && bashcompinit\n{script}" if shell == "zsh" else script


def version() -> str:
    """This package and those that decide what it computes."""
    versions = []
    for name in ("jaxmodels", "jax", "flax"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} (not installed)")
    return ", ".join(versions)


def _pattern(before: Sequence[str]) -> str:
    """Flags may follow any further words of a command, but not `train` without a preset."""
    return f'"{" ".join(before)}"' + ("*" if before and before[0] != "train" else "")


@contextmanager
def plain_help() -> Generator[None]:
    """Honours NO_COLOR: tyro asks for the kind of terminal only."""
    before = os.environ.get("TERM")
    if os.environ.get("NO_COLOR"):
        os.environ["TERM"] = "dumb"
    try:
        yield
    finally:
        if before is not None:
            os.environ["TERM"] = before
