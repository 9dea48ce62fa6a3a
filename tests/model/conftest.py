from __future__ import annotations

from hypothesis import settings

# A law holds or it does not; how fast one example runs on a busy machine says nothing.
settings.register_profile("packtrain", deadline=None)
settings.load_profile("packtrain")
