"""What the environment says, and starting alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

import torch_tp
from torch_tp import TensorParallelConfig, runtime

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_without_a_launcher_this_is_the_only_process() -> None:
    assert torch_tp.get_tensor_parallel_config() == TensorParallelConfig()


def test_torchrun_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)

    assert torch_tp.get_tensor_parallel_config() == TensorParallelConfig(5, 8, 1, 5, 8, "gloo")


def test_the_smallest_numbers_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)

    assert torch_tp.get_tensor_parallel_config() == TensorParallelConfig()


@pytest.mark.parametrize(
    ("gpus", "nccl", "expected"),
    [(True, True, "nccl"), (True, False, "gloo"), (False, True, "gloo"), (False, False, "gloo")],
)
def test_nccl_needs_gpus_and_a_torch_that_has_it(
    gpus: bool, nccl: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: nccl)

    assert torch_tp.get_tensor_parallel_config().backend == expected


def test_a_process_takes_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    runtime._claim_gpu(1)

    assert taken == [1]
    with pytest.raises(ValueError, match=r"LOCAL_RANK = 2 on a host with 2 GPUs; start at most one process per GPU"):
        runtime._claim_gpu(2)
    assert taken == [1]


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"RANK": "one"}, "the environment variable RANK is 'one'; it must be an integer of at least 0 and less than"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is '2'; it must be .* less than WORLD_SIZE = 2"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; it must be an integer of at least 1"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'; it must be an integer of at least 0"),
    ],
)
def test_a_malformed_environment_is_named(
    variables: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ValueError, match=f"torch_tp: .*{text}"):
        torch_tp.get_tensor_parallel_config()


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TensorParallelConfig().rank = 1  # type: ignore[misc]


def test_starting_alone_needs_no_launcher() -> None:
    assert torch_tp.init_tensor_parallel() == TensorParallelConfig()
    assert torch_tp.ColumnParallelLinear(4, 6).world_size == 1
    assert torch_tp.broadcast_tensor(torch.ones(2)).tolist() == [1, 1]
    torch_tp.synchronize_across_ranks()


def test_starting_twice_gives_the_same_group() -> None:
    torch_tp.init_tensor_parallel()
    first = torch_tp.ColumnParallelLinear(4, 6)._group.process_group
    torch_tp.init_tensor_parallel(tp_size=1)

    assert torch_tp.ColumnParallelLinear(4, 6)._group.process_group is first


@pytest.mark.parametrize("tp_size", [0, -1, 2, 1.0, True])
def test_an_impossible_group_size_starts_nothing(tp_size: int) -> None:
    with pytest.raises(ValueError, match=r"torch_tp\.init_tensor_parallel: tp_size = "):
        torch_tp.init_tensor_parallel(tp_size=tp_size)
    assert not dist.is_initialized()
