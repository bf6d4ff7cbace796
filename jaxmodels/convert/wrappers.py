"""What training code puts around weights: other entries of a checkpoint, and prefixes that wrappers add to keys.

Removing it changes no number. What was chosen or removed is logged in one line; the keys that remain are checked as
strictly as before.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any


logger = logging.getLogger("jaxmodels")

# Entries under which training code keeps the weights, the usual ones first.
USUAL_ENTRIES = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
DEEPEST_ENTRY = 3

# Parts of keys that DistributedDataParallel, torch.compile, FSDP and activation checkpointing add.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
AVERAGED = "n_averaged"  # how many models torch.optim.swa_utils.AveragedModel has averaged


def choose_entry(
    content: Mapping[Any, Any], entry: str | None = None, *, source: str = ""
) -> tuple[Mapping[Any, Any], str | None]:
    """The state_dict inside of a checkpoint, `content` itself or one of its entries, and `entry` if still unused.

    Args:
      content: what a file holds; either arrays by name, or mappings of which some are such.
      entry: name of the entry to take, with a slash for one inside another ("ema/module"); by default the only
        one, the only one that is no moving average, or one with a usual name. Unused where there are no entries.
      source: what the messages begin with.

    Raises:
      ValueError: there is no such entry, or several and none with a usual name; all are named.
    """
    found = dict(_entries(content))
    names = ", ".join(map(repr, found))
    if not found:
        return content, entry
    if entry is not None:
        if entry not in found:
            raise ValueError(f"{source}entry must be one of {names}; got entry={entry!r}")
        return found[entry], None
    chosen = _usual(list(found))
    if chosen is None:
        raise ValueError(f"{source}there are several state_dicts: {names}; choose one with entry= (--entry)")
    others = [name for name in found if name != chosen]
    beside = f"; also there: {', '.join(map(repr, others))}, chosen with entry= (--entry)" if others else ""
    logger.warning("%sread from its entry %r%s", source, chosen, beside)
    return found[chosen], None


def _entries(
    content: Mapping[Any, Any], path: str = "", depth: int = 1
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The state_dicts inside of `content`, but not `content` itself, with the path of each."""
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Mapping) or depth > DEEPEST_ENTRY:
            continue
        if value and all(isinstance(name, str) and hasattr(array, "shape") for name, array in value.items()):
            yield path + key, value
        else:
            yield from _entries(value, f"{path}{key}/", depth + 1)


def _usual(names: list[str]) -> str | None:
    if len(names) > 1:
        current = [
            name for name in names if not any(mark in name.lower() for mark in ("ema", "averag", "swa"))
        ]
        names = current or names
    if len(names) == 1:
        return names[0]
    last = {name.rstrip(".").replace("/", ".").rpartition(".")[2]: name for name in reversed(names)}
    return next((last[usual] for usual in USUAL_ENTRIES if usual in last), None)


def strip_prefixes(
    arrays: Mapping[str, Any], known: Collection[str], *, entry: str | None = None, source: str = ""
) -> Mapping[str, Any]:
    """Removes from the keys what wrappers have added in front of `known` ones.

    Parts such as `module.` and `_orig_mod.` go wherever they are, and then the prefix behind which the most known
    keys are. Behind another prefix there may be as many, for instance a moving average (`model.` and `ema.`): that
    copy is left out. Everything else stays, for the caller to refuse.

    Args:
      arrays: the weights by their keys.
      known: keys of the model, all or some; without any, only parts such as `module.` are removed.
      entry: the prefix to take where there are several copies, without its last dot.
      source: what the messages begin with.

    Raises:
      ValueError: `entry` is not among the prefixes, or there are several and none is a usual one; all are named.
    """
    keys = {key: key if key in known else _without_wrappers(key) for key in arrays}
    if len(set(keys.values())) < len(keys):  # two entries would become one
        return arrays
    hits = _count_known(keys.values(), known) if known else {"": 0}
    copies = [prefix for prefix, count in hits.items() if count == max(hits.values())]
    if entry is not None and f"{entry}." not in copies:
        names = ", ".join(repr(prefix.rstrip(".")) for prefix in copies if prefix)
        raise ValueError(
            f"{source}entry must be one of {names or 'none: there is only one model'}; got {entry!r}"
        )
    if not copies:
        return arrays
    chosen = f"{entry}." if entry is not None else min(copies, key=len) if "" in copies else _usual(copies)
    if chosen is None:
        names = ", ".join(repr(prefix.rstrip(".")) for prefix in copies)
        raise ValueError(
            f"{source}there are several copies of the weights: {names}; choose one with entry= (--entry)"
        )
    others = [prefix for prefix in copies if prefix and prefix != chosen]
    result, removed = {}, dict.fromkeys(part for key in arrays for part in _wrappers(key, keys[key]))
    for key, shorter in keys.items():
        if shorter == AVERAGED and removed:
            removed[AVERAGED] = None
        elif not any(shorter.startswith(prefix) for prefix in others):
            result[shorter.removeprefix(chosen)] = arrays[key]
    if chosen:
        removed[chosen] = None
    if removed or others:
        _log_removed(list(removed), [prefix.rstrip(".") for prefix in others], source)
    return result


def most_known(keys: Iterable[str], known: Collection[str]) -> int:
    """How many of the `known` keys there are, at most, behind one prefix."""
    return max(_count_known(map(_without_wrappers, keys), known).values(), default=0)


def _count_known(keys: Iterable[str], known: Collection[str]) -> Mapping[str, int]:
    """Behind which prefix there are how many known keys."""
    return Counter(prefix for key in keys for prefix in _prefixes(key) if key.removeprefix(prefix) in known)


def _log_removed(removed: list[str], copies: list[str], source: str) -> None:
    beside = f"; also there: {', '.join(map(repr, copies))}, chosen with entry= (--entry)" if copies else ""
    parts = f"removed from the keys: {', '.join(map(repr, removed))}" if removed else "read the first copy"
    logger.warning("%s%s%s", source, parts, beside)


def _prefixes(key: str) -> Iterator[str]:
    """ "" and every beginning of `key` that ends with a dot."""
    yield ""
    for position, character in enumerate(key):
        if character == ".":
            yield key[: position + 1]


def _without_wrappers(key: str) -> str:
    *parts, last = key.split(".")
    return ".".join([*(part for part in parts if part not in WRAPPERS), last])


def _wrappers(key: str, shorter: str) -> list[str]:
    return [] if key == shorter else [f"{part}." for part in key.split(".") if part in WRAPPERS]
