"""Several completions of one prompt, as `n` of OpenAI's API asks for."""

from __future__ import annotations

from dataclasses import replace

from kvtrie.api.engine.request import Request
from kvtrie.api.engine.sampling.checked_numbers import whole_number
from kvtrie.api.engine.sampling.uniforms import derived_seed
from kvtrie.prefix_tree.errors import InputError


def fan_out(request: Request, n: int) -> tuple[Request, ...]:
    """`n` requests for completions of one prompt, whose KV is computed once: they share it through the tree.

    The first has the request's own seed, so that it equals the request alone; the seeds of the others are derived
    from it (`derived_seed`). Without a seed each draws a fresh one.

    Raises:
        InputError: n is not at least 1, or the request only computes its prompt.
    """
    count = whole_number("n", n)
    if count < 1:
        raise InputError(f"n must be at least 1, got {n}")
    if request.prefill_only and count > 1:
        raise InputError("a prefill_only request has no completion; n must be 1")
    seed = request.sampling.seed
    if seed is None:
        return (request,) * count
    samplings = [replace(request.sampling, seed=derived_seed(seed, copy)) for copy in range(count)]
    return tuple(replace(request, sampling=sampling) for sampling in samplings)
