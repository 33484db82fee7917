"""Which Redis: checking its URL, and showing it without its secrets."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlsplit

from kvtrie.prefix_tree.errors import InputError

REDIS_FORMS = (
    "redis://[user:password@]host[:port][/db]",
    "rediss://[user:password@]host[:port][/db][?ssl_ca_certs=FILE]",
    "redis+unix://[user:password@]/path/to/redis.sock[?db=N]",
)
_DATABASE = re.compile(r"/?[0-9]*\Z", re.ASCII)


def shown_url(url: str) -> str:
    """`url` fit for a log: user and password replaced, whether or not it is well formed."""
    before, colon, rest = url.partition(":")
    if not colon:
        before, rest = "", url
    if "@" in rest:
        # The last `@`: a password may hold one, and what is hidden must never be too little.
        rest = "//***@" + rest.rpartition("@")[2]
    rest = re.sub(r"([?&][^=&]*password=)[^&]*", r"\1***", rest, flags=re.IGNORECASE)
    return before + colon + rest


def redis_py_url(url: str) -> str:
    """`url` as redis-py takes it (`redis+unix` is its `unix`), checked more strictly than it does.

    redis-py ignores a database that is no number and a host before a socket path, and takes any query
    option as a constructor argument, timeouts included; all of these are errors here.

    Raises:
        InputError: malformed, with the accepted forms.
    """
    # 1. Its parts.
    try:
        parts = urlsplit(url)
        port = parts.port
    # The parser's own message may quote a piece of a password: it is not passed on.
    except ValueError:
        raise _malformed(url, "cannot be parsed") from None
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.fragment:
        raise _malformed(url, "has a `#`; write it as %23 in a password")
    # 2. What each scheme must name.
    if parts.scheme in ("redis", "rediss"):
        if not parts.hostname:
            raise _malformed(url, "names no host")
        if port == 0:
            raise _malformed(url, "has port 0")
        if not _DATABASE.match(unquote(parts.path)):
            raise _malformed(url, f"has database {parts.path!r}, not a number")
    elif parts.scheme in ("unix", "redis+unix"):
        if parts.hostname or port is not None:
            raise _malformed(url, "names a host, not a socket")
        if len(parts.path) < 2:
            raise _malformed(url, "names no socket")
    else:
        raise _malformed(url, f"has scheme {parts.scheme!r}")
    # 3. Options: a database, and those of TLS.
    for name, value in options.items():
        if name == "db":
            if not re.fullmatch("[0-9]+", value, re.ASCII):
                raise _malformed(url, f"has database {value!r}, not a number")
        elif not (parts.scheme == "rediss" and name.startswith("ssl_")):
            raise _malformed(url, f"has option {name!r}, which is not one of this form")
    return url.removeprefix("redis+") if parts.scheme == "redis+unix" else url


def _malformed(url: str, problem: str) -> InputError:
    return InputError(f"Redis URL {shown_url(url)} {problem}; accepted: {', '.join(REDIS_FORMS)}")
