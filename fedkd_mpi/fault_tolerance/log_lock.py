"""One run at a time writes a log: two that resume it would mix their rounds and drop each other's checkpoints."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from contextlib import suppress
from errno import EACCES, EAGAIN, EISDIR, ELOOP, ENXIO
from pathlib import Path

from fedkd_mpi.common.console import say
from fedkd_mpi.errors import UserError

LONGEST = 4096  # bytes of a lock file: it holds the name of a process
TRIES = 1000


def reserve(log: Path) -> Lock:
    """Return the lock, taken, of the first of x.h5, x-2.h5, ... that is not there and that no other run begins.

    Runs that are named by the second they begin in may begin in the same one.
    """
    for number in range(1, TRIES):
        path = log if number == 1 else log.with_stem(f"{log.stem}-{number}")
        lock = Lock(path)
        with suppress(UserError):
            lock.take()
            if not (path.exists() or path.with_name(f"{path.name}.checkpoints").exists()):
                return lock
            lock.release()
    return Lock(log)  # why it cannot be had is said where it is taken


class HeldError(UserError):
    """Another process holds the lock: it is worth waiting for."""


class Lock:
    """A lock on `<log>.lock`, held by rank 0 from `take` to the end of the block; the kernel frees it with the process.

    It is a POSIX lock: network file systems pass these on between nodes, and no child process inherits it.
    """

    def __init__(self, log: Path):
        self.log, self.file = log, Path(f"{log}.lock")
        self._descriptor: int | None = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._descriptor is not None:
            self._remove()
            os.close(self._descriptor)
            self._descriptor = None

    def take(self) -> None:
        """Take the lock, or say that the file system has none; raises HeldError naming the process that holds it."""
        while self._descriptor is None:
            descriptor = self._open()
            if descriptor is None:
                return
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace")
                os.close(descriptor)
                if error.errno in (EACCES, EAGAIN):
                    raise HeldError(self._refusal(holder or "another run")) from None
                self._remove()
                self._warn(error)
                return
            if self._is_current(descriptor):
                self._descriptor = descriptor
            else:  # its holder has just removed it
                os.close(descriptor)
        with suppress(OSError):  # on a full disk; the name is for the message alone
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def _open(self) -> int | None:
        """Return a descriptor of the lock file, None where no log can be written either (said where it is opened)."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # Not through a link, and not waiting at a pipe: what is written here must be the lock's own file.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self.file, flags, 0o644)
        except OSError as error:
            if error.errno in (ELOOP, EISDIR, ENXIO):
                raise UserError(f"{self.file} is no lock of a run ({error.strerror}): remove it") from None
            return None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or status.st_size > LONGEST:
            os.close(descriptor)
            raise UserError(f"{self.file} is no lock of a run, but a file of something else: remove it")
        return descriptor

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.file.lstat())
        except FileNotFoundError:
            return False

    def _remove(self) -> None:
        with suppress(OSError):  # one that is left behind is not locked, and in nobody's way
            self.file.unlink()

    def _refusal(self, holder: str) -> str:
        return (
            f"{holder} is writing the log {self.log}: wait until it ends, or log elsewhere with --output "
            f"(if that process is gone with its node, remove {self.file})"
        )

    def _warn(self, error: OSError) -> None:
        text = f"no locks in {self.file.parent} ({error.strerror}): see to it that no other run writes {self.log.name}"
        say(f"fedkd_mpi: warning: {text}", error=True)
