"""What other conventions than PyTorch's make of BatchNorm's running statistics. Needs neither framework."""

from collections.abc import Callable

import numpy as np


class Update:
    """One statistic of PyTorch before and after the pass, and what other conventions would have made of it."""

    def __init__(self, momentum: float | None, old: np.ndarray, new: np.ndarray, count: int) -> None:
        self.share = 0.0 if momentum is None else float(momentum)  # of the new statistics
        self.old, self.new, self.count = old, new, count

    def explained(
        self, name: str, ours: np.ndarray, agree: Callable[[np.ndarray, np.ndarray], bool]
    ) -> tuple[str | None, bool]:
        """The convention that explains the difference, and whether it is that of the libraries alone."""
        if not 0 < self.share <= 1:
            return None, False
        momentum = (
            f"the momentum is the share of the old statistics in JAX and that of the new ones in PyTorch; "
            f"momentum={1 - self.share:g} in JAX"
        )
        unbiased = (
            f"PyTorch's running variance is unbiased: n / (n - 1) times JAX's, with n = {self.count} values per "
            "channel"
        )
        for shares, biased, reason in (
            (True, False, f"{momentum} removes the difference"),
            (False, True, f"{unbiased}; nothing else differs"),
            (True, True, f"{momentum}, and {unbiased}; together they are the difference"),
        ):
            if biased and not (name.endswith("var") and self.count > 1):
                continue
            if agree(ours, self._predicted(exchanged=shares, biased=biased)):
                return reason, biased and not shares
        return None, False

    def _predicted(self, *, exchanged: bool, biased: bool) -> np.ndarray:
        of_batch = (self.new.astype(np.float64) - (1 - self.share) * self.old) / self.share
        if biased:
            of_batch = of_batch * (self.count - 1) / self.count
        share = 1 - self.share if exchanged else self.share
        return (1 - share) * self.old + share * of_batch
