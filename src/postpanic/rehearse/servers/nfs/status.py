"""
What a request ends with, of versions 3 and 4, which have most numbers in common.

Sources: RFC 1813 §2.6 (``nfsstat3``), RFC 7530 §13 and RFC 8881 §15 (``nfsstat4``).
"""

from __future__ import annotations

import errno

__all__ = ["NfsError", "Status", "find_status"]


class Status:
    """Numbers of ``nfsstat3`` and ``nfsstat4``; from 10011 on they are of version 4 alone."""

    OK = 0
    NOENT = 2
    IO = 5
    EXIST = 17
    NOTDIR = 20
    ISDIR = 21
    INVAL = 22
    FBIG = 27
    NOSPC = 28
    ROFS = 30
    NAMETOOLONG = 63
    NOTEMPTY = 66
    STALE = 70
    BADHANDLE = 10001
    NOT_SYNC = 10002
    BAD_COOKIE = 10003
    NOTSUPP = 10004
    TOOSMALL = 10005
    SERVERFAULT = 10006
    BADTYPE = 10007
    SAME = 10009
    CLID_INUSE = 10017
    RESOURCE = 10018
    NOFILEHANDLE = 10020
    MINOR_VERS_MISMATCH = 10021
    STALE_CLIENTID = 10022
    OLD_STATEID = 10024
    BAD_STATEID = 10025
    NOT_SAME = 10027
    RESTOREFH = 10030
    ATTRNOTSUPP = 10032
    BADXDR = 10036
    BADNAME = 10041
    OP_ILLEGAL = 10044
    BADSESSION = 10052
    BADSLOT = 10053
    SEQ_MISORDERED = 10063
    SEQUENCE_POS = 10064
    REP_TOO_BIG = 10066
    RETRY_UNCACHED_REP = 10068
    TOO_MANY_OPS = 10070
    OP_NOT_IN_SESSION = 10071
    CLIENTID_BUSY = 10074
    WRONG_TYPE = 10083


_OF_ERRNO = {
    errno.EPERM: 1,
    errno.ENOENT: Status.NOENT,
    errno.EIO: Status.IO,
    errno.ENXIO: 6,
    errno.EACCES: 13,
    errno.EEXIST: Status.EXIST,
    errno.EXDEV: 18,
    errno.ENOTDIR: Status.NOTDIR,
    errno.EISDIR: Status.ISDIR,
    errno.EINVAL: Status.INVAL,
    errno.EFBIG: Status.FBIG,
    errno.ENOSPC: Status.NOSPC,
    errno.EROFS: Status.ROFS,
    errno.ENAMETOOLONG: Status.NAMETOOLONG,
    errno.ENOTEMPTY: Status.NOTEMPTY,
    errno.EDQUOT: 69,
    errno.ESTALE: Status.STALE,
    errno.EBADF: Status.BADHANDLE,
    errno.EOPNOTSUPP: Status.NOTSUPP,
}


class NfsError(Exception):
    """
    A request that ends with a status, where no system call has failed.

    Parameters
    ----------
    status : int
        Of :class:`Status`.
    """

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


def find_status(exc: OSError) -> int:
    """
    Tell the status of a system call that failed.

    >>> find_status(OSError(errno.ENOSPC, "")), find_status(OSError(errno.ELOOP, ""))
    (28, 5)
    """
    return _OF_ERRNO.get(exc.errno or 0, Status.IO)
