"""What all tests of the attention kernel stand on."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the kernel does not write is NaN."""
    pytest.importorskip("triton")
    import kvtrie.chunk_kernels.attend_triton  # noqa: F401 -- to be there for the patch

    plain = torch.empty

    def poisoned(*sizes: int, **options: object) -> torch.Tensor:
        return plain(*sizes, **options).fill_(float("nan"))  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr("kvtrie.chunk_kernels.attend_triton.torch.empty", poisoned)
