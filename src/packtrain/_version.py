"""The version, in one place: pyproject.toml, `packtrain --version` and lineage records read it here."""

__version__ = "0.1.0"
