from __future__ import annotations

from collections.abc import Callable

import pytest

from fastft.probe.device import GIB, find_device

Smi = Callable[[str], None]
Install = Callable[[str, str], None]

A100 = "NVIDIA A100-SXM4-80GB, 81920, 8.0"
T4 = "Tesla T4, 15360, 7.5"


@pytest.fixture
def cuda_torch(install: Install) -> None:
    install("torch", "2.13.0+cu128")


@pytest.mark.usefixtures("cuda_torch")
def test_the_driver_reports_a_gpu(nvidia_smi: Smi) -> None:
    nvidia_smi(A100)

    device = find_device()

    assert (device.kind, device.name, device.memory_bytes, device.count) == (
        "cuda",
        "NVIDIA A100-SXM4-80GB",
        80 * GIB,
        1,
    )
    assert device.computes_bfloat16
    assert str(device) == "NVIDIA A100-SXM4-80GB, 80.0 GiB"


@pytest.mark.usefixtures("cuda_torch")
def test_an_older_gpu_computes_no_bfloat16(nvidia_smi: Smi) -> None:
    nvidia_smi(T4)

    assert not find_device().computes_bfloat16


@pytest.mark.usefixtures("cuda_torch")
def test_of_several_gpus_the_smallest_memory_counts(nvidia_smi: Smi) -> None:
    nvidia_smi(f"{A100}\nNVIDIA A100-SXM4-40GB, 40960, 8.0")

    device = find_device()

    assert (device.count, device.memory_bytes) == (2, 40 * GIB)
    assert str(device).startswith("2 x ")


@pytest.mark.usefixtures("cuda_torch")
@pytest.mark.parametrize(
    ("chosen", "count"), [("0", 1), ("1,0", 2), ("", 0), ("-1", 0), ("7", 0), ("GPU-aaaa", 1), ("0,1", 2)]
)
def test_only_visible_gpus_count(nvidia_smi: Smi, monkeypatch: pytest.MonkeyPatch, chosen: str, count: int) -> None:
    nvidia_smi(f"{A100}\n{A100}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)

    device = find_device()

    assert (device.count if device.is_gpu else 0) == count


@pytest.mark.usefixtures("cuda_torch")
def test_a_gpu_that_shares_the_main_memory_has_that_much(nvidia_smi: Smi) -> None:
    nvidia_smi("NVIDIA GB10, [N/A], 12.1")

    device = find_device()

    assert device.is_gpu
    assert device.memory_bytes > 0
    assert device.computes_bfloat16


@pytest.mark.usefixtures("cuda_torch")
@pytest.mark.parametrize("text", ["", "No devices were found"])
def test_a_driver_without_gpus_leaves_the_processor(nvidia_smi: Smi, text: str) -> None:
    nvidia_smi(text)

    assert find_device().kind == "cpu"


def test_a_gpu_that_torch_cannot_use_is_not_taken(nvidia_smi: Smi, install: Install) -> None:
    install("torch", "2.13.0+cpu")
    nvidia_smi(A100)

    device = find_device()

    assert device.kind == "cpu"
    assert device.missing == "there is a NVIDIA A100-SXM4-80GB, but torch 2.13.0+cpu is a build without CUDA"


def test_without_a_driver_the_processor_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    device = find_device()

    assert (device.kind, device.count, device.missing) == ("cpu", 1, None)
    assert device.name.startswith("CPU (")
    assert device.memory_bytes > 0
