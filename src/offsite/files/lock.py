"""A lock on a file or folder itself, which ends with the process."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path


class Lock:
    """On a file or folder, while this process lives and until released; without effect where locks are none.

    It locks the output itself. A `filelock` needs a file of its own, which would stay beside every output or
    be sent with a bundle, and a rename would part the two.

    FileNotFoundError where there is nothing at `path`, BlockingIOError where another has the lock, unless it
    is to `wait`.
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self.is_sure = False
        """Whether no one else has it."""
        self._descriptor: int | None = None
        if sys.platform == "win32":  # which has no flock, and opens no folders
            path.stat()
            return
        import fcntl

        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if not os.path.samestat(os.fstat(self._descriptor), path.stat()):
                raise FileNotFoundError(errno.ENOENT, "replaced meanwhile", str(path))
            self.is_sure = True
        except (FileNotFoundError, BlockingIOError):
            self.release()
            raise
        except OSError:  # a disk without locks
            self.release()

    def release(self) -> None:
        """Let it go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
