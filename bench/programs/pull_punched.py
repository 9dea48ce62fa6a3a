"""`packtrain pull` into files that are punched behind the writer, so that no disk has to hold them: as the command, but
nothing is allocated in advance, and what is written and checked is thrown away."""

import ctypes
import os
import sys

from packtrain.cache import partial
from packtrain.cli import main

_PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
_LIBC = ctypes.CDLL(None, use_errno=True)
_finish = partial.Partial.finish


def finish(self: partial.Partial, *indexes: int) -> None:
    _finish(self, *indexes)
    for index in indexes:
        first = 0
        for file in self._manifest.files:
            if index < first + len(file.chunks):
                break
            first += len(file.chunks)
        length = file.chunks[0].length  # all chunks are as long
        with self.open(file.path) as descriptor:
            at, count = ctypes.c_int64((index - first) * length), ctypes.c_int64(file.chunks[index - first].length)
            if _LIBC.fallocate(descriptor, _PUNCH, at, count):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


partial.Partial.finish = finish  # type: ignore[method-assign]
partial._allocate = lambda *_: None
sys.exit(main())
