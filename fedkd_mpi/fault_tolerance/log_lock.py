"""The lock of a log: two runs that write the same log would mix their rounds and remove each other's checkpoints."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
from contextlib import suppress
from errno import EACCES, EAGAIN, EISDIR, ELOOP, ENXIO
from pathlib import Path

from fedkd_mpi.common.console import say
from fedkd_mpi.errors import UserError

LONGEST = 4096  # bytes of a lock file at most; it contains the name of a process
FLOCK = "hhlli"  # struct flock of 64-bit Linux: type, whence, start, length, process
TRIES = 1000  # names tried for a new log


def reserve(log: Path) -> Lock:
    """Return the acquired lock of the first of x.h5, x-2.h5, ... that does not exist and that no other run has locked.

    Default names contain the second of the start, and several runs may start in the same second.
    """
    for number in range(1, TRIES):
        path = log if number == 1 else log.with_stem(f"{log.stem}-{number}")
        lock = Lock(path)
        with suppress(UserError):
            lock.take()
            if not (path.exists() or path.with_name(f"{path.name}.checkpoints").exists()):
                return lock
            lock.release()
    return Lock(log)  # its take() raises the error


def held(log: Path) -> bool:
    """Return whether another process, here or on another node, holds the lock of a log; False if there are no locks.

    It asks without taking the lock, which a run that starts meanwhile would find taken.
    """
    try:
        descriptor = os.open(Path(f"{log}.lock"), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return bool(struct.unpack(FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK)
    except OSError:
        return False
    finally:
        os.close(descriptor)


class HeldError(UserError):
    """Another process holds the lock; waiting for it may help."""


class Lock:
    """A lock on `<log>.lock`, held by rank 0 from take() to the end of the block.

    It is a POSIX lock: the kernel frees it when the process ends, network file systems support it between nodes, and
    child processes do not inherit it.
    """

    def __init__(self, log: Path):
        self.log, self.file = log, Path(f"{log}.lock")
        self._descriptor: int | None = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock if it is held."""
        if self._descriptor is not None:
            self._remove()
            os.close(self._descriptor)
            self._descriptor = None

    def take(self) -> None:
        """Acquire the lock, or warn if the file system has no locks; raises HeldError naming the current holder."""
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
            else:  # the former holder has just removed the file
                os.close(descriptor)
        with suppress(OSError):  # on a full disk; the name is only used in a message
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def _open(self) -> int | None:
        """Return a descriptor of the lock file; None if the folder is not writable, which is reported later."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # Do not follow links or wait for pipes: only the lock file itself may be written.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self.file, flags, 0o644)
        except OSError as error:
            if error.errno in (ELOOP, EISDIR, ENXIO):
                raise UserError(f"{self.file} is not a lock file ({error.strerror}): remove it") from None
            return None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or status.st_size > LONGEST:
            os.close(descriptor)
            raise UserError(f"{self.file} is not a lock file but another file: remove it")
        return descriptor

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.file.lstat())
        except FileNotFoundError:
            return False

    def _remove(self) -> None:
        with suppress(OSError):  # a file that remains is not locked and does no harm
            self.file.unlink()

    def _refusal(self, holder: str) -> str:
        return (
            f"{holder} is writing the log {self.log}: wait until it ends, or choose another log with --output "
            f"(if that process ended with its node, remove {self.file})"
        )

    def _warn(self, error: OSError) -> None:
        text = f"no locks in {self.file.parent} ({error.strerror}): make sure that no other run writes {self.log.name}"
        say(f"fedkd_mpi: warning: {text}", error=True)
