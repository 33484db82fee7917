"""Common blocks, against what was put together by hand, and against difflib where difflib is quick enough."""

from __future__ import annotations

import random
from difflib import SequenceMatcher
from itertools import pairwise

import pytest

from kvtrie.api.inspection.common_blocks import MOST_TOKENS, Block, common_blocks

TEXT = list(range(1000, 1100))


def check(one: list[int], other: list[int], least_tokens: int) -> list[Block]:
    """The blocks: equal, long enough, in order, none beside another where it could be one."""
    blocks = common_blocks(one, other, least_tokens)
    for block in blocks:
        assert block.tokens >= least_tokens
        ends = block.start_one + block.tokens, block.start_other + block.tokens
        assert one[block.start_one : ends[0]] == other[block.start_other : ends[1]]
    for left, right in pairwise(blocks):
        assert left.start_one + left.tokens <= right.start_one
        assert left.start_other + left.tokens <= right.start_other
    return blocks


class TestEdits:
    def test_equal(self):
        assert check(TEXT, TEXT, 8) == [Block(0, 0, 100)]

    def test_inserted(self):
        assert check([*TEXT[:30], 1, 2, 3, *TEXT[30:]], TEXT, 8) == [Block(0, 0, 30), Block(33, 30, 70)]

    def test_removed(self):
        assert check([*TEXT[:30], *TEXT[50:]], TEXT, 8) == [Block(0, 0, 30), Block(30, 50, 50)]

    def test_replaced_in_two_places(self):
        changed = [*TEXT[:20], 1, 2, *TEXT[21:60], 3, *TEXT[66:]]
        assert check(changed, TEXT, 8) == [Block(0, 0, 20), Block(22, 21, 39), Block(62, 66, 34)]

    def test_runs_below_the_least_length_do_not_count(self):
        assert check([1, *TEXT[:7], 2], TEXT, 8) == []
        assert check([1, *TEXT[:8], 2], TEXT, 8) == [Block(1, 0, 8)]

    def test_a_part_that_was_moved_counts_once(self):
        moved = [*TEXT[70:], *TEXT[:70]]
        assert check(moved, TEXT, 8) == [Block(30, 0, 70)]


class TestRepetition:
    """Where no window occurs once there are no anchors."""

    def test_one_token_throughout(self):
        assert check([7] * 50, [7] * 40, 8) == [Block(0, 0, 40)]

    def test_a_text_that_is_there_twice(self):
        assert check([*TEXT, *TEXT], [1, *TEXT], 8) == [Block(0, 1, 100)]

    def test_a_table_of_equal_rows_with_one_inserted_line(self):
        row = list(range(10, 30))
        found = check([*row * 3, 5, 6, *row * 4], row * 7, 8)
        assert sum(block.tokens for block in found) == 140

    def test_nothing_in_common(self):
        assert check([1] * 100, [2] * 100, 8) == []
        assert check([], TEXT, 8) == []


@pytest.mark.parametrize("seed", range(20))
def test_as_much_as_difflib_finds_after_random_edits(seed):
    draw = random.Random(seed)
    text = [draw.choice([5, 6, draw.randrange(10_000)]) for _ in range(400)]
    changed = list(text)
    for _ in range(6):
        at = draw.randrange(len(changed))
        changed[at : at + draw.randrange(12)] = [
            draw.randrange(20_000, 30_000) for _ in range(draw.randrange(12))
        ]
    blocks = check(changed, text, 8)
    theirs = SequenceMatcher(None, changed, text, autojunk=False).get_matching_blocks()
    assert sum(block.tokens for block in blocks) >= sum(block.size for block in theirs if block.size >= 8)


def test_a_hundred_thousand_tokens_of_which_every_second_is_a_line_end():
    """difflib would compare each line end with all the others."""
    draw = random.Random(0)
    text = [token for _ in range(50_000) for token in (5, draw.randrange(6, 130_000))]
    changed = [*text[:40_000], *range(200_000, 200_020), *text[40_003:]]
    assert check(changed, text, 8) == [Block(0, 0, 40_000), Block(40_020, 40_003, 59_997)]


def test_what_is_beyond_the_limit_is_not_compared():
    text = list(range(MOST_TOKENS + 100))
    assert check(text, text, 8) == [Block(0, 0, MOST_TOKENS)]
