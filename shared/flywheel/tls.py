"""The client's side of TLS: whom it trusts, what it shows of itself, and files that are renewed while it runs."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from flywheel.errors import FatalError

_log = logging.getLogger(__name__)

#: What is read of a folder of certificates; Kubernetes and Strimzi put other things beside them.
_CERTIFICATES = ("*.crt", "*.pem")

_Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Files:
    """Where the certificates lie: ``ca`` is a PEM file or a folder of them, None for whom the system trusts."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self, *, check_hostname: bool = True) -> ssl.SSLContext:
        """Return a context made of what the files hold now. Raises FatalError naming the file that does not do."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = check_hostname
        if self.ca is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        for path in self._authorities():
            try:
                context.load_verify_locations(cafile=path)
            except (OSError, ssl.SSLError) as error:
                raise FatalError(f"{path}: no certificates of authorities can be read from it: {error}") from error
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key, password=_refuse_encrypted)
            except (OSError, ssl.SSLError) as error:
                pair = f"{self.certificate} and {self.key}"
                raise FatalError(f"{pair}: no certificate with its key can be read from them: {error}") from error
            except _EncryptedKey as error:
                raise FatalError(f"{self.key} is encrypted: store it unencrypted, for our user alone") from error
        return context

    def stamp(self) -> _Stamp:
        """Return what changes when any of the files is written or replaced."""
        return tuple(_stamps([*self._authorities(), self.certificate, self.key]))

    def _authorities(self) -> list[Path]:
        if self.ca is None:
            return []
        if not self.ca.is_dir():
            return [self.ca]
        found = sorted(path for pattern in _CERTIFICATES for path in self.ca.glob(pattern))
        if not found:
            raise FatalError(f"{self.ca}: the folder has no certificates ({' or '.join(_CERTIFICATES)})")
        return found


class RenewingContext(ssl.SSLContext):
    """A client's context that follows its files: each handshake is made with what they hold then.

    So a certificate, or the authority that signs the servers', may be replaced while the process runs: connections
    that stand go on, new ones use what is new, and what was taken away is not trusted any more. While files cannot be
    read, the log says so, and what was read before holds. Raises FatalError, when it is made, for files that do not do.
    """

    _files: Files
    _current: ssl.SSLContext
    _stamp: _Stamp

    def __new__(cls, files: Files, *, check_hostname: bool = True) -> RenewingContext:
        """Read the files."""
        made = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = check_hostname
        made._files = files
        made._stamp = files.stamp()
        made._current = files.context(check_hostname=check_hostname)
        return made

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """Begin a connection of asyncio's, or of uvloop's."""
        return self._renewed().wrap_bio(*args, **kwargs)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """Begin a connection over a socket."""
        return self._renewed().wrap_socket(*args, **kwargs)

    def _renewed(self) -> ssl.SSLContext:
        try:
            if (stamp := self._files.stamp()) != self._stamp:
                self._current = self._files.context(check_hostname=self.check_hostname)
                self._stamp = stamp
                _log.info("TLS: the certificates on disk have changed, and are used from now on")
        except FatalError as error:
            _log.warning("TLS: going on with the certificates read before: %s", error)
        return self._current


class _EncryptedKey(Exception):  # noqa: N818 - not an error of ours: an answer to OpenSSL
    pass


def _refuse_encrypted() -> NoReturn:
    """Be asked for a key's password; without us, OpenSSL asks whoever sits at the terminal."""
    raise _EncryptedKey


def _stamps(paths: Iterable[Path | None]) -> Iterable[tuple[str, int, int, int]]:
    for path in paths:
        if path is not None:
            try:
                found = path.stat()
            except OSError:  # whoever reads it says so
                yield (str(path), 0, 0, 0)
            else:
                yield (str(path), found.st_ino, found.st_size, found.st_mtime_ns)
