"""Files and folders that appear complete or not at all, whenever the process ends."""

import contextlib
import hashlib
import os
import pathlib
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator

_TEMPORARY = re.compile(r"\.tmp-(\d+)-([0-9a-f]+)-(.*)")
_DAY = 24 * 3600.0

# Tells what this process is writing from what a dead one with its number left behind.
_OURS = secrets.token_hex(4)


def write(path: pathlib.Path, content: bytes | memoryview) -> None:
    """Writes a file that survives a kill and a power cut, or leaves what was there.

    Args:
      path: of the file; its folder is made if need be.
      content: all of it.

    Raises:
      OSError: the disk is full or the folder cannot be written; names the file.
    """
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a name beside a path for what shall lie there once it is complete.

    The caller writes a file or a folder under that name and syncs what is in it; without
    an error it is renamed, else deleted. What processes left that have died since goes
    too.

    Args:
      path: where it shall lie: a file, also an existing one, or a new folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.iterdir():
        if not _in_use(other):
            _delete(other)
    temporary = _temporary(path.parent)
    try:
        yield temporary
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        _delete(temporary)


def remove(path: pathlib.Path) -> None:
    """Removes a folder by renaming it first: a kill leaves no half of it behind."""
    temporary = _temporary(path.parent)
    with contextlib.suppress(OSError):
        os.rename(path, temporary)
        _delete(temporary)


def sync_folder(folder: pathlib.Path) -> None:
    """Makes a rename survive a power cut; only POSIX can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cannot_write(what: object, error: OSError) -> OSError:
    """The same error, naming what could not be written."""
    return OSError(error.errno, f"cannot write {what}: {error.strerror or error}")


def sha256(path: pathlib.Path) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(folder: pathlib.Path) -> pathlib.Path:
    token = _OURS + secrets.token_hex(4)
    return folder / f".tmp-{os.getpid()}-{token}-{socket.gethostname()}"


def _in_use(path: pathlib.Path) -> bool:
    """False for what a process was writing that has died."""
    match = _TEMPORARY.fullmatch(path.name)
    if match is None:
        return True
    pid, token, host = int(match[1]), match[2], match[3]
    if host != socket.gethostname() or os.name != "posix":
        # Its processes cannot be asked, so only age tells.
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime < _DAY
        return False
    if pid == os.getpid():
        return token.startswith(_OURS)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _delete(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
