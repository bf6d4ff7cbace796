"""Being asked to stop: SIGTERM, SIGHUP and Ctrl-C end a run after its step, with a checkpoint."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

import jax
from jax.experimental import multihost_utils


HANG_UP_SIGNALS = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # Windows has none


class Interrupts:
    """Listens for SIGTERM, SIGHUP and Ctrl-C while the block runs; a second Ctrl-C ends the process at once.

    SIGHUP means that the terminal was closed. A program that was started with `nohup` goes on ignoring it.

    Python runs signal handlers only between two instructions, and compiling is one long instruction. A thread
    therefore reads the signals as the operating system notes them, so that Ctrl-C is answered without delay.
    Of several processes each hears its own signals; `requested` makes them agree on a step.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self.signal: int | None = None
        self.distributed = jax.process_count() > 1

    def __enter__(self) -> "Interrupts":
        self.active = threading.current_thread() is threading.main_thread()  # others cannot set handlers
        if not self.active:
            return self
        # Among several processes SIGTERM belongs to JAX's own service, which tells all of them.
        heard = (
            [signal.SIGINT, *HANG_UP_SIGNALS]
            if self.distributed
            else [signal.SIGINT, signal.SIGTERM, *HANG_UP_SIGNALS]
        )
        heard = [number for number in heard if number not in HANG_UP_SIGNALS or not _is_ignored(number)]
        self.before = {number: signal.signal(number, self._note) for number in heard}
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.descriptor_before = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.active:
            return
        signal.set_wakeup_fd(self.descriptor_before)
        for number, handler in self.before.items():
            signal.signal(number, handler)
        os.close(self.writer)
        self.thread.join(timeout=1)
        os.close(self.reader)

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; the same answer on all processes. Call it after every step."""
        if self.distributed:
            if multihost_utils.reached_preemption_sync_point(step):
                self.signal = self.signal or signal.SIGTERM
                return True
            return False
        return self.signal is not None

    @property
    def status(self) -> int:
        """Exit status, by convention 128 + the number of the signal."""
        return 128 + (self.signal or signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        if self.distributed:  # let the other processes know
            os.kill(os.getpid(), signal.SIGTERM)

    def _listen(self) -> None:
        times = 0
        while numbers := os.read(self.reader, 16):
            for number in numbers:
                if number in (signal.SIGTERM, *HANG_UP_SIGNALS):
                    name = signal.Signals(number).name
                    self.report(f"asked to stop ({name}): finishing this step, then saving")
                elif number == signal.SIGINT:
                    times += 1
                    if times > 1:
                        sys.stderr.write("\x1b[?25h\njaxmodels: interrupted; saved checkpoints are intact\n")
                        sys.stderr.flush()
                        os._exit(130)
                    self.report(
                        "interrupted: finishing this step, then saving; press Ctrl-C again to end at once"
                    )


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN
