"""Whether a path is a fit place for a database file, and the file itself, created for its owner only.

A database that several processes map into memory needs a local file system, and one that decides where traffic goes
must not be another user's to change.
"""

import os
import re
from pathlib import Path

from memos_llm.core.errors import ConfigError, StoreUnreachable

MOUNTS = Path("/proc/mounts")  # proc(5); absent on other systems, where nothing is refused
NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"}
    | {"ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs"}
    | {f"fuse.{kind}" for kind in ("ceph", "davfs2", "gcsfuse", "glusterfs", "juicefs", "rclone", "s3fs", "sshfs")}
)


def refuse_network(path: Path, mounts: Path = MOUNTS) -> None:
    """SQLite's WAL needs shared memory between all users of the file: https://sqlite.org/wal.html

    Args:
        mounts: the table of mounts, in the format of proc(5).

    Raises:
        ConfigError: the path is on a network file system.
    """
    kind = file_system(os.path.realpath(path), _read(mounts))
    if kind in NETWORK:
        raise ConfigError(
            f"store: {path} is on a network file system ({kind}), where SQLite loses data: "
            "choose a local path; processes on several hosts need a store that serves a network"
        )


def file_system(path: str, mounts: str) -> str:
    """The type of the file system that holds an absolute path; empty when the table does not say."""
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = _unescape(fields[1])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two mounts on one point the later hides the earlier
            best, kind = point, fields[2]
    return kind


def prepare(path: Path) -> None:
    """Make the directory (0700) and the file (0600) where they are missing, and look whose they are.

    An existing file is never opened here: closing any descriptor of it would drop this process's SQLite locks.

    Raises:
        StoreUnreachable: it is another user's.
        OSError: it cannot be created.
    """
    _make_directory(path.parent)
    _check_owner(path.parent, (os.geteuid(), 0))  # root may change everything anyway (/tmp is root's)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        _check_owner(path, (os.geteuid(),))
        return
    os.close(descriptor)


def identity(path: Path) -> tuple[int, int] | None:
    """Which file it is (device, inode); None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make_directory(directory: Path) -> None:
    missing = [place for place in (directory, *directory.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=0o700, exist_ok=True)


def _check_owner(path: Path, allowed: tuple[int, ...]) -> None:
    owner = path.stat().st_uid
    if owner not in allowed:
        raise StoreUnreachable(
            f"{path} belongs to user id {owner} and this process runs as {os.geteuid()}: "
            "run it as that user, or give the file to this one with chown"
        )


def _read(mounts: Path) -> str:
    try:
        return mounts.read_text(errors="surrogateescape")
    except OSError:
        return ""


def _unescape(field: str) -> str:
    """Blanks in a mount point are written as octal: `\\040`."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
