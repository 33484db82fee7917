"""URLs: each form opens its store, everything else is one error that names the way out."""

from __future__ import annotations

import builtins
import sys

import pytest

from kvtrie.prefix_tree.errors import InputError, StoreFull
from kvtrie.store import MemoryStore, RedisStore, open_store
from kvtrie.store.redis_url import redis_py_url, shown_url


def test_memory() -> None:
    assert isinstance(open_store("memory://"), MemoryStore)
    store = open_store("memory://?capacity_bytes=3")
    store.put_many([(b"a", b"12")])
    with pytest.raises(StoreFull):
        store.put_many([(b"b", b"")])


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://localhost:6380/3",
        "redis://localhost?db=3",
        "redis://user:secret@localhost:6380/",
        "redis://:p%40%2Fss@[::1]:6380",
        "rediss://localhost?ssl_cert_reqs=none",
        "redis+unix:///run/redis.sock?db=1",
        "redis+unix://:secret@/run/redis.sock",
    ],
)
def test_redis(url: str) -> None:
    """Opening connects to nothing: none of these exists."""
    store = open_store(url)
    assert isinstance(store, RedisStore)
    store.close()


@pytest.mark.parametrize("url", ["http://localhost:8080", "https://host", "unix:///run/kvtrie.sock"])
def test_a_sidecars_address_is_not_a_store(url: str) -> None:
    with pytest.raises(InputError, match=r"sidecar.*redis\+unix://"):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        *("", "redis", "localhost:6379", "file:///tmp/x", "redis:/localhost", "redis:localhost"),
        *("memory://x", "memory:///x", "memory://?capacity_bytes=-1", "memory://?size=1"),
        *("redis://", "redis://:6379", "redis://host:port", "redis://host:0", "redis://host:70000"),
        *("redis://host/name", "redis://host/1/2", "redis://host/-1", "redis://host?db=x", "redis://[::1"),
        *("redis://host?socket_timeout=99", "redis://host?ssl_ca_certs=x", "rediss://host?ssl_no_such=1"),
        *("redis+unix://", "redis+unix:///", "redis+unix://host/path", "redis+unix:///path?db="),
    ],
)
def test_malformed_urls_name_the_accepted_forms(url: str) -> None:
    with pytest.raises(InputError, match=r"accepted: .*://"):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        *("redis://user:hunter2@host:port", "redis://:hunter2@host/name", "redis://:hun/ter2@host"),
        *(
            "redis://:p@hunter2@host:0",
            "redis://:p#hunter2@host",
            "redis:/user:hunter2@host",
            "user:hunter2@host",
        ),
        *("redis://host?password=hunter2", "redis://host?db=1&PASSWORD=hunter2", "ftp://me:hunter2@host"),
        *("http://me:hunter2@host", "rediss://host?ssl_password=hunter2&ssl_no_such=1"),
        *("redis://:99999hunter2@host:x", "memory://:hunter2@x"),
    ],
)
def test_no_error_shows_a_password(url: str) -> None:
    with pytest.raises(InputError) as caught:
        open_store(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert "ter2" not in str(error)
        assert "***" in str(caught.value)
        error = error.__cause__


def test_shown_urls_keep_what_is_no_secret() -> None:
    assert shown_url("redis://host:6379/2") == "redis://host:6379/2"
    assert shown_url("redis://me:pw@host:6379/2") == "redis://***@host:6379/2"
    assert shown_url("redis+unix:///a.sock?db=1") == "redis+unix:///a.sock?db=1"


def test_redis_py_knows_a_socket_as_unix() -> None:
    assert redis_py_url("redis+unix://:pw@/a.sock?db=1") == "unix://:pw@/a.sock?db=1"
    assert redis_py_url("unix:///a.sock") == "unix:///a.sock"
    assert redis_py_url("rediss://host:1/2") == "rediss://host:1/2"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deadline_seconds": 0.0}, "deadline_seconds must be above 0"),
        ({"deadline_seconds": float("nan")}, "deadline_seconds must be above 0"),
        ({"retry_after_seconds": 0.0}, "retry_after_seconds must be above 0"),
        ({"retry_after_seconds": 60.0}, "at most 30.0, got 60.0"),
    ],
)
def test_times_that_cannot_work_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RedisStore("redis://localhost", **settings)


def test_without_redis_py_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_redis(name: str, *arguments: object, **keywords: object) -> object:
        if name.split(".")[0] == "redis":
            raise ModuleNotFoundError("No module named 'redis'", name="redis")
        return real_import(name, *arguments, **keywords)

    monkeypatch.delitem(sys.modules, "kvtrie.store.redis_connection", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_redis)
    with pytest.raises(InputError, match=r"pip install kvtrie\[all\]"):
        open_store("redis://localhost")
