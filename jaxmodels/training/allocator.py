"""How the C library hands out memory, which decides a sixth of the time of a training step on a CPU."""

import ctypes
import platform


# glibc's names of what `keep_freed_memory` sets, for the environment of a program that is still to be started.
KEEPING = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, up to 2 GB, and use it again; says whether it can.

    XLA asks for one large piece for every call of a compiled function and gives it back afterwards. glibc takes
    pieces of that size from the system and returns them at once, so in the next call every page is fetched and
    zeroed anew: 101,000 page faults, 0.2 s of the system's time, in a training step of 0.65 s
    (`benchmarks/LOG.md`). PyTorch's operators gain as well, if less, because they ask for smaller pieces.

    To be called before JAX makes its first array: threads keep the pool of memory that they began with. The
    process then stays as large as it once was. Without glibc nothing is done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_ARENA_MAX: 1, _MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1}
    return all([mallopt(option, value) == 1 for option, value in settings.items()])
