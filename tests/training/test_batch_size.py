"""A training on a CPU takes the memory that is there: at the GPU's batch size the kernel killed it without a word."""

from __future__ import annotations

import pytest

from rsd_policy.training.mini.batch_size import default_batch_size, free_memory_gib


@pytest.mark.parametrize(
    ("free_gib", "size"), [(128.0, 512), (22.0, 256), (16.0, 256), (8.0, 128), (4.0, 32), (1.0, 16)]
)
def test_the_default_batch_fits_in_memory(free_gib: float, size: int) -> None:
    assert default_batch_size("cpu", free_gib=free_gib) == size
    assert size == 16 or 1.5 + 0.0315 * size <= free_gib


def test_a_gpu_gets_the_full_batch() -> None:
    assert default_batch_size("cuda", free_gib=1.0) == 512


def test_several_processes_share_a_batch() -> None:
    assert default_batch_size("cpu", processes=3, free_gib=32.0) % 3 == 0


def test_free_memory_is_what_this_machine_has() -> None:
    assert 0 < free_memory_gib() < 2**20
