"""Headers of safetensors files on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from packtrain.model.safetensors import Header, header_length, parse_header
from packtrain.training.documents import disk_error, open_regular


def read_header(path: Path) -> Header:
    """The header of a safetensors file, checked against the file's size; the tensors' bytes are not read.

    Raises `packtrain.model.safetensors.HeaderError`, whose message completes "FILE: ...", NotFound, LocalDiskError.
    """
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            first8 = file.read(8)
            header = first8 + file.read(header_length(first8, size) - 8)
        except OSError as error:
            raise disk_error(path, error) from error
    return parse_header(header, size)
