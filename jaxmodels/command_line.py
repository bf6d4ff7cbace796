"""What the command line answers without importing JAX: names, near misses, and words to complete."""

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata

from jaxmodels.checks import require_name


def require_no_empty(arguments: Sequence[str]) -> None:
    """ValueError for an empty argument or flag, as a shell variable that is not set leaves it."""
    for before, word in zip(["", *arguments], arguments, strict=False):
        name, equals, value = word.partition("=")
        if equals and name.startswith("--") and not value.strip():
            raise ValueError(f"{name} must not be empty")
        if not word.strip():
            raise ValueError(f"{before if before.startswith('--') else 'an argument'} must not be empty")


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
    """Flags may follow any further words of a command, but not `train` or `compile` without a preset."""
    return f'"{" ".join(before)}"' + ("*" if before and before[0] not in ("train", "compile") else "")


@contextmanager
def plain_help() -> Generator[None]:
    """Applies NO_COLOR, which tyro ignores: it looks at the kind of terminal only."""
    before = os.environ.get("TERM")
    if os.environ.get("NO_COLOR"):
        os.environ["TERM"] = "dumb"
    try:
        yield
    finally:
        if before is not None:
            os.environ["TERM"] = before
