"""The next tokens of all rows of a step.

| rows that | take |
| --- | --- |
| are greedy, and change no logits | the model's likeliest token, which the step has found already |
| change logits | a copy of their logits, changed for all of them at once (`processors`) |
| are greedy after that | one argmax |
| draw, on a CPU | top-k of up to 256: the k likeliest, sorted; else one softmax, and `nucleus` |
| draw, on other devices | one sort (`sorted_filters`) |

A step's tokens and log probabilities come from the device in one transfer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from kvtrie.api.engine.sampler import Sampler
from kvtrie.api.engine.sampling.cpu_draws import CpuDraws
from kvtrie.api.engine.sampling.logprobs import ChosenLogprobs, packed_logprobs, unpacked
from kvtrie.api.engine.sampling.processors import process
from kvtrie.api.engine.sampling.sorted_filters import Filters, draw_sorted
from kvtrie.prefix_tree.errors import ModelOutputError

_TEMPERATURES = (1e-30, 1e30)
"""Below the first any two fp32 logits that differ do so by so much that only the larger one is ever drawn;
above the second all are equal. Quotients would overflow, or a forbidden token's be no number."""


@dataclass(frozen=True, slots=True)
class ChosenToken:
    """One request's next token."""

    token: int
    logprobs: ChosenLogprobs | None = None


class Chooser:
    """Chooses the next tokens of a step. Its owner calls it from one thread at a time."""

    def __init__(self) -> None:
        self._cpu = CpuDraws()

    def choose(
        self, samplers: Sequence[Sampler], logits: Tensor, rows: Sequence[int], likeliest: Sequence[int]
    ) -> list[ChosenToken | Exception]:
        """The next token of each request, or the error that ends it. Changes neither samplers nor logits.

        Args:
            samplers: of the requests.
            logits: fp32 `[any, vocabulary]`, of the model, finite in these rows.
            rows: each request's row of the logits.
            likeliest: each request's token of largest logit.
        """
        try:
            # Also for the buffers: one made inside a caller's inference mode could not be changed outside of it.
            with torch.inference_mode():
                return self._choose(samplers, logits, rows, likeliest)
        except Exception as error:
            if len(samplers) == 1:
                return [error]
        # One of them is at fault. Alone each, the others get the tokens they would have got together.
        return [
            self.choose([sampler], logits, [row], [token])[0]
            for sampler, row, token in zip(samplers, rows, likeliest)
        ]

    @property
    def counters(self) -> dict[str, int]:
        """Tokens drawn on the CPU, and how many of those draws sorted a vocabulary."""
        return {"draws": self._cpu.draws, "sorted_draws": self._cpu.sorts}

    def _choose(
        self, samplers: Sequence[Sampler], logits: Tensor, rows: Sequence[int], likeliest: Sequence[int]
    ) -> list[ChosenToken | Exception]:
        wanted = [i for i, one in enumerate(samplers) if not one.greedy or one.changes_logits]
        told = [i for i, one in enumerate(samplers) if one.sampling.logprobs is not None]
        if not wanted and not told:
            return [ChosenToken(token) for token in likeliest]
        device = logits.device
        tokens = torch.tensor(list(likeliest), device=device)
        heights = torch.zeros(len(samplers), device=device)
        if wanted:
            chosen, heights_of = self._others(
                [samplers[i] for i in wanted], logits, [rows[i] for i in wanted]
            )
            at = torch.tensor(wanted, device=device)
            tokens[at], heights[at] = chosen, heights_of
        parts = [tokens.double(), heights.double()]
        # Not more than there are tokens.
        most = min(max((samplers[i].sampling.logprobs or 0 for i in told), default=0), logits.shape[-1])
        if told:
            of = torch.tensor([rows[i] for i in told], device=device)
            at = torch.tensor(told, device=device)
            parts.append(packed_logprobs(logits[of], tokens[at], most).flatten())
        read = torch.cat(parts).tolist()
        count, width = len(samplers), 1 + 2 * most
        places = {i: 2 * count + place * width for place, i in enumerate(told)}
        choices: list[ChosenToken | Exception] = []
        for i, sampler in enumerate(samplers):
            token, height = int(read[i]), read[count + i]
            if height == -inf:
                error = "no token may be chosen: logit_bias, min_tokens and constraint together forbid all"
                choices.append(ModelOutputError(error))
            elif i in places:
                own = read[places[i] : places[i] + width]
                choices.append(ChosenToken(token, unpacked(token, own, most, sampler.sampling.logprobs or 0)))
            else:
                choices.append(ChosenToken(token))
        return choices

    def _others(
        self, samplers: Sequence[Sampler], logits: Tensor, rows: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Tokens of rows that need more than the model's likeliest one, `[rows]`, and their largest logits,
        `[rows]`; 0 where those are known to be finite."""
        device = logits.device
        scores = self._cpu.buffer("scores", logits, len(rows))
        tokens = torch.zeros(len(rows), dtype=torch.int64, device=device)
        heights = torch.zeros(len(rows), device=device)
        changed = [i for i, one in enumerate(samplers) if one.changes_logits]
        drawing = [i for i, one in enumerate(samplers) if not one.greedy]
        at = torch.tensor(drawing, dtype=torch.int64, device=device)
        of = [samplers[i] for i in drawing]
        least, most = _TEMPERATURES
        temperatures = torch.tensor(
            [min(max(one.sampling.temperature, least), most) for one in of], dtype=scores.dtype, device=device
        )[:, None]
        if not changed and list(rows) == list(range(rows[0], rows[0] + len(rows))):
            # All draw, and stand together: one pass instead of two.
            torch.div(logits[rows[0] : rows[0] + len(rows)], temperatures, out=scores)
            own = scores
        else:
            torch.index_select(logits, 0, torch.tensor(list(rows), device=device), out=scores)
            if changed:
                process(scores, [(i, samplers[i]) for i in changed])
                heights, tokens = scores.max(-1)
            own = scores if len(drawing) == len(rows) else scores[at]
            own.div_(temperatures)
        if drawing:
            found = self._cpu.draw(own, of) if device.type == "cpu" else _draw_by_sort(own, of)
            tokens[at] = found
        return tokens, heights


def _draw_by_sort(scores: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """A token of each row of scores `[rows, vocabulary]` after temperature, on any device: int64 `[rows]`."""
    ascending, order = torch.sort(scores)
    filters = Filters.of([one.sampling for one in samplers], scores.device)
    return draw_sorted(ascending, order, filters, [one.uniform() for one in samplers])


def next_token(sampler: Sampler, logits: Tensor) -> int:
    """Chooses and notes the next token of one request alone, from fp32 logits `[vocabulary]`.

    Raises:
        Exception: what ends the request.
    """
    (found,) = Chooser().choose([sampler], logits[None], [0], [int(logits.argmax())])
    if isinstance(found, Exception):
        raise found
    sampler.accept(found.token)
    return found.token
