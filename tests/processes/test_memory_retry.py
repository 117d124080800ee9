"""Batches that halve themselves: every row once, whatever fits; and an error that names the setting when nothing does."""

import pytest
import torch

from rlcm.errors import TrainingError
from rlcm.processes.memory_retry import BatchSize, is_out_of_memory


def full(limit, kind=torch.OutOfMemoryError, text="CUDA out of memory. Tried to allocate 2 GiB\nmore"):
    """Return a function of rows that works for at most `limit` of them, and the sizes it was asked for."""
    asked = []

    def work(rows):
        asked.append(len(rows))
        if len(rows) > limit:
            raise kind(text)
        return rows * 10

    return work, asked


def test_rows_are_worked_through_once_and_in_order():
    told = []
    size = BatchSize(8, "run.micro_batch_size", told.append)
    work, asked = full(3)
    done = list(size.over(torch.arange(7), work))
    assert torch.equal(torch.cat(done), torch.arange(7) * 10)
    assert asked == [7, 4, 2, 2, 2, 1]
    assert size.size == 2
    reason = "out of memory (CUDA out of memory. Tried to allocate 2 GiB): going on with"
    assert told == [f"{reason} run.micro_batch_size={n}; the results stay the same" for n in (4, 2)]
    assert [len(part) for part in size.over(torch.arange(5), work)] == [2, 2, 1]  # it stays small


def test_a_row_may_take_more_than_one():
    size = BatchSize(8, "rollout.sample_batch_size")
    assert [len(part) for part in size.over(torch.arange(5), lambda rows: rows, each=4)] == [2, 2, 1]
    assert [len(part) for part in size.over(torch.arange(2), lambda rows: rows, each=16)] == [1, 1]
    assert list(size.over(torch.arange(0), lambda rows: rows)) == []


def test_what_does_not_fit_at_all_names_the_setting():
    size = BatchSize(4, "run.micro_batch_size")
    work, asked = full(0)
    with pytest.raises(TrainingError, match=r"run.micro_batch_size=1 does not fit either.*gradient_checkpointing.*fsdp2"):
        list(size.over(torch.arange(4), work))
    assert asked == [4, 2, 1]


def test_a_fixed_size_is_not_halved():
    size = BatchSize(4, "run.micro_batch_size", is_fixed=True)
    with pytest.raises(TrainingError, match=r"out of memory at run.micro_batch_size=4 .*: lower run.micro_batch_size"):
        list(size.over(torch.arange(4), full(3)[0]))
    assert size.size == 4


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected
    size = BatchSize(2, "run.micro_batch_size")

    def work():
        if size.size == 2:
            raise error
        return "done"

    if expected:
        assert size.fit(work) == "done"
    else:
        with pytest.raises(type(error)):
            size.fit(work)


def test_a_real_allocation_that_is_too_large_is_recognised():
    size = BatchSize(2**50, "rollout.sample_batch_size")
    assert size.fit(lambda: torch.empty(size.size if size.size > 2**40 else 1)).shape == (1,)
    assert size.size <= 2**40
