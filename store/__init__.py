"""Where chunks live outside the device, and what their bytes look like. The contract is `Store`."""

from kvtrie.store.codec import Codec, KeysValues, RawCodec
from kvtrie.store.contract import Store
from kvtrie.store.memory import MemoryStore
from kvtrie.store.namespace_record import decode_namespace, encode_namespace_record
from kvtrie.store.open_store import open_store
from kvtrie.store.record import Record, decode_record, encode_record, expect_record
from kvtrie.store.redis_store import RedisStore
from kvtrie.store.store_key import store_key_from_environment
from kvtrie.store.write_behind import WriteBehind, WriteBehindStats

__all__ = [
    "Codec",
    "KeysValues",
    "MemoryStore",
    "RawCodec",
    "Record",
    "RedisStore",
    "Store",
    "WriteBehind",
    "WriteBehindStats",
    "decode_namespace",
    "decode_record",
    "encode_namespace_record",
    "encode_record",
    "expect_record",
    "open_store",
    "store_key_from_environment",
]
