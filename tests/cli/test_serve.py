"""`tokenreward serve`: the command that it prints, run in real shells against a real server."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import web
from fakes.configs import deployment, service
from tokenreward.cli.serve import effective_settings, example_command
from tokenreward.config import parse_settings, read_api_keys

MARK = b"\xef\xbb\xbf"  # a byte order mark


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """The URL of a server that answers with the path, the key and the body of a request."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        reply = {
            "path": scope["path"],
            "authorization": headers.get("authorization"),
            "content_type": headers["content-type"],
            "body": json.loads(body),
        }
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(reply).encode()})

    with web.serving(app) as url:
        yield url


def run(shell: list[str], command: str, folder: Path) -> dict[str, Any]:
    """What the server was sent by the printed command."""
    process = subprocess.run(
        [*shell, command], cwd=folder, capture_output=True, text=True, check=True
    )
    reply: dict[str, Any] = json.loads(process.stdout)
    return reply


@pytest.mark.parametrize("shell", [["sh", "-c"], ["bash", "-c"]], ids=["sh", "bash"])
@pytest.mark.parametrize(
    "name", ["keys", "my keys/$(id).txt", "it's; `id` \\ !!\" *", "-n", "\u043a\u043b\u044e\u0447"]
)
def test_the_command_works_for_a_key_file_of_any_name(
    echo: str, tmp_path: Path, shell: list[str], name: str
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("sesame\nother\n", encoding="utf-8")
    for path in (str(file), name):  # absolute, and relative to where the command runs
        settings = parse_settings(service(api_keys_file=path))
        request = run(shell, example_command(settings, echo), tmp_path)
        assert request["path"] == "/v1/rewards"
        assert request["authorization"] == "Bearer sesame"
        assert request["content_type"] == "application/json"
        assert request["body"]["scorer"] == "endogenous"


@pytest.mark.parametrize(
    "content",
    [
        b"sesame",
        MARK + b"sesame\nother\n",
        b"\n \t\r\n\n  sesame \r\nother",
        MARK + b"\r\n\r\nsesame\r\n",
        b"sesame\rother\r",
        "\u00a0sesame\u2028other".encode(),
        b"\x0b\x1csesame\x1cother",
    ],
)
def test_the_command_sends_the_first_key_of_every_file_that_the_service_reads(
    echo: str, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    assert read_api_keys(file)[0].get_secret_value() == "sesame"
    command = example_command(parse_settings(service(api_keys_file=str(file))), echo)
    assert run(["sh", "-c"], command, tmp_path)["authorization"] == "Bearer sesame"


def test_a_key_of_every_character_that_a_key_may_have_arrives_whole(
    echo: str, tmp_path: Path
) -> None:
    key = "".join(map(chr, range(ord("!"), ord("~") + 1)))
    (tmp_path / "keys").write_text(key)
    command = example_command(parse_settings(service(api_keys_file=str(tmp_path / "keys"))), echo)
    assert run(["sh", "-c"], command, tmp_path)["authorization"] == f"Bearer {key}"


def test_the_key_is_in_neither_the_command_nor_the_arguments_of_curl(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sesame\n")
    (tmp_path / "curl").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "curl").chmod(0o755)
    settings = parse_settings(service(api_keys_file=str(tmp_path / "keys")))
    command = example_command(settings, "http://127.0.0.1:8000")
    process = subprocess.run(
        ["sh", "-c", f"PATH={tmp_path}:$PATH; {command}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "http://127.0.0.1:8000/v1/rewards" in process.stdout.splitlines()
    assert "sesame" not in command + process.stdout


@pytest.mark.parametrize("checkpoint", ["org/model", "demo:sft"])
def test_without_keys_the_command_is_curl_alone(echo: str, tmp_path: Path, checkpoint: str) -> None:
    settings = parse_settings(service(deployment(checkpoint=checkpoint)))
    command = example_command(settings, echo)
    assert command.startswith("curl ")
    request = run(["sh", "-c"], command, tmp_path)
    assert request["authorization"] is None
    (item,) = request["body"]["items"]
    assert item["prompt"]
    assert item["response"]


@pytest.mark.parametrize("port", [None, 9000])
def test_options_change_nothing_else_of_the_config(tmp_path: Path, port: int | None) -> None:
    content = service(deployment(autoscaling={"max_replicas": 3}), port=8123)
    file = tmp_path / "service.yaml"
    file.write_text(json.dumps(content))
    settings = effective_settings(argparse.Namespace(config=file, host=None, port=port))
    expected = parse_settings({**content, "port": port or 8123}).deployments[0]
    assert settings.port == (port or 8123)
    (loaded,) = settings.deployments
    assert loaded.autoscaling == expected.autoscaling
    assert loaded.max_replicas == 3
