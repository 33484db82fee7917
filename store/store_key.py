"""The store key: the secret behind the MAC of records, as a user gives it in the environment."""

from __future__ import annotations

import os

from kvtrie.prefix_tree.errors import InputError
from kvtrie.store.record import STORE_KEY_BYTES

VARIABLE = "KVTRIE_STORE_KEY"


def store_key_from_environment() -> bytes | None:
    """`KVTRIE_STORE_KEY` as bytes; None where it is not set: records are then sealed by a checksum only.

    An empty value is an error and not "no key": it is what a misspelt variable or a missing secret of a
    deployment expands to, and records would be written and read unsealed without anybody noticing.

    Raises:
        InputError: it is set and has fewer than 16 or more than 64 bytes.
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        return None
    # As the system handed it over, undecodable bytes included.
    key = os.fsencode(text)
    if not key:
        raise InputError(
            f"{VARIABLE} is empty; unset it for records without a MAC, or give it 16 to 64 bytes"
        )
    if len(key) not in STORE_KEY_BYTES:
        raise InputError(f"{VARIABLE} must be 16 to 64 bytes, got {len(key)}")
    return key
