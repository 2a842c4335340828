"""Data files of a manifest: fetched one after the other, and never given out before their digest was found right."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from flywheel.canonical import sha256_file
from flywheel.errors import IntegrityError, PoisonError
from flywheel.storage.objects import ObjectStore


class DataFile(Protocol):
    """What a manifest says of each of its files."""

    @property
    def key(self) -> str:
        """Name in the store."""
        ...

    @property
    def bytes(self) -> int:
        """Size."""
        ...

    @property
    def sha256(self) -> str:
        """Digest, in hexadecimal."""
        ...


File = TypeVar("File", bound=DataFile)


def verified(store: ObjectStore, files: Iterable[File]) -> Iterator[tuple[File, Path]]:
    """Yield each file with where it lies, until the next one. Raises IntegrityError naming one that is not the
    manifest's, or is not there; errors of the store as they are.
    """
    with tempfile.TemporaryDirectory(prefix="flywheel-files-") as folder:
        path = Path(folder) / "part"
        for file in files:
            try:
                store.download(file.key, path)
            except PoisonError as error:
                raise IntegrityError(f"{file.key}: {error}") from error
            if path.stat().st_size != file.bytes or sha256_file(path) != file.sha256:
                raise IntegrityError(f"{file.key}: its bytes are not the ones in the manifest")
            yield file, path
