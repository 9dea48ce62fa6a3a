"""What a store in a directory promises beyond the laws that all stores share (tests/conformance)."""

from __future__ import annotations

import errno
import multiprocessing
import os
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from packtrain.errors import AlreadyExists, LocalDiskError, NotFound, PacktrainError, Refused, Unavailable
from packtrain.storage.directory import TEMPORARY, DirectoryStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "disk" / "store"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore(root)


def put(store: DirectoryStore, key: str, data: bytes) -> None:
    store.upload(key, [data], len(data))


def read(store: DirectoryStore, key: str) -> bytes:
    return b"".join(bytes(piece) for piece in store.read(key, 0, 4, memoryview(bytearray(65536))))


def keys(store: DirectoryStore) -> list[str]:
    return sorted(info.key for info in store.list(""))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def leftovers(root: Path) -> list[Path]:
    return list((root / TEMPORARY).iterdir())


def raising(number: int) -> Callable[..., Any]:
    def fail(*args: object, **kwargs: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


# What is on the disk


def test_looking_makes_nothing(store: DirectoryStore, root: Path) -> None:
    assert keys(store) == []
    assert list(store.children("")) == []
    assert store.head("a") is None
    assert not root.parent.exists()


def test_objects_are_plain_files(store: DirectoryStore, root: Path) -> None:
    put(store, "models/m/config.json", b"{}")
    assert (root / "models/m/config.json").read_bytes() == b"{}"
    assert leftovers(root) == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_modes_do_not_depend_on_the_umask(store: DirectoryStore, root: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        put(store, "a/b/uploaded", b"x")
        store.create("c/created", b"x")
    finally:
        os.umask(before)
    for folder in (root.parent, root, root / "a", root / "a/b", root / "c", root / TEMPORARY):
        assert mode(folder) == 0o755, folder
    for file in (root / "a/b/uploaded", root / "c/created"):
        assert mode(file) == 0o444, file


def test_folders_keep_what_their_parent_hands_down(store: DirectoryStore, root: Path) -> None:
    root.mkdir(parents=True)
    root.chmod(0o2775)
    put(store, "a/b", b"x")
    assert mode(root / "a") == 0o2755
    assert mode(root) == 0o2775


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    store = DirectoryStore(tmp_path / "link")
    put(store, "a/b", b"text")
    assert (tmp_path / "real/a/b").read_bytes() == b"text"
    assert keys(store) == ["a/b"]


def test_the_url_can_be_opened_again(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "with space" / "50%")
    assert store.url == f"{tmp_path.as_uri()}/with%20space/50%25"
    assert store.locate("a/b") == f"{store.url}/a/b"


# Links and other things that are no objects


@pytest.fixture
def linked(store: DirectoryStore, root: Path, tmp_path: Path) -> DirectoryStore:
    """A store with an object, and links out of it and inside of it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    put(store, "a/real", b"real")
    (root / "a/file").symlink_to(outside / "secret")
    (root / "a/inner").symlink_to("real")
    (root / "a/dangling").symlink_to("nowhere")
    (root / "a/folder").symlink_to(outside)
    (root / "top").symlink_to(outside)
    (root / "loop").symlink_to(".")
    return store


def test_links_are_never_listed(linked: DirectoryStore) -> None:
    assert keys(linked) == ["a/real"]
    assert list(linked.list("top/")) == []
    assert list(linked.list("a/folder/")) == []
    assert list(linked.children("")) == ["a"]
    assert list(linked.children("a/")) == []


@pytest.mark.parametrize("key", ["a/file", "a/inner", "a/dangling", "a/folder/secret", "top/secret", "loop/a/real"])
def test_links_are_never_read(linked: DirectoryStore, key: str) -> None:
    assert linked.head(key) is None
    with pytest.raises(NotFound):
        linked.get(key)
    with pytest.raises(NotFound):
        read(linked, key)


@pytest.mark.parametrize("key", ["a/folder/new", "top/new", "a/real/new"])
def test_links_and_files_are_never_written_through(
    linked: DirectoryStore, tmp_path: Path, root: Path, key: str
) -> None:
    for write in (lambda: put(linked, key, b"x"), lambda: linked.create(key, b"x")):
        with pytest.raises(Refused) as caught:
            write()
        assert "link" in caught.value.hint
    assert os.listdir(tmp_path / "outside") == ["secret"]
    assert leftovers(root) == []


def test_a_link_in_the_place_of_an_object_is_replaced_and_its_target_kept(
    linked: DirectoryStore, tmp_path: Path, root: Path
) -> None:
    put(linked, "a/file", b"mine")
    assert linked.get("a/file") == b"mine"
    assert not (root / "a/file").is_symlink()
    assert (tmp_path / "outside/secret").read_bytes() == b"secret"
    with pytest.raises(AlreadyExists):
        linked.create("a/inner", b"x")


def test_other_files_are_no_objects(store: DirectoryStore, root: Path) -> None:
    put(store, "a/real", b"real")
    os.mkfifo(root / "a/fifo")
    (root / "a/empty folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(root / "a")  # a socket's path is short
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        assert keys(store) == ["a/real"]
        assert list(store.children("a/")) == []
        for key in ("a/fifo", "a/socket", "a/empty folder"):
            assert store.head(key) is None
        with pytest.raises(NotFound):
            store.get("a/fifo")


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a\0b", f"{TEMPORARY}/x"])
def test_what_cannot_be_a_key_reaches_no_file(store: DirectoryStore, key: str) -> None:
    for act in (store.get, store.head, lambda key: put(store, key, b""), lambda key: store.create(key, b"")):
        with pytest.raises(ValueError, match=r"key|unpack"):
            act(key)


# Crashes


def test_a_crash_leaves_nothing_that_anybody_sees(store: DirectoryStore, root: Path) -> None:
    put(store, "models/m/before", b"before")

    class Crash(BaseException):
        pass

    def body() -> Iterator[bytes]:
        yield b"half"
        assert len(leftovers(root)) == 1  # what a process that dies here leaves behind
        assert leftovers(root)[0].name.startswith(f"{socket.gethostname()}.{os.getpid()}.")
        assert keys(store) == ["models/m/before"]
        assert list(store.children("")) == ["models"]
        raise Crash

    with pytest.raises(Crash):
        store.upload("models/new/file", body(), 8)
    assert leftovers(root) == []


def test_an_empty_folder_that_a_crash_left_is_no_child(store: DirectoryStore, root: Path) -> None:
    put(store, "ledger/real/1", b"x")
    (root / "ledger/empty/deeper").mkdir(parents=True)
    assert list(store.children("ledger/")) == ["real"]


def test_bytes_are_durable_before_the_name_and_the_name_before_the_return(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def name(file: int) -> str:
        path = Path(f"/proc/self/fd/{file}").readlink()
        inside = path.relative_to(root.parent).as_posix()
        return "new file" if TEMPORARY in inside else inside

    def recorded(call: Callable[..., Any], describe: Callable[..., str]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            events.append(describe(*args, **kwargs))
            return result

        return record

    monkeypatch.setattr(os, "write", recorded(os.write, lambda file, data: f"write {name(file)}"))
    monkeypatch.setattr(os, "fsync", recorded(os.fsync, lambda file: f"sync {name(file)}"))
    monkeypatch.setattr(os, "link", recorded(os.link, lambda *args, **kwargs: "link"))
    monkeypatch.setattr(os, "rename", recorded(os.rename, lambda *args, **kwargs: "rename"))
    monkeypatch.setattr(os, "rmdir", recorded(os.rmdir, lambda name, **kwargs: f"rmdir {name}"))
    root.mkdir(parents=True)
    folders = ["sync store/a/b", "sync store/a", "sync store"]

    store.create("a/b/c", b"x")
    assert events == ["rename", "write new file", "sync new file", "link", *folders]  # locked before it has its name
    events.clear()
    put(store, "a/b/d", b"x")
    assert events == ["rename", "write new file", "sync new file", "rename", *folders]

    store.delete("a/b/c")
    events.clear()
    monkeypatch.setattr(os, "unlink", recorded(os.unlink, lambda name, **kwargs: f"unlink {name}"))
    store.delete("a/b/d")
    assert events == ["unlink d", "sync store/a/b", "rmdir b", "sync store/a", "rmdir a", "sync store"]


# Deleting


def test_folders_that_become_empty_go_and_the_root_stays(store: DirectoryStore, root: Path) -> None:
    put(store, "a/b/c/first", b"x")
    put(store, "a/b/second", b"x")
    store.delete("a/b/c/first")
    assert (root / "a/b").is_dir() and not (root / "a/b/c").exists()
    store.delete("a/b/second")
    assert [path.name for path in root.iterdir()] == [TEMPORARY]


def test_deleting_again_removes_the_empty_folders_that_a_crash_left(store: DirectoryStore, root: Path) -> None:
    (root / "a/b").mkdir(parents=True)
    store.delete("a/b/c/gone")
    assert not (root / "a").exists()


def test_deleting_makes_nothing(store: DirectoryStore, root: Path) -> None:
    store.delete("a/b")
    assert not root.parent.exists()


def test_what_is_no_object_is_not_deleted(linked: DirectoryStore, root: Path, tmp_path: Path) -> None:
    def everything() -> list[Path]:
        return sorted(tmp_path.rglob("*"))

    links = [path for path in root.rglob("*") if path.is_symlink()]
    through = [link / child.name for link in links if link.is_dir() for child in link.iterdir()]
    before = everything()
    for path in [*links, *through, root / "a"]:
        if TEMPORARY not in path.parts:
            linked.delete(path.relative_to(root).as_posix())
    assert links and everything() == before


@pytest.mark.parametrize("call", ["link", "rename"])
def test_a_folder_that_is_deleted_under_a_writer_is_made_anew(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real = getattr(os, call)
    put(store, "a/b/other", b"x")

    def after_a_deleter(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(os, call, real)
        store.delete("a/b/other")
        assert not (root / "a").exists()
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, after_a_deleter)
    if call == "link":
        store.create("a/b/new", b"new")
    else:
        put(store, "a/b/new", b"new")
    assert store.get("a/b/new") == b"new"
    assert keys(store) == ["a/b/new"]
    assert leftovers(root) == []


def test_a_writer_whose_file_was_taken_away_gives_up(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def after_a_cleaner(*args: Any, **kwargs: Any) -> Any:
        for left in leftovers(root):
            left.unlink()
        return real(*args, **kwargs)

    monkeypatch.setattr(os, "link", after_a_cleaner)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(LocalDiskError, match="k"):
        store.create("k", b"x")


def test_a_new_root_is_durable_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    fsync = os.fsync

    def record(file: int) -> None:
        synced.append(Path(f"/proc/self/fd/{file}").readlink())
        fsync(file)

    monkeypatch.setattr(os, "fsync", record)
    DirectoryStore(root).create("k", b"x")
    assert synced[:2] == [root.parent.parent, root.parent]
    assert synced[-1] == root


def test_short_writes_are_continued(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:3]))
    put(store, "k", b"0123456789")
    assert store.get("k") == b"0123456789"


# Racing processes


def _create(url: str, barrier: Barrier, number: int) -> None:
    barrier.wait()
    try:
        DirectoryStore(Path(url)).create("ledger/m/1", b"%d" % number)
    except AlreadyExists:
        raise SystemExit(17) from None


@pytest.mark.slow
def test_of_racing_processes_one_creates(store: DirectoryStore, root: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(4)
    racers = [spawn.Process(target=_create, args=(str(root), barrier, number)) for number in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    codes = [racer.exitcode for racer in racers]
    assert sorted(codes) == [0] + [17] * 3  # type: ignore[type-var]
    assert store.get("ledger/m/1") == b"%d" % codes.index(0)


def test_uploads_into_folders_that_appear_at_the_same_moment(store: DirectoryStore) -> None:
    barrier = threading.Barrier(8)
    errors: list[Exception] = []

    def run(number: int) -> None:
        barrier.wait()
        try:
            put(store, f"a/b/c/{number}", b"x")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(keys(store)) == 8


# What the operating system says


def test_a_link_whose_answer_was_lost_is_our_own(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS sends a request again when its answer was lost; the second one finds the name that the first one made."""
    link = os.link

    def lost(*args: Any, **kwargs: Any) -> None:
        link(*args, **kwargs)
        link(*args, **kwargs)

    monkeypatch.setattr(os, "link", lost)
    store.create("k", b"mine")
    assert store.get("k") == b"mine"
    with pytest.raises(AlreadyExists):
        store.create("k", b"another's")
    assert store.get("k") == b"mine"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_is_refused(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "link", raising(number))
    with pytest.raises(Refused, match="hard links") as caught:
        store.create("k", b"x")
    assert "s3://" in caught.value.hint


@pytest.mark.parametrize(
    ("number", "expected", "hint"),
    [
        (errno.ENOSPC, LocalDiskError, "GB are free"),
        (errno.EDQUOT, LocalDiskError, "GB are free"),
        (errno.EROFS, LocalDiskError, "read-only"),
        (errno.EIO, LocalDiskError, "dmesg"),
        (errno.EACCES, Refused, "owns"),
        (errno.ESTALE, Unavailable, "mounted"),
        (errno.ETIMEDOUT, Unavailable, "mounted"),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "rename", "open", "mkdir"])
def test_a_failed_upload_says_what_to_do(
    store: DirectoryStore,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    expected: type[PacktrainError],
    hint: str,
) -> None:
    put(store, "a/k", b"before")
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: None)
        patch.setattr(os, call, raising(number))
        with pytest.raises(expected, match="store") as caught:
            put(store, "b/k", b"new")
        assert hint in caught.value.hint
    assert keys(store) == ["a/k"]
    assert leftovers(root) == []


@pytest.mark.parametrize(("number", "expected"), [(errno.EIO, LocalDiskError), (errno.ESTALE, Unavailable)])
def test_a_failed_read_is_no_short_read(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[PacktrainError]
) -> None:
    put(store, "k", b"text")
    monkeypatch.setattr(os, "preadv", raising(number))
    with pytest.raises(expected):
        read(store, "k")


def test_an_error_of_the_body_is_not_taken_for_the_stores(store: DirectoryStore) -> None:
    def body() -> Iterator[bytes]:
        raise OSError(errno.ENOSPC, "on another disk")
        yield b""

    with pytest.raises(OSError, match="another disk") as caught:
        store.upload("k", body(), 1)
    assert not isinstance(caught.value, PacktrainError)


@pytest.mark.root
def test_a_full_disk(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], check=True)
    try:
        store = DirectoryStore(mount / "store")
        put(store, "kept", b"kept")
        with pytest.raises(LocalDiskError, match="No space left") as caught:
            store.upload("big", (b"x" * 65536 for _ in range(64)), 64 * 65536)
        assert "Make room" in caught.value.hint
        assert keys(store) == ["kept"]
        put(store, "still/works", b"x" * 500_000)  # what the failed upload took was given back
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.root
def test_a_read_only_mount(tmp_path: Path) -> None:
    mount = tmp_path / "ro"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], check=True)
    try:
        put(DirectoryStore(mount), "k", b"text")
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        store = DirectoryStore(mount)
        assert store.get("k") == b"text"
        with pytest.raises(LocalDiskError, match="Read-only"):
            store.create("new", b"x")
    finally:
        subprocess.run(["umount", str(mount)], check=True)


# Symbolic links that the store keeps for people


def test_a_link_is_set_replaced_and_removed(store: DirectoryStore, root: Path) -> None:
    store.set_link("serve/m/1", "../../models/a")
    store.set_link("serve/m/1", "../../models/b")
    assert (root / "serve/m/1").readlink() == Path("../../models/b")
    assert store.links("") == store.links("serve/m/") == {"serve/m/1": "../../models/b"}
    assert store.links("other/") == {}
    assert leftovers(root) == []
    store.remove_link("serve/m/1")
    store.remove_link("serve/m/1")
    assert store.links("") == {}
    assert not (root / "serve").exists()


def test_links_to_files_folders_and_nothing_are_all_seen(linked: DirectoryStore) -> None:
    assert linked.links("a/").keys() == {"a/file", "a/inner", "a/dangling", "a/folder"}


def test_only_links_are_replaced_or_removed_as_links(store: DirectoryStore, root: Path) -> None:
    put(store, "a/object", b"x")
    for key in ("a/object", "a"):
        with pytest.raises(Refused, match=key):
            store.set_link(key, "elsewhere")
        store.remove_link(key)
    assert store.get("a/object") == b"x"
    assert leftovers(root) == []


def test_a_link_is_durable_when_it_is_set(store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, "a/b", b"x")
    synced: list[Path] = []
    fsync = os.fsync

    def record(file: int) -> None:
        fsync(file)
        synced.append(Path(f"/proc/self/fd/{file}").readlink())
        assert (root / "serve/m").is_symlink()

    monkeypatch.setattr(os, "fsync", record)
    store.set_link("serve/m", "../a")
    assert synced == [root / "serve", root]


# Other users


@pytest.mark.root
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_another_user_reads_everything_and_writes_nothing(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as home:  # pytest's own folders are closed to others
        Path(home).chmod(0o755)
        before = os.umask(0o077)
        try:
            store = DirectoryStore(Path(home) / "share")
            put(store, "models/m/weights", b"weights")
            store.create("ledger/m/1.json", b"event")
            store.set_link("serve/m/by-version/1", "../../../models/m")
        finally:
            os.umask(before)
        reader = os.fork()
        if not reader:
            os._exit(_as_nobody(store))
        assert os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]) == 0


def _as_nobody(store: DirectoryStore) -> int:
    """In a process of its own: 0 if all is as it should be."""
    try:
        os.setgid(65534)
        os.setuid(65534)
        readable = (
            keys(store) == ["ledger/m/1.json", "models/m/weights"]
            and (store.directory / "serve/m/by-version/1/weights").read_bytes() == b"weights"
        )
        for write in (lambda: store.create("x", b""), lambda: put(store, "models/m/weights", b"other")):
            try:
                write()
            except Refused:
                continue
            return 2
        store.get("models/m/weights")
        return 0 if readable else 3
    except BaseException:
        return 4


def test_what_dead_writers_left_is_removed_by_the_next_and_what_lives_stays(root: Path) -> None:
    """A file that is still written, by another process, keeps its name; so does one of another machine."""
    left = {f"{socket.gethostname()}.{os.getpid()}.dead", f"{socket.gethostname()}.{2**22 + 1}.link", "other.1.far"}
    living = DirectoryStore(root)

    def body() -> Iterator[bytes]:
        yield b"half "
        for name in left:
            path = root / TEMPORARY / name
            path.symlink_to("nowhere") if name.endswith("link") else path.write_bytes(b"half")
        before = set(leftovers(root))
        DirectoryStore(root).create("other", b"new")
        gone = {path.name for path in before - set(leftovers(root))}
        assert gone == left - {"other.1.far"}
        yield b"done"

    living.upload("k", body(), 9)
    assert living.get("k") == b"half done"
    assert [path.name for path in leftovers(root)] == ["other.1.far"]


def test_a_second_name_that_a_writer_swept_away_is_given_again(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that gets a second name is whole, so that nothing locks it."""
    put(store, "source", b"weights")
    put(store, "copy", b"before")
    link, swept = os.link, list[str]()

    def before_a_sweep(*args: Any, **kwargs: Any) -> None:
        link(*args, **kwargs)
        if not swept:
            swept.extend(path.name for path in leftovers(root))
            DirectoryStore(root).create("other", b"new")
            assert leftovers(root) == []

    monkeypatch.setattr(os, "link", before_a_sweep)
    assert store.copy_from(store.locate("source"), "copy", 7, lambda _: None, fixed=True)
    assert len(swept) == 1
    assert store.get("copy") == b"weights"
    assert (root / "copy").samefile(root / "source")
    assert leftovers(root) == []
