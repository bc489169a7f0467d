"""Values in files, between a process and the one that runs a program."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from qcore.lowering.exchange import read_values, write_values

TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool]
TENSORS = st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 3), max_size=4))


@given(st.lists(TENSORS, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_tensors_come_back_as_they_were(
    tmp_path: Path, kinds: list[tuple[torch.dtype, list[int]]]
) -> None:
    values = [(torch.randn(shape) * 3).to(dtype) for dtype, shape in kinds]
    write_values(tmp_path / "values", values)
    read = read_values(tmp_path / "values")
    assert [(value.dtype, value.shape) for value in read] == [(v.dtype, v.shape) for v in values]
    assert all(map(torch.equal, read, values))


@pytest.mark.parametrize(
    "value",
    [3, True, None, torch.ones(2, dtype=torch.complex64), torch.rand(1, 2, 3).transpose(1, 2)],
)
def test_other_values_come_back_too(tmp_path: Path, value: Any) -> None:
    write_values(tmp_path / "values", [torch.ones(2), value])
    first, second = read_values(tmp_path / "values")
    assert torch.equal(first, torch.ones(2))
    assert type(second) is type(value)
    assert torch.equal(second, value) if torch.is_tensor(value) else second == value
    assert getattr(second, "stride", tuple)() == getattr(value, "stride", tuple)()
