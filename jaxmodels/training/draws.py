"""Random numbers of training examples, drawn for a whole batch at once."""

import math

import numpy as np
from jaxtyping import Float64, Int, Int64, UInt32, UInt64


# Second half of the generator's key: what it draws.
EXAMPLES, ORDER = 0, 1
WORDS_IN_BLOCK = 4  # 64-bit numbers that Philox makes of one count


class Draws:
    """What is random in some examples: for each a function of the seed and of its position in the run alone.

    The generator (Philox, Salmon et al. 2011) computes any block of its stream without those before it. Each example
    has blocks of its own, each call a stream of its own. So an example draws the same numbers in any company.

    Args:
      seed: of the run, from 0 to 2⁶³ - 1.
      positions: of the examples in the run; not far apart, since all between the first and the last are drawn.
    """

    def __init__(self, seed: int, positions: Int[np.ndarray, " b"]) -> None:
        self.seed, self.positions = seed, positions
        self.calls = 0

    def uniform(self, low: float, high: float, *shape: int) -> Float64[np.ndarray, "b ..."]:
        """Numbers in [low, high), so many for every example."""
        return low + (high - low) * ((self._words(*shape) >> np.uint64(11)) * 2.0**-53)

    def integers(self, low: int, high: int, *shape: int) -> Int64[np.ndarray, "b ..."]:
        """Integers from low to high - 1, so many for every example."""
        return np.floor(self.uniform(low, high, *shape)).astype(np.int64)

    def keys(self) -> UInt32[np.ndarray, "b 2"]:
        """A key of JAX's Threefry generator for every example."""
        return self._words(1).view(np.uint32)

    def _words(self, *shape: int) -> UInt64[np.ndarray, "b ..."]:
        count = math.prod(shape)
        blocks = -(-count // WORDS_IN_BLOCK)
        first = int(self.positions.min())
        examples = int(self.positions.max()) - first + 1
        self.calls += 1
        generator = np.random.Philox(key=[self.seed, EXAMPLES], counter=[first * blocks, self.calls, 0, 0])
        words = generator.random_raw(examples * blocks * WORDS_IN_BLOCK).reshape(examples, -1)
        return words[self.positions - first, :count].reshape(-1, *shape)
