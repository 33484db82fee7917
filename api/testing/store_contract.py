"""What every store must do: `kvtrie.store.Store`, rule by rule."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kvtrie.prefix_tree.errors import InputError, StoreUnavailable
from kvtrie.store import Store
from kvtrie.testing.expected_error import expected_error

_WALK_STEPS = 300


class StoreContract:
    """Derive `TestMyStore` from it and override `make_store`; every check opens a store and closes it."""

    def make_store(self) -> Store:
        """An empty store, open. Override it."""
        raise NotImplementedError(f"{type(self).__name__} must override make_store")

    @contextmanager
    def _opened(self) -> Iterator[Store]:
        store = self.make_store()
        try:
            yield store
        finally:
            store.close()

    def test_a_miss_is_none(self) -> None:
        """`get_many` returns None for a key that is not held, and raises nothing."""
        with self._opened() as store:
            assert store.get_many([b"absent", b"gone"]) == [None, None]

    def test_values_come_back_in_the_order_of_the_keys(self) -> None:
        """`get_many` returns one value per key, in the order of `keys`, also where a key is asked for
        twice."""
        with self._opened() as store:
            store.put_many([(b"a", b"1"), (b"b", b"2")])
            assert store.get_many([b"b", b"absent", b"a", b"b"]) == [b"2", None, b"1", b"2"]

    def test_the_later_value_stays(self) -> None:
        """Of two values put under one key the later one is held, within one call and from call to call."""
        with self._opened() as store:
            store.put_many([(b"a", b"1"), (b"a", b"2")])
            assert store.get_many([b"a"]) == [b"2"]
            store.put_many([(b"a", b"3")])
            assert store.get_many([b"a"]) == [b"3"]

    def test_no_keys_change_nothing(self) -> None:
        """Every call takes an empty sequence, and does nothing for it."""
        with self._opened() as store:
            store.put_many([])
            assert store.get_many([]) == []
            assert store.delete_many([]) == 0
            assert list(store.scan()) == []

    def test_delete_counts_the_keys_that_were_held(self) -> None:
        """`delete_many` forgets every key, and returns how many of them were held, a repeated key once."""
        with self._opened() as store:
            store.put_many([(b"a", b"1"), (b"b", b"")])
            assert store.delete_many([b"a", b"absent", b"a", b"b"]) == 2
            assert store.get_many([b"a", b"b"]) == [None, None]

    def test_any_1_to_64_bytes_are_a_key(self) -> None:
        """A key may be any 1 to 64 bytes, line ends, zeros and what other stores take for patterns
        included."""
        for length in (1, 15, 16, 17, 64):
            with self._opened() as store:
                keys = [bytes([byte]) * length for byte in (0, 10, 13, 42, 91, 255)]
                store.put_many([(key, key + b"!") for key in keys])
                assert store.get_many(keys) == [key + b"!" for key in keys]
                assert sorted(set(store.scan())) == sorted(keys)

    def test_a_prefix_of_a_key_is_another_key(self) -> None:
        """A key that another key begins with is read and deleted alone."""
        with self._opened() as store:
            store.put_many([(b"ab", b"long"), (b"a", b"short")])
            assert store.delete_many([b"a"]) == 1
            assert store.get_many([b"a", b"ab"]) == [None, b"long"]

    def test_other_keys_are_refused_before_anything_is_stored(self) -> None:
        """A key that is not 1 to 64 bytes raises InputError from every method that takes keys, and no item of
        that call is stored. `kvtrie.store.contract.check_keys` raises it."""
        others: list[Any] = [b"", bytes(65), "text", bytearray(b"a")]
        for key in others:
            with self._opened() as store:
                with expected_error(InputError, "1 to 64 bytes"):
                    store.get_many([b"fine", key])
                with expected_error(InputError, "1 to 64 bytes"):
                    store.put_many([(b"fine", b""), (key, b"")])
                with expected_error(InputError, "1 to 64 bytes"):
                    store.delete_many([b"fine", key])
                assert store.get_many([b"fine"]) == [None]

    def test_values_are_any_bytes_of_any_size(self) -> None:
        """Values come back as the bytes that were put, from none to some megabytes each, and hundreds in one
        call."""
        # Small and large mixed, so that every way of batching is taken; more keys than one batch has.
        sizes = [0, 1, 65_535, 65_536, 65_537, 300_000, 3_000_000, 5, 7] + [9] * 200 + [200_000] * 5
        items = [(b"%d" % n, (b"%d\r\n$" % n * size)[:size]) for n, size in enumerate(sizes)]
        with self._opened() as store:
            store.put_many(items)
            found = store.get_many([key for key, _ in items])
            assert [type(value) for value in found] == [bytes] * len(items)
            # Not one comparison of lists: the message of a failure would show megabytes.
            assert [key for (key, value), got in zip(items, found) if got != value] == []
            assert store.get_many([b"absent%d" % n for n in range(200)]) == [None] * 200

    def test_scan_yields_every_key(self) -> None:
        """`scan` yields every key that is held, in any order, thousands of them too."""
        keys = {b"%d" % n for n in range(2500)}
        with self._opened() as store:
            store.put_many([(key, b"x") for key in keys])
            assert set(store.scan()) == keys

    def test_a_view_is_stored_as_bytes(self) -> None:
        """A value that is a view of a buffer is copied before `put_many` returns: the buffer changes
        later."""
        buffer = bytearray(b"before")
        view: Any = memoryview(buffer)
        with self._opened() as store:
            store.put_many([(b"a", view)])
            buffer[:] = b"after!"
            assert store.get_many([b"a"]) == [b"before"]

    def test_a_closed_store_is_unavailable(self) -> None:
        """After `close`, which may be called twice, every method raises StoreUnavailable and says
        "closed"."""
        store = self.make_store()
        store.put_many([(b"a", b"1")])
        store.close()
        store.close()
        with expected_error(StoreUnavailable, "closed"):
            store.get_many([b"a"])
        with expected_error(StoreUnavailable, "closed"):
            store.put_many([(b"a", b"1")])
        with expected_error(StoreUnavailable, "closed"):
            store.delete_many([b"a"])
        with expected_error(StoreUnavailable, "closed"):
            list(store.scan())

    def test_threads_get_their_own_answers(self) -> None:
        """Several threads may call one store at once; each gets the values of its own keys."""
        wrong: list[object] = []

        def work(store: Store, name: int) -> None:
            for turn in range(30):
                items = [(b"%d-%d" % (name, n), b"%d-%d-%d" % (name, n, turn)) for n in range(5)]
                try:
                    store.put_many(items)
                    found = store.get_many([key for key, _ in items])
                except Exception as error:
                    wrong.append(error)
                    return
                if found != [value for _, value in items]:
                    wrong.append((name, turn, found))

        with self._opened() as store:
            threads = [threading.Thread(target=work, args=(store, name)) for name in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert wrong == []
            assert len(set(store.scan())) == 30

    def test_any_sequence_of_calls_is_a_dicts(self) -> None:
        """After any puts, gets and deletes, the store holds what a dict would: a random walk of some hundred
        calls."""
        rng = random.Random(9)
        model: dict[bytes, bytes] = {}

        def keys() -> list[bytes]:
            drawn = (b"a", b"ab", b"b", rng.randbytes(rng.randint(1, 64)), *list(model)[-1:])
            return rng.choices(drawn, k=rng.randint(0, 5))

        with self._opened() as store:
            for _ in range(_WALK_STEPS):
                call, asked = rng.choice(("put", "get", "delete")), keys()
                if call == "put":
                    items = [(key, rng.randbytes(rng.randint(0, 100))) for key in asked]
                    store.put_many(items)
                    model.update(items)
                elif call == "get":
                    assert store.get_many(asked) == [model.get(key) for key in asked]
                else:
                    held = {key for key in asked if key in model}
                    assert store.delete_many(asked) == len(held)
                    for key in held:
                        del model[key]
                assert sorted(set(store.scan())) == sorted(model)
                assert store.get_many(list(model)) == list(model.values())
