"""What the chaos test breaks: its PostgreSQL and its S3 server's proxy, on real servers."""

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psycopg
import pytest
from botocore.exceptions import ClientError

from tasks.errors import StorageUnavailable
from tasks.storage.files import hash_file
from tasks.storage.s3 import S3Storage, s3_client
from tests.chaos.outage import OutageProxy, s3_outage_proxy
from tests.chaos.postgresql import PostgreSQL, postgresql

BIG = 20 * 1024 * 1024  # several parts of a multipart upload
KEY = "folder/a name with + and é"


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture
def proxy(s3: str) -> Iterator[OutageProxy]:
    with s3_outage_proxy(s3) as started:
        yield started


@pytest.fixture
def store(proxy: OutageProxy, tmp_path: Path) -> Iterator[S3Storage]:
    """Through the proxy."""
    with closing(s3_client(proxy.url, None)) as client:
        yield S3Storage("kycflow", tmp_path.name, lambda: client)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(BIG))
    return path


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_cuts_connections_and_keeps_data(cluster: PostgreSQL, mode: Literal["fast", "immediate"]) -> None:
    cluster.create_database(mode)
    with closing(psycopg.connect(cluster.url(mode), autocommit=True)) as before:
        before.execute("CREATE TABLE kept AS SELECT 7 AS number")
        assert 0 < cluster.restart(mode) < 60
        with pytest.raises(psycopg.OperationalError):
            before.execute("SELECT 1")
    with psycopg.connect(cluster.url(mode)) as after:
        assert after.execute("SELECT number FROM kept").fetchall() == [(7,)]


def test_a_stopped_postgresql_takes_no_connection(cluster: PostgreSQL) -> None:
    cluster.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(cluster.url("postgres"), connect_timeout=5)
    cluster.start()
    psycopg.connect(cluster.url("postgres")).close()


def test_postgresql_goes_even_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), postgresql() as server:
        raise ZeroDivisionError
    assert not server.folder.exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.url("postgres"), connect_timeout=5)


def test_the_proxy_passes_everything_on(s3: str, store: S3Storage, big: Path, tmp_path: Path) -> None:
    store.check()
    store.put("folder/big", big)
    assert store.size("folder/big") == BIG
    assert store.newest("folder/") == "folder/big"
    store.download("folder/big", tmp_path / "back")
    assert hash_file(tmp_path / "back") == hash_file(big)
    store.delete("folder/big")
    assert store.size("folder/big") is None
    assert store.newest("folder/") is None


def test_the_signature_of_an_odd_name_holds(s3: str, store: S3Storage, proxy: OutageProxy) -> None:
    with closing(s3_client(proxy.url, None)) as through, closing(s3_client(s3, None)) as direct:
        through.put_object(Bucket="kycflow", Key=KEY, Body=b"bytes", Metadata={"kind": "odd"})
        answer = direct.get_object(Bucket="kycflow", Key=KEY)
        assert (answer["Body"].read(), answer["Metadata"]) == (b"bytes", {"kind": "odd"})
        listed = through.list_objects_v2(Bucket="kycflow", Prefix=KEY, Delimiter="/")
        assert [entry["Key"] for entry in listed["Contents"]] == [KEY]
        through.delete_object(Bucket="kycflow", Key=KEY)


def test_an_outage_is_unavailable_storage_and_passes(store: S3Storage, proxy: OutageProxy, big: Path) -> None:
    store.put("before", big)
    with proxy.failing():
        with pytest.raises(StorageUnavailable, match="503"):
            store.size("before")
        with pytest.raises(StorageUnavailable, match="503 ServiceUnavailable"):
            store.newest("a/")
        with closing(s3_client(proxy.url, None)) as client, pytest.raises(ClientError, match="ServiceUnavailable"):
            client.put_object(Bucket="kycflow", Key="never", Body=big.read_bytes())
    assert proxy.refused == 9  # each client tries three times
    store.put("after", big)
    assert store.size("after") == BIG
    assert proxy.refused == 9


def test_a_connection_serves_many_requests(proxy: OutageProxy) -> None:
    with closing(HTTPConnection(urlsplit(proxy.url).netloc, timeout=30)) as connection:
        connection.connect()
        first = connection.sock
        for method in ("GET", "HEAD", "PUT", "DELETE", "GET"):
            connection.request(method, "/kycflow/none?x=%2F", body=b"unsigned" if method == "PUT" else None)
            answer = connection.getresponse()
            assert (answer.status, answer.read() == b"") == (403, method == "HEAD")
            assert connection.sock is first


def test_an_outage_answers_in_the_words_of_s3(proxy: OutageProxy) -> None:
    with proxy.failing(), closing(HTTPConnection(urlsplit(proxy.url).netloc, timeout=30)) as connection:
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            connection.request(method, "/kycflow/none", body=b"unsigned" if method == "PUT" else None)
            answer = connection.getresponse()
            assert answer.status == 503
            assert (b"<Code>ServiceUnavailable</Code>" in answer.read()) == (method != "HEAD")
    assert proxy.refused == 4


def test_the_proxy_leaves_no_thread(s3: str) -> None:
    before = set(threading.enumerate())
    with s3_outage_proxy(s3) as proxy, closing(HTTPConnection(urlsplit(proxy.url).netloc, timeout=30)) as idle:
        idle.request("GET", "/")
        idle.getresponse().read()
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) <= before
