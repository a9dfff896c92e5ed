"""The data folder: made private, checked, and held by one process at a time.

The lock is `flock` on `<data_dir>/lock`, which the kernel lets go however its holder ends; who holds it is written
inside for whoever comes second.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import stat
import time
from pathlib import Path
from types import TracebackType

from modelmora.errors import DataFolderInUse, DataFolderUnusable, ModelMoraError, StorageFull

from modelmora_runtime import supervisor

FORMAT = 1
"""What this program writes into a data folder; a folder of a later format is refused."""

POSTGRES_MAJOR = 18
"""The PostgreSQL major whose files we write: of the two in the wheel the one supported longest (November 2030)."""


class DataDirectory:
    """The data folder, held by this process until `release`."""

    _held: dict[tuple[int, int], DataDirectory] = {}

    def __init__(self, path: Path, created: bool, lock: int) -> None:
        self.path = path
        self.created = created
        self._lock = lock
        self._users = 1

    @classmethod
    def lock(cls, path: Path, *, holder: str = "modelmora") -> DataDirectory:
        """Make the folder if need be (0700), check its format, take it. A second lock in one process shares the first.

        Raises DataFolderInUse naming the holder, DataFolderUnusable naming folder, mode and remedy, StorageFull.
        """
        path = Path(os.path.abspath(path))
        created = _make_folder(path)
        lock = _open_lock(path / "lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            facts = os.fstat(lock)
            held = cls._held.get((facts.st_dev, facts.st_ino))
            text = os.pread(lock, 4096, 0)
            os.close(lock)
            if held is not None:
                held._users += 1
                return held
            raise _in_use(path, text) from None
        try:
            _check_format(path)
            _say_holder(lock, holder)
        except OSError as error:
            os.close(lock)
            raise unusable(path, error) from error
        except ModelMoraError:
            os.close(lock)
            raise
        directory = cls(path, created, lock)
        facts = os.fstat(lock)
        cls._held[facts.st_dev, facts.st_ino] = directory
        return directory

    def release(self) -> None:
        """Let the folder go (the last of those who share it)."""
        self._users -= 1
        if self._users == 0:
            facts = os.fstat(self._lock)
            self._held.pop((facts.st_dev, facts.st_ino), None)
            os.ftruncate(self._lock, 0)
            os.close(self._lock)

    def __enter__(self) -> DataDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def unusable(path: Path, error: OSError) -> ModelMoraError:
    """The named error for a folder that the file system refuses."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(
            f"no space left for {path}; free some, or name another folder in MODELMORA_DATA_DIR", folder=path
        )
    return DataFolderUnusable(
        f"{path}: {error.strerror}; it must belong to the user who starts modelmora (uid {os.geteuid()}) and be "
        f"writable{_mode_words(path)}; change that, or name another folder in MODELMORA_DATA_DIR",
        folder=path,
    )


def write_private(path: Path, text: str) -> None:
    """A small file, 0600, whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def user_name(uid: int | None) -> str:
    return f"{pwd.getpwuid(uid).pw_name} (uid {uid})" if uid is not None and is_known(uid) else f"uid {uid}"


def is_known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _make_folder(path: Path) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
        return True
    except FileExistsError:
        if path.is_dir():
            return False
        raise DataFolderUnusable(
            f"{path} is not a folder; move it away, or name another in MODELMORA_DATA_DIR", folder=path
        ) from None
    except OSError as error:
        raise unusable(Path(error.filename or path), error) from error


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise unusable(path.parent, error) from error


def _check_format(path: Path) -> None:
    file = path / "format"
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        if (path / "postgres").exists():
            raise DataFolderUnusable(
                f"{path} holds a folder `postgres` but no file `format`, so modelmora did not make it; name another "
                "folder in MODELMORA_DATA_DIR",
                folder=path,
            ) from None
        write_private(file, json.dumps({"format": FORMAT, "postgres": POSTGRES_MAJOR}) + "\n")
        return
    try:
        found = json.loads(text)
        number, major = int(found["format"]), int(found["postgres"])
    except (ValueError, KeyError, TypeError):
        raise DataFolderUnusable(f"{file} is not readable as a format file: {text[:80]!r}", folder=path) from None
    if number > FORMAT or major != POSTGRES_MAJOR:
        raise DataFolderUnusable(
            f"{path} has format {number} with PostgreSQL {major}; this modelmora writes format {FORMAT} with "
            f"PostgreSQL {POSTGRES_MAJOR}. Use the modelmora that made it, or name another folder in "
            "MODELMORA_DATA_DIR",
            folder=path,
        )


def _say_holder(lock: int, holder: str) -> None:
    facts = {
        "pid": os.getpid(),
        "start_ticks": supervisor.start_ticks(os.getpid()),
        "what": holder,
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps(facts).encode() + b"\n", 0)


def _in_use(path: Path, text: bytes) -> DataFolderInUse:
    try:
        facts = json.loads(text)
        holder = f"{facts['what']}, pid {facts['pid']}, since {facts['since']}"
        pid = facts["pid"]
    except (ValueError, KeyError, TypeError):
        holder, pid = "a process that is just starting or stopping", 0
    return DataFolderInUse(
        f"{path} is in use by {holder}; stop it or name another folder in MODELMORA_DATA_DIR",
        folder=path,
        pid=pid,
    )


def _mode_words(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError:
        return ""
    return f", now mode {oct(stat.S_IMODE(facts.st_mode))} of {user_name(facts.st_uid)}"
