"""The command itself: what it imports, what it exits with, and that errors are one line."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tokenreward import cli
from tokenreward.cli import COMMANDS, CommandError, main
from tokenreward.errors import Overloaded
from tokenreward.settings import SettingsError
from tokenreward_client import BadArgument, ConnectionFailed

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `tokenreward serve` a command that raises."""

    def run(_: Any) -> int:
        raise error

    def add_parser(subparsers: Any) -> None:
        subparsers.add_parser("serve").set_defaults(run=run)

    monkeypatch.setattr(
        cli.importlib, "import_module", lambda name: SimpleNamespace(add_parser=add_parser)
    )


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (CommandError("no"), 1, "error: no\n"),
        (CommandError("no", exit_code=2), 2, "error: no\n"),
        (BadArgument("bad"), 2, "error: bad\n"),
        (ConnectionFailed("no answer"), 1, "error: no answer\n"),
        (SettingsError("unknown setting `x`"), 1, "error: unknown setting `x`\n"),
        (Overloaded("busy"), 1, "error: busy\n"),
        (
            FileNotFoundError(2, "No such file or directory", "a.yaml"),
            1,
            "error: a.yaml: No such file or directory\n",
        ),
        (
            ModuleNotFoundError("No module named 'ray'", name="ray"),
            1,
            "error: this needs the packages of the service, of which ray is missing: pip install ",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_error_is_one_line_and_an_exit_code(
    error: BaseException,
    exit_code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raising(error, monkeypatch)
    assert main(["serve"]) == exit_code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(line)
    assert output.err.count("\n") == (1 if line else 0)


@pytest.mark.parametrize(
    "argv",
    [["serve"], ["serve", "--config", "smol"], ["check"], ["score", "--demo", "data.jsonl"]],
    ids=" ".join,
)
def test_without_the_packages_of_the_service_the_line_that_installs_them_is_named(
    argv: list[str], tmp_path: Path
) -> None:
    """As where only the client is installed: the imports of all that `server` brings fail."""
    server = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]["server"]
    names = {re.split(r"[>=<[]", each)[0].replace("-", "_") for each in server}
    names = names - {"pyyaml"} | {"yaml", "starlette", "uvicorn"}
    assert {"ray", "torch", "orjson"} <= names
    (tmp_path / "data.jsonl").write_text('{"prompt": "q", "response": "a"}')
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from tokenreward.cli import main
sys.exit(main({argv}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"error: this needs the packages of the service, of which \w+ is missing: "
        r"pip install 'tokenreward\[server\]'\n",
        done.stderr,
    )


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), ModuleNotFoundError("x", name="tokenreward.missing")]
)
def test_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(error, monkeypatch)
    with pytest.raises(type(error)):
        main(["serve"])


@pytest.mark.parametrize("argv", [[], ["sing"], ["--loud"]])
def test_unknown_command_is_a_usage_error(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: tokenreward" in capsys.readouterr().err


def test_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys; from tokenreward.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print([name for name in sys.modules if name.startswith('tokenreward.cli.')], "
        "file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert all(f"\n    {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    "name", [name for name in COMMANDS if importlib.util.find_spec(f"tokenreward.cli.{name}")]
)
def test_parser_of_every_command_is_light(name: str) -> None:
    code = f"""
import sys
from tokenreward.cli import main
try: main(['{name}', '--help'])
except SystemExit: pass
heavy = ('torch', 'ray', 'transformers', 'fastapi', 'yaml')
print('HEAVY', *[name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"usage: tokenreward {name}" in done.stdout
    assert "\n\nexamples:\n  " in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY"


def test_module_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tokenreward.cli", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "tokenreward")


def test_ctrl_c_while_waiting_for_stdin_ends_quietly(edge: Any) -> None:
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "tokenreward.cli", "score", "--url", edge.url]
    with subprocess.Popen(
        command, stdin=read_end, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            deadline = time.monotonic() + 20
            while edge.num_listed == 0 and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            _, output = process.communicate(timeout=10)
        finally:
            process.kill()
    os.close(read_end)
    os.close(write_end)
    assert process.returncode == 130
    assert output == ""


def test_reader_that_leaves_is_no_traceback(edge: Any, tmp_path: Any, item_lines: Any) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text("".join(item_lines(2000)))
    command = f"{sys.executable} -m tokenreward.cli score {file} --url {edge.url} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_of_the_help_is_a_command_line_that_parses(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    _, _, examples = capsys.readouterr().out.partition("examples:\n")
    lines = [
        line.split(f"tokenreward {name}")[1]
        for line in examples.splitlines()
        if f"tokenreward {name}" in line
    ]
    assert lines
    for line in lines:
        arguments = shlex.split(line.partition(" > ")[0])
        assert (
            cli.make_parser([name]).parse_args([name, *arguments]).run.__module__
            == f"tokenreward.cli.{name}"
        )
