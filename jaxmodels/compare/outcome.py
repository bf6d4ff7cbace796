"""What a run of `jaxmodels compare` gives: results, and pairs that failed; and its exit status."""

from dataclasses import dataclass, field
from pathlib import Path

from jaxmodels.compare.divergence import Verdict
from jaxmodels.compare.places import Place, PlacedError, place_of_error
from jaxmodels.compare.result import Result


# The exit status of each verdict; a run takes the first that any of its pairs has.
STATUSES: dict[Verdict, int] = {"different": 1, "cannot be judged": 2, "equal": 0}


@dataclass(frozen=True)
class Failure:
    """A pair that could not be compared.

    Attributes:
      model: the pair's name; None where there was no pair yet.
      message: one sentence: what failed, and the way out where it is known.
      code: the user's line, where the error comes from one.
    """

    model: str | None
    message: str
    code: Place | None = None


@dataclass(frozen=True)
class Outcome:
    """All that one run found.

    Attributes:
      results: of the pairs that were compared, in their order.
      failures: those that could not be.
    """

    results: list[Result] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """That of the run: "different" where one pair is, and "equal" only where all are."""
        verdicts = {result.verdict for result in self.results}
        if self.failures or not verdicts:
            verdicts.add("cannot be judged")
        return next(verdict for verdict in STATUSES if verdict in verdicts)

    @property
    def status(self) -> int:
        """0 equal, 1 different, 2 could not be compared or judged."""
        return STATUSES[self.verdict]


def failure_of(error: Exception, model: str | None, folder: Path | None = None) -> Failure:
    """An error as a failure.

    Args:
      error: whatever was raised.
      model: the pair's name.
      folder: that of the user's file.
    """
    if isinstance(error, PlacedError):
        return Failure(model, str(error), error.place)
    code = place_of_error(error, folder) if folder else None
    message = (
        f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    )
    if not isinstance(error, ValueError | OSError):
        message = f"{type(error).__name__}: {message}"
    return Failure(model, f"{code}: {message}" if code else message, code)
