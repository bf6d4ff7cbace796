"""The allocator keeps freed memory, counted in page faults."""

import platform
import resource
import subprocess
import sys

import pytest

from jaxmodels.training.allocator import ALLOCATOR_VARIABLES, keep_freed_memory


# Takes 64 MB and gives them back, 20 times; prints the page faults of the last 10.
PROGRAM = """
import ctypes, resource, sys
from jaxmodels.training.allocator import keep_freed_memory
if sys.argv[1:]:
    assert keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes, library.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
for number in range(20):
    if number == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    piece = library.malloc(2**26)
    ctypes.memset(piece, 1, 2**26)
    library.free(piece)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str, **environment: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it sets glibc")
def test_freed_memory_is_used_again() -> None:
    pages = 10 * 2**26 // resource.getpagesize()

    assert faults() > pages / 4  # each of them anew; a quarter, should the system hand out huge pages
    assert faults("keep") < pages / 100
    assert faults(**ALLOCATOR_VARIABLES) < pages / 100


def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))

    assert not keep_freed_memory()
