"""Quantising: what elements stand for, how far off they are, and what cannot be represented."""

from __future__ import annotations

import pytest
import torch

from kvtrie.chunk_kernels.quantise import LARGEST, STORED_DTYPES, check_format, dequantise, quantise
from kvtrie.prefix_tree import InputError

FORMATS = sorted(LARGEST)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def there_and_back(vectors: torch.Tensor, kv_format: str) -> torch.Tensor:
    elements, scale = quantise(vectors, kv_format)
    assert elements.dtype == STORED_DTYPES[kv_format]
    assert elements.shape == vectors.shape
    assert scale.dtype == torch.float32
    assert scale.shape == vectors.shape[:-1]
    return dequantise(elements, scale[..., None], torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spread", [1e-3, 1.0, 300.0])
def test_int8_is_within_half_a_step_of_the_largest(dtype: torch.dtype, spread: float) -> None:
    torch.manual_seed(0)
    vectors = (torch.randn(50, 3, 96) * spread).to(dtype)
    error = (there_and_back(vectors, "int8") - vectors.float()).abs().amax(-1)
    largest = vectors.float().abs().amax(-1)
    assert (error <= largest / 254 * (1 + 1e-5)).all()
    assert error.max() > largest.max() / 1000, "a bound that nothing comes near bounds nothing"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spread", [1e-3, 1.0, 300.0])
def test_fp8_is_within_a_sixteenth_of_itself(dtype: torch.dtype, spread: float) -> None:
    torch.manual_seed(0)
    vectors = (torch.randn(50, 3, 96) * spread).to(dtype)
    exact = vectors.float()
    error = (there_and_back(vectors, "fp8") - exact).abs()
    # Below 2^-6 fp8's own steps are 2^-9 wide.
    smallest_step = exact.abs().amax(-1, keepdim=True) / 448 * 2**-10
    assert (error <= torch.maximum(exact.abs() / 16, smallest_step) * (1 + 1e-5)).all()
    assert (error > exact.abs() / 20).any()


@pytest.mark.parametrize("kv_format", FORMATS)
def test_the_largest_element_comes_back_and_signs_are_kept(kv_format: str) -> None:
    vectors = torch.tensor([[3.0, -1.5, 0.0, 0.75], [-7e-20, 7e-20, 0.0, 0.0], [6e4, -6e4, 1.0, 0.0]])
    back = there_and_back(vectors, kv_format)
    torch.testing.assert_close(back[:, 0], vectors[:, 0], rtol=1e-6, atol=0)
    assert (back[:, 2:].sign() == vectors[:, 2:].sign()).logical_or(back[:, 2:] == 0).all()


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-39])
def test_nothing_and_next_to_nothing_are_zero(kv_format: str, value: float) -> None:
    elements, scale = quantise(torch.full((2, 5), value), kv_format)
    assert (scale == 0).all()
    assert (elements.view(torch.uint8) == 0).all()


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_shows_in_the_scale_and_stays_in_its_vector(
    kv_format: str, dtype: torch.dtype, value: float
) -> None:
    vectors = torch.ones(3, 8, dtype=dtype)
    vectors[1, 5] = value
    elements, scale = quantise(vectors, kv_format)
    assert scale.isfinite().tolist() == [True, False, True]
    assert (elements[1].view(torch.uint8) == 0).all()
    back = dequantise(elements, scale[:, None], dtype)
    assert back[1].isnan().all()
    torch.testing.assert_close(back[[0, 2]], vectors[[0, 2]], rtol=1e-2, atol=0)


class TestDevices:
    def test_everything_is_allowed_on_the_cpu(self) -> None:
        for kv_format in ("raw", "int8", "fp8"):
            check_format(kv_format, torch.device("cpu"))

    @pytest.mark.parametrize(("capability", "allowed"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
    def test_fp8_needs_a_gpu_that_has_it(
        self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], allowed: bool
    ) -> None:
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        check_format("int8", torch.device("cuda"))
        if allowed:
            check_format("fp8", torch.device("cuda"))
        else:
            with pytest.raises(InputError, match=r'8\.9 or more, cuda is not one; use "int8"'):
                check_format("fp8", torch.device("cuda"))

    def test_rocm_has_another_fp8(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.version, "hip", "6.4")
        check_format("int8", torch.device("cuda"))
        with pytest.raises(InputError, match="ROCm"):
            check_format("fp8", torch.device("cuda"))

    def test_other_accelerators_have_none(self) -> None:
        with pytest.raises(InputError, match="fp8"):
            check_format("fp8", torch.device("mps"))
