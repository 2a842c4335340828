"""Any S3 server, through the ``minio`` client. Imports nothing heavier, because agents fetch their models with it."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from flywheel.connection_settings import S3Connection
from flywheel.errors import FatalError, PoisonError, TransientError
from flywheel.storage.objects import DEFAULT_CONTENT_TYPE, ObjectInfo, check_key
from flywheel.tls import Files, RenewingContext

#: Seconds to open a connection, and of silence on an open one, before a try counts as failed.
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 60.0
#: Tries after the first, with 0.2, 0.4, 0.8 s between them.
RETRIES = 3
#: Objects above this many bytes are uploaded in parts of this size.
PART_BYTES = 16 * 1024 * 1024

_MISSING = frozenset({"NoSuchKey", "NoSuchObject", "ResourceNotFound"})
_BUSY = frozenset({"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "XMinioServerNotInitialized"})


class S3ObjectStore:
    """One bucket of an S3 server. Safe to use from several threads."""

    def __init__(
        self, endpoint: str, *, access_key: str, secret_key: str, bucket: str, region: str = "us-east-1",
        ca: Path | None = None,
    ) -> None:  # fmt: skip
        url = urlsplit(endpoint)
        if url.scheme not in ("http", "https") or not url.netloc or url.path.strip("/"):
            raise FatalError(f"S3 endpoint {endpoint!r}: expected http(s)://host[:port]")
        if ca is not None and url.scheme != "https":
            raise FatalError(f"S3 endpoint {endpoint!r} is without TLS, but FLYWHEEL_S3_CA is set: choose https://")
        self._where = f"{endpoint}/{bucket}"
        self._bucket = bucket
        self._region = region
        self._client = Minio(
            url.netloc,
            access_key=access_key,
            secret_key=secret_key,
            secure=url.scheme == "https",
            region=region,
            http_client=urllib3.PoolManager(
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT),
                maxsize=16,
                ssl_context=RenewingContext(Files(ca)) if url.scheme == "https" else None,
                retries=urllib3.Retry(total=RETRIES, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
            ),
        )

    @classmethod
    def from_settings(cls, connections: S3Connection) -> S3ObjectStore:
        """Return the store that the settings name. Connects on first use, not here."""
        return cls(
            connections.s3,
            access_key=connections.s3_access_key,
            secret_key=connections.s3_secret_key.get_secret_value(),
            bucket=connections.s3_bucket,
            region=connections.s3_region,
            ca=connections.s3_ca,
        )

    def ensure_bucket(self) -> None:
        """Create the bucket where it is missing. Raises as every method of the port."""
        with self._mapped(self._bucket):
            if self._client.bucket_exists(self._bucket):
                return
            try:
                self._client.make_bucket(self._bucket, location=self._region)
            except S3Error as error:
                if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise

    def put(self, key: str, data: bytes | Path, *, content_type: str = DEFAULT_CONTENT_TYPE) -> None:
        """Store ``data``, or the file at that path, replacing what was there."""
        check_key(key)
        with data.open("rb") if isinstance(data, Path) else io.BytesIO(data) as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            with self._mapped(key):
                self._client.put_object(
                    self._bucket,
                    key,
                    stream,
                    size,
                    content_type=content_type,
                    part_size=PART_BYTES,
                    num_parallel_uploads=2,
                )

    def get(self, key: str) -> bytes:
        """Return the bytes. Raises PoisonError(``missing_object``)."""
        return b"".join(self._chunks(key))

    def download(self, key: str, path: Path) -> None:
        """Write the bytes to ``path``, which appears only once it is whole. Raises PoisonError(``missing_object``)."""
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:80]}.", delete=False) as file:
            part = Path(file.name)
            try:
                for chunk in self._chunks(key):
                    file.write(chunk)
                file.flush()
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def exists(self, key: str) -> bool:
        """Whether there is an object of that name."""
        check_key(key)
        try:
            with self._mapped(key):
                self._client.stat_object(self._bucket, key)
        except PoisonError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose name starts with ``prefix``, once each, in the store's own order."""
        with self._mapped(prefix):
            for found in self._client.list_objects(self._bucket, prefix=prefix, recursive=True):
                if found.object_name and not found.is_dir:
                    yield ObjectInfo(found.object_name, found.size or 0)

    def delete(self, key: str) -> None:
        """Remove the object. It need not exist."""
        check_key(key)
        with self._mapped(key):
            self._client.remove_object(self._bucket, key)

    def _chunks(self, key: str) -> Iterator[bytes]:
        check_key(key)
        with self._mapped(key):
            response = self._client.get_object(self._bucket, key)
            try:
                yield from response.stream(1024 * 1024)
            finally:
                response.close()
                response.release_conn()

    @contextmanager
    def _mapped(self, key: str) -> Iterator[None]:
        """Turn the client's errors into ours."""
        try:
            yield
        except S3Error as error:
            raise self._from_s3(key, error) from error
        except (InvalidResponseError, ServerError) as error:
            status = getattr(error, "status_code", None) or getattr(error, "_code", 0)
            kind = TransientError if status >= 500 or status in (0, 408, 429) else FatalError
            raise kind(f"object store {self._where}: {error}") from error
        except urllib3.exceptions.HTTPError as error:
            raise TransientError(f"object store {self._where} is unreachable: {error}") from error
        except MinioException as error:
            raise FatalError(f"object store {self._where}: {error}") from error

    def _from_s3(self, key: str, error: S3Error) -> Exception:
        status = error.response.status if error.response is not None else 0
        if error.code in _MISSING:
            return PoisonError("missing_object", f"no object {key} in {self._where}")
        if error.code in _BUSY or status >= 500 or status in (408, 429, 507):
            return TransientError(f"object store {self._where} is busy: {error.code}: {error.message}")
        return FatalError(f"object store {self._where} refused {key}: {error.code}: {error.message}")
