"""A store in a directory: a laptop's disk, an NFS or JuiceFS mount.

How a write becomes durable before it becomes visible: the bytes go to a file under ``<root>/.packtrain-tmp/``, which
no listing shows, and are synced; link(2) gives the file its name if nobody has that name (`create`), rename(2) gives
it its name whoever had it (`upload`); then every folder down to it is synced. A crash leaves only the hidden file,
which its writer had locked: the next writer of the same machine finds it unlocked, and removes it.

`delete` removes the folders that it leaves empty. The file system keeps that apart from writers: rmdir(2) fails when
something is in a folder, and link(2) and rename(2) fail in a folder that is gone, whereupon the writer makes it anew.

Symbolic links inside a store are not objects and are never followed, neither as the last part of a key nor before.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

from packtrain.errors import AlreadyExists, LocalDiskError, NotFound, Refused, Unavailable, disk_hint
from packtrain.ports import ObjectInfo
from packtrain.storage.names import PAUSES, lstat_at, open_at

TEMPORARY = ".packtrain-tmp"  # the folder of unfinished files, each named <host>.<process id>.<random>

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_OBJECT = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO must not block; it is no object either
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW

# Nothing is there, a file or a symbolic link is where a folder must be, or a socket where an object must be.
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}
_GONE = {errno.ENOENT, errno.ESTALE}  # a folder was removed while it was open: by this host, by another over NFS
_IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENOTEMPTY}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM}
_AWAY = {errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN}
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NO_COPIES = {errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_COPIED = 64 << 20  # bytes that the kernel copies at once, so that a copy can be ended


@dataclass(frozen=True, slots=True)
class _Unfinished:
    """A file that has no key yet: ``name`` in the open folder ``folder``, open for writing as ``file``."""

    folder: int
    name: str
    file: int

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.file, rest) :]

    def seal(self) -> None:
        """Nothing more will be written, by anybody; and what was written is durable."""
        os.fchmod(self.file, 0o444)
        os.fsync(self.file)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file of any kind in the store: its key, and what lstat(2) says."""

    key: str
    stat: os.stat_result


class DirectoryStore:
    """A `Store` under ``root``, which is created at the first write. ``root`` itself may be a symbolic link."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._swept = False

    @property
    def url(self) -> str:
        return self._root.as_uri()

    @property
    def directory(self) -> Path:
        return self._root

    @property
    def multipart(self) -> None:
        return None

    def get(self, key: str) -> bytes:
        with self._errors(key), self._object(key) as file, open(file, "rb", closefd=False) as stream:
            return stream.read()

    def prepare(self, key: str, reads: int) -> None:
        pass

    def read(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        end = start + length
        with self._errors(key), self._object(key) as file:
            while start < end:
                size = len(buffer) - start % len(buffer)  # aligned: the page cache gives and takes that at less cost
                count = os.preadv(file, [buffer[: min(size, end - start)]], start)
                if count == 0:
                    raise Unavailable(
                        f"{self._root / key} ends after {os.fstat(file).st_size} bytes; {end} were expected",
                        hint="Something other than Packtrain changed it; `packtrain verify --bytes` finds the damage.",
                    )
                start += count
                yield buffer[:count]

    def create(self, key: str, data: bytes) -> None:
        with self._errors(key), self._unfinished() as new:
            new.write(data)
            new.seal()
            self._place(key, lambda folder: self._link(new, key, folder))

    def upload(self, key: str, body: Iterable[bytes], size: int) -> None:
        with self._unfinished() as new:
            written = 0
            for piece in body:  # outside of _errors: what the body raises is not ours
                written += len(piece)
                if written > size:
                    break
                with self._errors(key):
                    new.write(piece)
            if written != size:
                raise ValueError(f"the body of {key} does not give the {size} bytes that were announced")
            with self._errors(key):
                new.seal()
                self._place(
                    key, lambda folder: os.rename(new.name, _name(key), src_dir_fd=new.folder, dst_dir_fd=folder)
                )

    def copy_from(self, url: str, key: str, size: int, advance: Callable[[int], None], *, fixed: bool = False) -> bool:
        """By copy_file_range(2), within one file system: XFS, Btrfs, NFS 4.2 and JuiceFS then share the blocks or copy
        them on the server; elsewhere the kernel copies. What is fixed is linked: one file with two names."""
        if not url.startswith("file://"):
            return False
        path = Path(unquote(url.removeprefix("file://")))
        if fixed and self._linked(path, key, size):
            advance(size)
            return True
        with self._unfinished() as new:
            try:
                with path.open("rb", buffering=0) as source:
                    if os.fstat(source.fileno()).st_dev != os.fstat(new.file).st_dev:
                        return False
                    if not _copy_range(source.fileno(), new.file, size, advance):
                        return False
            except FileNotFoundError as error:
                raise NotFound(f"there is no {path}") from error
            except OSError as error:
                raise LocalDiskError(
                    f"could not copy {path} to {self._root / key}: {error.strerror}",
                    hint=_free(self._root) if error.errno in _FULL else disk_hint(error),
                ) from error
            with self._errors(key):
                new.seal()
                self._place(
                    key, lambda folder: os.rename(new.name, _name(key), src_dir_fd=new.folder, dst_dir_fd=folder)
                )
        return True

    def _linked(self, path: Path, key: str, size: int) -> bool:
        """Whether the file system gave a file a second name, in place of whatever had it."""

        def replace(to: int) -> None:
            try:
                os.rename(hidden, _name(key), src_dir_fd=folder, dst_dir_fd=to)
            except FileNotFoundError:
                with suppress(FileExistsError):  # no lock is on it: a writer who sweeps takes it for left behind
                    os.link(path, hidden, dst_dir_fd=folder, follow_symlinks=False)
                raise

        with self._errors(key), ExitStack() as opened:
            hidden, folder = _hidden_name(), self._make_folders(opened, [TEMPORARY])[-1]
            try:
                info = path.lstat()
                if not stat.S_ISREG(info.st_mode) or info.st_size != size:
                    return False
                os.link(path, hidden, dst_dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError as error:
                raise NotFound(f"there is no {path}") from error
            except OSError:  # another file system, none with links, or too many: then it is copied
                return False
            try:
                self._place(key, replace)
            finally:
                with suppress(OSError):  # rename(2) of two names of one file leaves both
                    os.unlink(hidden, dir_fd=folder)
        return True

    def delete(self, key: str) -> None:
        self._remove(key, stat.S_ISREG)

    def head(self, key: str) -> ObjectInfo | None:
        with self._errors(key), suppress(NotFound), self._object(key) as file:
            return _info(key, os.fstat(file))
        return None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for entry in self._walk(prefix):
            if stat.S_ISREG(entry.stat.st_mode):
                yield _info(entry.key, entry.stat)

    def children(self, prefix: str) -> Iterator[str]:
        with self._errors(prefix), ExitStack() as opened, suppress(NotFound):
            *_, folder = self._descend(opened, prefix, _parts(prefix))
            names = set(os.listdir(folder))  # noqa: PTH208 - of a descriptor
            for name in names if prefix else names - {TEMPORARY}:
                if next(self.list(f"{prefix}{name}/"), None):  # as in a bucket: no empty folders
                    yield name

    def locate(self, key: str) -> str:
        return (self._root / key).as_uri()

    # Symbolic links: for people and other programs. They are no objects.

    def links(self, prefix: str) -> dict[str, str]:
        """What each symbolic link under ``prefix`` says, by its key."""
        with self._errors(prefix):
            links = [entry for entry in self._walk(prefix) if stat.S_ISLNK(entry.stat.st_mode)]
            return {entry.key: target for entry in links if (target := _read_link(self._root / entry.key)) is not None}

    def set_link(self, key: str, target: str) -> None:
        """Makes ``key`` a symbolic link that says ``target``, in one stroke where another link is, and durable.

        Raises Refused where the file system has none, and where something else is.
        """
        name = _name(key)

        def replace(folder: int) -> None:
            there = lstat_at(name, folder)
            if there is not None and not stat.S_ISLNK(there.st_mode):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.rename(hidden, name, src_dir_fd=hidden_folder, dst_dir_fd=folder)

        with self._errors(key), ExitStack() as opened:
            hidden, hidden_folder = _hidden_name(), self._make_folders(opened, [TEMPORARY])[-1]
            os.symlink(target, hidden, dir_fd=hidden_folder)
            try:
                self._place(key, replace)
            finally:
                with suppress(OSError):
                    os.unlink(hidden, dir_fd=hidden_folder)

    def remove_link(self, key: str) -> None:
        """No error if there is none; what is no link stays."""
        self._remove(key, stat.S_ISLNK)

    # What writers that died have left

    def unfinished(self) -> dict[str, datetime]:
        """The hidden files of writers, living or dead, and when each was last written to."""
        with self._errors(TEMPORARY), ExitStack() as opened, suppress(NotFound):
            *_, folder = self._descend(opened, TEMPORARY, [TEMPORARY])
            infos = {name: lstat_at(name, folder) for name in os.listdir(folder)}  # noqa: PTH208 - of a descriptor
            return {name: datetime.fromtimestamp(info.st_mtime, UTC) for name, info in infos.items() if info}
        return {}

    def discard_unfinished(self, name: str) -> None:
        """Removes a hidden file. Its writer, if it lives after all, fails and leaves nothing wrong behind."""
        with self._errors(name), ExitStack() as opened, suppress(NotFound, FileNotFoundError):
            *_, folder = self._descend(opened, TEMPORARY, [TEMPORARY])
            os.unlink(name, dir_fd=folder)

    # Reading

    def _walk(self, prefix: str) -> Iterator[_Entry]:
        """Everything under a prefix but folders, following no link."""
        parts = _parts(prefix)
        with self._errors(prefix), ExitStack() as opened, suppress(NotFound):
            *_, top = self._descend(opened, prefix, parts)
            yield from _entries(prefix, top, leaving=() if parts else (TEMPORARY,))

    @contextmanager
    def _object(self, key: str) -> Iterator[int]:
        """An object, open for reading. Raises NotFound."""
        *folders, name = _parts(key)
        with ExitStack() as opened:
            *_, folder = self._descend(opened, key, folders)
            try:
                file = open_at(name, _OBJECT, folder)
            except OSError as error:
                if error.errno in _ABSENT:
                    raise self._not_found(key) from None
                raise
            opened.callback(_close, file)
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise self._not_found(key)
            yield file

    def _descend(self, opened: ExitStack, key: str, parts: Sequence[str]) -> Iterator[int]:
        """Opens folder in folder from the root, following no link below it. Raises NotFound."""
        try:
            folder = _keep(opened, os.open(self._root, os.O_RDONLY | os.O_DIRECTORY))
            yield folder
            for part in parts:
                folder = _keep(opened, open_at(part, _FOLDER, folder))
                yield folder
        except OSError as error:
            if error.errno in _ABSENT:
                raise self._not_found(key) from None
            raise

    def _not_found(self, key: str) -> NotFound:
        return NotFound(f"there is no {self._root / key}")

    # Writing

    @contextmanager
    def _unfinished(self) -> Iterator[_Unfinished]:
        """A new hidden file, which is gone at the end, whatever happens, unless it was renamed."""
        with ExitStack() as opened:
            with self._errors(TEMPORARY):
                folder = self._make_folders(opened, [TEMPORARY])[-1]
                self._sweep(folder)
                name, file = _new_locked(opened, folder)
            try:
                yield _Unfinished(folder, name, file)
            finally:
                with suppress(OSError):  # renamed, or on a disk that fails: then gc finds it
                    os.unlink(name, dir_fd=folder)

    def _sweep(self, folder: int) -> None:
        """Removes, once, what writers of this machine left when they died. Of other machines nobody here can know."""
        if self._swept:
            return
        self._swept = True
        for name in os.listdir(folder):
            if name.startswith(f"{socket.gethostname()}."):
                with suppress(OSError):  # its writer lives, or was first to remove it
                    _remove_dead(name, folder)

    def _place(self, key: str, act: Callable[[int], None]) -> None:
        """Calls ``act`` with the open folder of a key, which is made if need be, and makes what it did durable."""
        for pause in (*PAUSES, None):
            with ExitStack() as opened:
                try:
                    folders = self._make_folders(opened, _parts(key)[:-1])
                    act(folders[-1])
                except OSError as error:
                    if error.errno not in _GONE or pause is None:
                        raise
                    time.sleep(pause)  # somebody who deleted found it empty
                    continue
                _sync(folders)
                return

    def _make_folders(self, opened: ExitStack, parts: Sequence[str]) -> Sequence[int]:
        folder = self._open_root(opened)
        folders = [folder]
        for part in parts:
            folder = _keep(opened, _open_or_make(part, folder))
            folders.append(folder)
        return folders

    def _remove(self, key: str, is_kind: Callable[[int], bool]) -> None:
        """Removes what is at a key if its mode is of a kind, then the folders that are empty without it."""
        *parts, name = _parts(key)
        folders: list[int] = []
        with self._errors(key), ExitStack() as opened:
            with suppress(NotFound):
                folders.extend(self._descend(opened, key, parts))
                info = lstat_at(name, folders[-1])
                if info is not None and is_kind(info.st_mode):
                    with suppress(FileNotFoundError):  # another deleter was first
                        os.unlink(name, dir_fd=folders[-1])
                os.fsync(folders[-1])
            _prune(parts, folders)

    def _open_root(self, opened: ExitStack) -> int:
        """Opens the root, and makes it and what leads to it if need be."""
        missing = [path for path in (self._root, *self._root.parents) if not path.exists()]
        for path in reversed(missing):
            above = _keep(opened, os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY))
            _keep(opened, _open_or_make(path.name, above))
            os.fsync(above)
        return _keep(opened, os.open(self._root, os.O_RDONLY | os.O_DIRECTORY))

    def _link(self, new: _Unfinished, key: str, folder: int) -> None:
        try:
            os.link(new.name, _name(key), src_dir_fd=new.folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            # NFS repeats a request whose answer was lost: the name that is there may be the one we just gave.
            if os.fstat(new.file).st_nlink != 2:
                raise AlreadyExists(f"{self._root / key} is there already") from None
        except OSError as error:
            if error.errno in _NO_HARD_LINKS:
                raise Refused(
                    f"{self._root} is on a file system without hard links: {error.strerror}",
                    hint="Without them two writers cannot be kept apart. Use a local disk, NFS or JuiceFS, "
                    "or give the bucket behind a mounted bucket as s3://...",
                ) from error
            raise

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turns what the operating system says into our errors."""
        try:
            yield
        except OSError as error:
            what = f"{self._root / key}: {error.strerror}"
            number = error.errno
            if number in _FORBIDDEN:
                raise Refused(what, hint="Check who owns the store's directory and what this user may do.") from error
            if number in _IN_THE_WAY:
                raise Refused(
                    what,
                    hint="A file, a folder or a symbolic link is where the store needs another thing. "
                    "Packtrain never follows links inside a store; move it away.",
                ) from error
            if number in _AWAY:
                raise Unavailable(what, hint="Check that the share is mounted and its server answers.") from error
            if number in _FULL:
                hint = f"{_free(self._root)} Make room, or use another store."
            elif number == errno.EROFS:
                hint = "It is mounted read-only. Mount it for writing, or publish from another machine."
            else:
                hint = disk_hint(error)
            raise LocalDiskError(what, hint=hint) from error


def _parts(key: str) -> list[str]:
    """The names in a key or a prefix. A key that `packtrain.model` cannot have made is a bug, and must not escape."""
    parts = key.removesuffix("/").split("/") if key else []
    if not {"", ".", "..", TEMPORARY}.isdisjoint(parts) or "\0" in key:
        raise ValueError(f"{key!r} is not a key")
    return parts


def _name(key: str) -> str:
    *_, name = _parts(key)
    return name


def _info(key: str, stat: os.stat_result) -> ObjectInfo:
    modified = datetime.fromtimestamp(stat.st_mtime, UTC)
    return ObjectInfo(key, stat.st_size, f"{stat.st_ino}.{stat.st_mtime_ns}", modified)


def _copy_range(source: int, target: int, size: int, advance: Callable[[int], None]) -> bool:
    """Whether the kernel copied ``size`` bytes; if not, what was told to ``advance`` is taken back."""
    done = 0
    while done < size:
        try:
            count = os.copy_file_range(source, target, min(size - done, _COPIED))
        except OSError as error:
            if error.errno not in _NO_COPIES:
                raise
            count = 0
        if count == 0:
            advance(-done)
            return False
        done += count
        advance(count)
    return True


def _keep(opened: ExitStack, file: int) -> int:
    opened.callback(_close, file)
    return file


def _close(file: int) -> None:
    """What was written is synced before, so that no error of close(2) means anything. Some file systems have one for a
    file that another machine has removed."""
    with suppress(OSError):
        os.close(file)


def _hidden_name() -> str:
    return f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(8)}"


def _new_locked(opened: ExitStack, folder: int) -> tuple[str, int]:
    """A new hidden file, open for writing, and locked where the file system has locks.

    Until it is locked somebody may take it for left behind. Its second name was never without a lock, and only a file
    that is still there gets one: that a file is there, another mount of a shared volume says from memory.
    """
    while True:
        first, name = _hidden_name(), _hidden_name()
        file = _keep(opened, os.open(first, _NEW, 0o600, dir_fd=folder))
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            os.rename(first, name, src_dir_fd=folder, dst_dir_fd=folder)
        except FileNotFoundError:
            continue
        except OSError:
            with suppress(OSError):
                os.unlink(first, dir_fd=folder)
            raise
        return name, file


def _remove_dead(name: str, folder: int) -> None:
    """Raises OSError if its writer lives, or if it cannot be removed. A link cannot be locked, so its writer's process
    is looked for; one in another container loses a link that it sets in this very moment, and says so."""
    info = lstat_at(name, folder)
    if info is not None and stat.S_ISLNK(info.st_mode):
        _, process, _ = name.rsplit(".", 2)
        if not Path(f"/proc/{process}").exists():
            os.unlink(name, dir_fd=folder)
        return
    file = os.open(name, _OBJECT, dir_fd=folder)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # NFS has shared locks alone for what is open for reading
        os.unlink(name, dir_fd=folder)
    finally:
        os.close(file)


def _read_link(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):  # removed since it was listed, or replaced by what is no link
            return None
        raise


def _entries(prefix: str, folder: int, leaving: Collection[str] = ()) -> Iterator[_Entry]:
    """Everything under an open folder but folders and what is called as in ``leaving``. Closes only what it opens."""
    for name in os.listdir(folder):
        info = lstat_at(name, folder)
        if info is None or name in leaving:  # removed since the folder was read
            continue
        if not stat.S_ISDIR(info.st_mode):
            yield _Entry(prefix + name, info)
            continue
        with ExitStack() as opened:
            try:
                below = _keep(opened, open_at(name, _FOLDER, folder))
            except OSError as error:
                if error.errno in _ABSENT:
                    continue
                raise
            yield from _entries(f"{prefix}{name}/", below)


def _open_or_make(name: str, folder: int) -> int:
    """A folder in a folder, open; 0755 if it is made here, whatever the umask."""
    made = False
    with suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=folder)
        made = True
    file = open_at(name, _FOLDER, folder)
    if made:
        os.fchmod(file, stat.S_IMODE(os.fstat(file).st_mode) | 0o755)  # what a parent hands down (setgid) stays
    return file


def _sync(folders: Sequence[int]) -> None:
    """Makes a new name durable, and every folder on the way to it, whoever made them."""
    for folder in reversed(folders):
        os.fsync(folder)


def _prune(parts: Sequence[str], folders: Sequence[int]) -> None:
    """Removes those of the folders ``parts`` that are empty, from the deepest up. Each is in one of ``folders``."""
    for name, folder in reversed(list(zip(parts, folders, strict=False))):
        try:
            os.rmdir(name, dir_fd=folder)
            os.fsync(folder)
        except FileNotFoundError:  # another deleter was first
            continue
        except OSError:  # not empty; or it may not be removed, which costs nothing but its name
            return


def _free(path: Path) -> str:
    """A sentence about the space that is left."""
    try:
        return f"{shutil.disk_usage(path).free / 1e9:.1f} GB are free there."
    except OSError:
        return ""
