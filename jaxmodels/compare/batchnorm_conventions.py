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
            if agree(ours, self._predicted(1 - self.share if shares else self.share, biased=biased)):
                return reason, biased and not shares
        return self._other_share(ours, agree, biased=name.endswith("var") and self.count > 1), False

    def _other_share(
        self, ours: np.ndarray, agree: Callable[[np.ndarray, np.ndarray], bool], *, biased: bool
    ) -> str | None:
        """The sentence for another momentum, where one explains the difference."""
        for one in dict.fromkeys((False, biased)):
            step = self._predicted(1.0, biased=one) - self.old
            if not step.any():
                continue
            moved = ours.astype(np.float64) - self.old
            share = float(f"{float((moved * step).sum() / (step * step).sum()):.3g}")
            if 0 <= share <= 1 and agree(ours, self._predicted(share, biased=one)):
                return (
                    f"JAX keeps {1 - share:g} of the old statistics, PyTorch {1 - self.share:g}; "
                    f"momentum={1 - self.share:g} in JAX removes the difference"
                )
        return None

    def _predicted(self, share: float, *, biased: bool) -> np.ndarray:
        """The statistics after the pass if the new ones had this share."""
        of_batch = (self.new.astype(np.float64) - (1 - self.share) * self.old) / self.share
        if biased:
            of_batch = of_batch * (self.count - 1) / self.count
        return (1 - share) * self.old + share * of_batch
