"""Object store on S3 or a server that speaks its protocol, through prefect-aws."""

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import httpx
from boto3.exceptions import Boto3Error, S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from prefect_aws import AwsClientParameters, AwsCredentials

from tasks.errors import ConfigurationError, KycflowError, ObjectMissing, StorageUnavailable
from tasks.storage import StoredObject
from tasks.storage.keys import is_valid_key, valid_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CHECK_KEY = "kycflow-check"
FEW = 100
"""So many prefixes are asked for one by one. For more, all that is in their folder is listed."""
TRANSFER = TransferConfig(max_concurrency=4)  # parts of 8 MiB: at most 32 MiB of a file are in memory
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
PASSING_FAULTS = (NoConnectionError, HTTPClientError, IncompleteReadError, CredentialRetrievalError)
PASSING = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "OperationAborted"}


def s3_client(endpoint_url: str | None, credentials_block: str | None) -> "S3Client":
    """A client with bounded time-outs and retries. Raises ConfigurationError, StorageUnavailable.

    Credentials come from the Prefect block of that name, else from the usual AWS environment, files and roles.
    """
    config: dict[str, Any] = {
        "signature_version": "s3v4",
        "connect_timeout": 5,
        "read_timeout": 30,
        "retries": {"mode": "standard", "total_max_attempts": 3},
    }
    if endpoint_url:
        # Other servers often know neither bucket host names nor the checksums that AWS added in 2025.
        config |= {"s3": {"addressing_style": "path"}, "request_checksum_calculation": "when_required"}
    credentials = _load_block(credentials_block) if credentials_block else AwsCredentials()
    given = credentials.aws_client_parameters
    parameters = AwsClientParameters(
        **given.model_dump(exclude={"endpoint_url", "config"}),
        endpoint_url=endpoint_url or given.endpoint_url,
        config=config | (given.config or {}),
    ).get_params_override()
    if credentials.region_name:
        parameters["region_name"] = credentials.region_name
    # Not credentials.get_s3_client(): its cache would keep an assumed role's credentials after they expired.
    client: S3Client = credentials.get_boto3_session().client("s3", **parameters)
    return client


def _load_block(name: str) -> AwsCredentials:
    try:
        return cast(AwsCredentials, AwsCredentials.load(name, _sync=True))  # type: ignore[call-arg]
    except ValueError as exc:
        raise ConfigurationError(
            f"Prefect has no usable block aws-credentials/{name}: {exc}. Create it, or correct "
            "KYCFLOW_S3_CREDENTIALS_BLOCK."
        ) from exc
    except (httpx.HTTPError, RuntimeError) as exc:
        raise StorageUnavailable(f"Prefect's API does not answer for block aws-credentials/{name}: {exc}.") from exc


class S3Storage:
    """One S3 object per object, under a prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str, make_client: "Callable[[], S3Client]") -> None:
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._make_client = make_client
        self._made: S3Client | None = None
        self._lock = threading.Lock()

    def put(self, key: str, source: Path) -> None:
        """Large files go up in parts; the object appears when it is complete."""
        if self.size(key) is not None:
            return
        with self._translated(key):
            self._client().upload_file(str(source), self.bucket, self._name(key), Config=TRANSFER)

    def newest(self, prefix: str) -> str | None:
        """See Storage. Asks for all names under the prefix, 1000 at a time."""
        return max((stored.key for stored in self.listing(prefix)), default=None)

    def listing(self, prefix: str) -> Iterator[StoredObject]:
        """See Storage. Asks for 1000 names at a time."""
        valid_key(prefix.rstrip("/"))
        with self._translated(prefix):
            pages = self._client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=f"{self.prefix}{prefix}"):
                for entry in page.get("Contents", []):
                    key = entry["Key"].removeprefix(self.prefix)
                    if is_valid_key(key):
                        yield StoredObject(key, entry["LastModified"], entry["Size"])

    def listing_of(self, prefixes: Collection[str]) -> Iterator[StoredObject]:
        """Asks for each prefix, or for all that is in their folder, 1000 names at a time."""
        folders = {f"{prefix.partition('/')[0]}/" for prefix in prefixes}
        for prefix in prefixes if len(prefixes) <= FEW else folders:
            yield from self.listing(prefix)

    def size(self, key: str) -> int | None:
        """See Storage."""
        try:
            with self._translated(key):
                return self._client().head_object(Bucket=self.bucket, Key=self._name(key))["ContentLength"]
        except ObjectMissing:
            return None

    def download(self, key: str, destination: Path) -> None:
        """See Storage."""
        with self._translated(key):
            self._client().download_file(self.bucket, self._name(key), str(destination), Config=TRANSFER)

    def replace(self, key: str, content: bytes) -> None:
        """See Storage."""
        with self._translated(key):
            self._client().put_object(Bucket=self.bucket, Key=self._name(key), Body=content)

    def read(self, key: str, most_bytes: int) -> bytes | None:
        """See Storage."""
        try:
            with self._translated(key):
                body = self._client().get_object(Bucket=self.bucket, Key=self._name(key))["Body"]
                with closing(body):
                    content = body.read(most_bytes + 1)
        except ObjectMissing:
            return None
        return content if len(content) <= most_bytes else None

    def delete(self, key: str) -> None:
        """See Storage."""
        # AWS says nothing of a missing object, some other servers do.
        with suppress(ObjectMissing), self._translated(key):
            self._client().delete_object(Bucket=self.bucket, Key=self._name(key))

    def url(self, key: str) -> str:
        """The object's `s3://` address."""
        return f"s3://{self.bucket}/{self._name(key)}"

    def check(self) -> None:
        """Writes and reads one small object, always the same."""
        with self._translated(CHECK_KEY):
            client = self._client()
            client.head_bucket(Bucket=self.bucket)
            client.put_object(Bucket=self.bucket, Key=self._name(CHECK_KEY), Body=b"kycflow")
            client.head_object(Bucket=self.bucket, Key=self._name(CHECK_KEY))

    def _name(self, key: str) -> str:
        return self.prefix + valid_key(key)

    def _client(self) -> "S3Client":
        with self._lock:
            if self._made is None:
                self._made = self._make_client()
            return self._made

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """The one place where boto3's errors become kycflow's. OSError comes from the file on our side."""
        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError, OSError) as exc:
            # upload_file hides the server's answer behind an error of its own.
            cause = exc.__context__ if isinstance(exc, S3UploadFailedError) and exc.__context__ else exc
            raise self._error(cause, key) from exc

    def _error(self, exc: BaseException, key: str) -> KycflowError:
        where = f"s3://{self.bucket}/{self.prefix}{key}"
        if isinstance(exc, BotoCoreError) and not isinstance(exc, PASSING_FAULTS):
            return ConfigurationError(f"{where} cannot be asked for: {exc}. Check the S3 settings and credentials.")
        if not isinstance(exc, ClientError):
            return StorageUnavailable(f"{where} does not answer: {exc}.")
        code, status = exc.response["Error"].get("Code", ""), exc.response["ResponseMetadata"]["HTTPStatusCode"]
        if code in EXPIRED:
            with self._lock:
                self._made = None  # the next try takes fresh credentials
        if status >= 500 or status == 429 or code in PASSING | EXPIRED:
            return StorageUnavailable(f"{where} answers {status} {code}.")
        # A HEAD has no body that tells a missing object from a missing bucket.
        if code == "NoSuchKey" or (status == 404 and code == "404" and self._bucket_exists()):
            return ObjectMissing(f"{where} is not there. Was it deleted?")
        return ConfigurationError(f"{where} is refused: {status} {code}. Check bucket, credentials and permissions.")

    def _bucket_exists(self) -> bool:
        try:
            self._client().head_bucket(Bucket=self.bucket)
        except (BotoCoreError, ClientError):
            return False
        return True
