"""The handle that `generate` returns in place of a cache: tokens whose KV is in the tree, to be continued."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor
from transformers.cache_utils import Cache

from kvtrie.prefix_tree.errors import InputError


class TreeHandle(Cache):  # type: ignore[misc]
    """Names sequences whose KV the tree keeps. It holds no KV itself, so it may be dropped at any time.

    Give it back to `PrefixCachedModel.generate` with the whole conversation's ids, as `model.generate` is given its
    own cache. No model can use it.
    """

    def __init__(self, tokens: list[list[int]], columns: int) -> None:
        """
        Args:
            tokens: of each row, padding left out.
            columns: of the padded batch.
        """
        super().__init__(layers=[])
        self.tokens = tokens
        self._columns = columns

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the padded batch that were computed."""
        return self._columns

    def check_continued_by(self, prompts: list[list[int]]) -> None:
        """Checks that each of `prompts`, padding left out, begins with this handle's row.

        Raises:
            InputError: one does not, or there are more or fewer of them.
        """
        if len(prompts) != len(self.tokens):
            raise InputError(
                f"the returned cache is of {len(self.tokens)} rows and the prompt has {len(prompts)}; pass the "
                "sequences that generate() returned, with what follows"
            )
        for row, (prompt, tokens) in enumerate(zip(prompts, self.tokens)):
            if prompt[: len(tokens)] != tokens:
                raise InputError(
                    f"the prompt in row {row} does not begin with the {len(tokens)} tokens of the returned cache; "
                    "pass the whole sequence (the ids that generate() returned, then the new ones), or drop the "
                    "cache: kvtrie finds what is cached by the tokens"
                )

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses to be a model's cache.

        Raises:
            InputError: always.
        """
        raise InputError(
            "the cache that kvtrie's generate() returns names sequences in kvtrie's tree and holds no KV: pass it "
            "to PrefixCachedModel.generate, or drop it"
        )

    def reorder_cache(self, beam_idx: Tensor) -> NoReturn:
        """As `update`."""
        self.update()

    def crop(self, max_length: int | Tensor) -> NoReturn:
        """As `update`."""
        self.update()
