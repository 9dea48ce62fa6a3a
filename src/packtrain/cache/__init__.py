"""A node's own copy of versions: complete, verified, read-only snapshots, and downloads on their way there.

snapshots/<digest>/   as vLLM opens them; there only when whole and verified
partial/<digest>/     a download: tree/ and the journal of its finished chunks
marks/<digest>        under which boot a snapshot was verified, or that it is durable
locks/<digest>        pins: a shared lock that an engine's process holds as long as it lives; never removed
locks/<digest>.fetch  held by the one process that downloads; never removed
trash/                on its way out
"""

from packtrain.cache.partial import Partial
from packtrain.cache.snapshots import Cache, Pin

__all__ = ["Cache", "Partial", "Pin"]
