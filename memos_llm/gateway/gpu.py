"""The memory of this machine's GPUs, where NVIDIA's library can be asked (the extra `gpu`)."""

import asyncio
from importlib import import_module
from typing import Any

_NONE: dict[str, Any] = {"gpus": [], "source": "none"}


async def status() -> dict[str, Any]:
    """The document of `/api/v1/models/gpu/status`; no GPU and no library are the same to its reader."""
    return await asyncio.to_thread(_ask)  # the driver may take its time


def _ask() -> dict[str, Any]:
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - not installed, no driver, no card: nvml raises classes that only it knows
        return _NONE
    try:
        return {"gpus": [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())], "source": "nvml"}
    except Exception:  # noqa: BLE001 - a card that fell off the bus must not fail the page
        return _NONE
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory, name = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetName(handle)
    return {
        "index": index,
        "name": name.decode() if isinstance(name, bytes) else name,
        "total_bytes": memory.total,
        "used_bytes": memory.used,
        "free_vram_gb": round(memory.free / 2**30, 2),
    }
