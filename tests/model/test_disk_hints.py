"""Whatever an operating system says of a disk, the message says what to do."""

from __future__ import annotations

import errno
import os

import pytest

from packtrain.errors import disk_error


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_error_of_a_disk_has_a_hint(number: int) -> None:
    error = disk_error(OSError(number, os.strerror(number)), "could not write it")
    assert str(error) == f"could not write it: {os.strerror(number)}"
    assert error.hint.endswith(".")


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.EMFILE, "ulimit"), (errno.ENAMETOOLONG, "shorter"), (errno.EFBIG, "4 GiB"), (errno.ESTALE, "mounted"),
        (errno.ENOLCK, "local disk"), (errno.ENOTDIR, "no folder"), (errno.EISDIR, "in the way"),
        (errno.ENOSPC, "continues where it was"), (errno.EIO, "dmesg"), (errno.EROFS, "read-only"),
        (errno.EPERM, "permissions"),
    ],
)  # fmt: skip
def test_the_usual_ones_have_their_own(number: int, word: str) -> None:
    assert word in disk_error(OSError(number, os.strerror(number)), "x").hint
