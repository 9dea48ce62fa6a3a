"""A node's own copy of versions: complete, verified, read-only snapshots, and downloads on their way there.

snapshots/<digest>/   as vLLM opens them; there only when whole and verified
partial/<digest>/     a download: tree/ and the journal of its finished chunks
marks/<digest>        under which boot a snapshot was verified, or that it is durable
marks/<digest>.lease  until when it was promised to stay
marks/<digest>.pin    it is pinned for good
marks/<digest>.used   when it was used last: the file's own time
locks/<digest>        pins: a shared lock that an engine's process holds as long as it lives; never removed
locks/<digest>.fetch  held by the one process that downloads; never removed
locks/room            held by the one process that measures, evicts or takes space; never removed
trash/                on its way out

Locks are taken in this order: a pin, the download's, the room's. Whoever has the room's only tries for others.
"""

from packtrain.cache.locks import Pin
from packtrain.cache.partial import Partial, finished_chunks
from packtrain.cache.snapshots import Cache, Cleared, Contents, Naming

__all__ = ["Cache", "Cleared", "Contents", "Naming", "Partial", "Pin", "finished_chunks"]
