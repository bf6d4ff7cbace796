"""`--map map.toml`: the table of a user's pair from a file, or inferred and written to it."""

from dataclasses import replace
from pathlib import Path

from jaxmodels.compare.calls import PairError
from jaxmodels.compare.inference import UndecidedError, infer_table, read_map, write_map
from jaxmodels.compare.pair import Pair


def with_map(pair: Pair, path: Path) -> Pair:
    """The pair with the table of the file; where there is no such file, it is inferred and written there.

    Raises:
      PairError: something could not be decided. The file then holds what is sure and what is not.
      ValueError, OSError: a file that cannot be read, or in which something is still undecided.
    """
    if path.exists():
        return replace(pair, table=read_map(path))
    try:
        table = infer_table(
            pair.ours,
            pair.theirs,
            pair.inputs,
            to_ours=pair.to_ours,
            call_ours=pair.call_ours,
            call_theirs=pair.call_theirs,
        )
    except UndecidedError as error:
        write_map(path, error.table, error.undecided)
        raise PairError(
            f"{error}\n{path} has the rest: edit its [[undecided]] entries and run again"
        ) from error
    write_map(path, table)
    return replace(pair, table=table)
