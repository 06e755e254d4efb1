"""Settings from files: paths keep their meaning, other files are refused, secrets stay secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes.configs import deployment, service
from tokenreward.config import (
    demo_settings,
    load_settings,
    parse_settings,
    read_api_keys,
)
from tokenreward.settings import SettingsError


def write(folder: Path, content: Any) -> Path:
    file = folder / "serve.yaml"
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    file.write_text(text, encoding="utf-8")
    return file


def test_smol_is_a_packaged_config_unless_there_is_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [deployment] = load_settings(Path("smol")).deployments
    assert (deployment.checkpoint, deployment.dtype) == ("demo:smol", "bfloat16")
    Path("smol").write_text("deployments: []")
    with pytest.raises(SettingsError, match=r"^smol: "):
        load_settings(Path("smol"))


def test_the_demo_settings_survive_a_round_trip_and_name_nine_types() -> None:
    demo = demo_settings()
    assert parse_settings(demo.model_dump(mode="json", exclude_none=True)) == demo
    assert {scorer.type for d in demo.deployments for scorer in d.scorers} == {
        "endogenous",
        "logprob",
        "entropy",
        "treg",
        "generation_attention",
        "implicit",
        "reward_model",
        "attention_dense",
        "process",
    }
    assert all(d.checkpoint.startswith("demo:") for d in demo.deployments)
    assert demo.host == "127.0.0.1"


def test_a_yaml_file_gives_the_same_settings_as_its_content(tmp_path: Path) -> None:
    content = service(deployment(num_gpus=0.5), port=9000)
    assert load_settings(write(tmp_path, content)) == parse_settings(content)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1\n",
        "text",
        "deployments: [\n",
        "a: b: c\n",
        "key: \x00\n",
        "revision: 2024-02-30\n",
        f"port: {'9' * 5000}\n",
        f"a: {'[' * 5000}\n",
    ],
    ids=lambda text: text[:20],
)
def test_a_file_that_holds_no_settings_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match=r"serve\.yaml"):
        load_settings(write(tmp_path, text))


def test_a_file_that_cannot_be_read_or_is_not_utf8_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError,
        match=r"serve\.yaml: `deployments` is required\n.*serve\.yaml: unknown setting `prot`",
    ):
        load_settings(write(tmp_path, "prot: 1"))
    with pytest.raises(SettingsError, match=r"absent\.yaml"):
        load_settings(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes("host: köln".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"latin\.yaml"):
        load_settings(tmp_path / "latin.yaml")


def test_a_setting_that_stands_twice_in_the_file_is_refused_and_not_overridden(
    tmp_path: Path,
) -> None:
    one = yaml.safe_dump(service())
    with pytest.raises(SettingsError, match="`deployments` is set twice"):
        load_settings(write(tmp_path, one + one))
    with pytest.raises(SettingsError, match="`name` is set twice"):
        load_settings(write(tmp_path, "deployments: [{name: a, name: b}]"))


def test_a_yaml_anchor_may_be_merged_and_overridden(tmp_path: Path) -> None:
    text = (
        "deployments:\n- &a "
        "{name: a, checkpoint: x, task: causal_lm, scorers: [{type: implicit}]}\n"
    )
    text += "- {<<: *a, name: b, scorers: [{type: endogenous}]}\n"
    assert [d.name for d in load_settings(write(tmp_path, text)).deployments] == ["a", "b"]


def test_options_that_are_called_yes_and_no_need_no_quotes(tmp_path: Path) -> None:
    """PyYAML takes both words for booleans."""
    text = (
        "deployments:\n"
        "  - {name: lm, checkpoint: c, task: causal_lm, scorers: [{type: generative, options: "
        "{yes: ['Да'], no: ['Нет'], mode: yes_minus_no}}, "
        "{type: reward_model, options: {red: yes}}]}\n"
    )
    first, second = load_settings(write(tmp_path, text)).deployments[0].scorers
    assert first.options == {"yes": ["Да"], "no": ["Нет"], "mode": "yes_minus_no"}
    assert second.options == {"red": True}


def test_yaml_never_builds_python_objects(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not YAML"):
        load_settings(write(tmp_path, "host: !!python/object/apply:os.getcwd []\n"))


def test_a_checkpoint_folder_beside_the_file_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf" / "weights").mkdir(parents=True)
    file = write(tmp_path / "conf", service(deployment(checkpoint="weights")))
    monkeypatch.chdir(tmp_path)
    settings = load_settings(file.relative_to(tmp_path))
    assert settings.deployments[0].checkpoint == str((tmp_path / "conf" / "weights").resolve())


def test_an_adapter_and_a_reference_beside_the_file_are_found_from_anywhere(tmp_path: Path) -> None:
    for name in ("weights", "lora", "base"):
        (tmp_path / name).mkdir()
    folders = {"checkpoint": "weights", "adapter": "lora", "reference_checkpoint": "base"}
    (local,) = load_settings(write(tmp_path, service(deployment(**folders)))).deployments
    assert {name: getattr(local, name) for name in folders} == {
        name: str(tmp_path / folder) for name, folder in folders.items()
    }
    (hub,) = load_settings(write(tmp_path, service(deployment(adapter="org/lora")))).deployments
    assert hub.adapter == "org/lora"


@pytest.mark.parametrize("checkpoint", ["demo:sft", "org/model", "weights", ""])
def test_a_checkpoint_that_is_no_folder_beside_the_file_is_left_as_it_is(
    tmp_path: Path, checkpoint: str
) -> None:
    file = write(tmp_path, service(deployment(checkpoint=checkpoint)))
    if checkpoint:
        assert load_settings(file).deployments[0].checkpoint == checkpoint
    else:
        with pytest.raises(SettingsError, match=r"deployments\[0\]\.checkpoint"):
            load_settings(file)


def test_a_relative_key_file_is_relative_to_the_configuration(tmp_path: Path) -> None:
    assert (
        load_settings(write(tmp_path, service(api_keys_file="keys"))).api_keys_file
        == tmp_path / "keys"
    )
    settings = load_settings(write(tmp_path, service(admin_keys_file="admins")))
    assert settings.admin_keys_file == tmp_path / "admins"
    absolute = str(tmp_path / "elsewhere")
    assert load_settings(write(tmp_path, service(api_keys_file=absolute))).api_keys_file == Path(
        absolute
    )


def test_keys_are_the_lines_of_the_file_without_white_space(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("  first \r\n\n\t\nsecond\n \n", encoding="utf-8")
    assert [key.get_secret_value() for key in read_api_keys(file)] == ["first", "second"]
    settings = parse_settings(service(api_keys_file=str(file)))
    assert read_api_keys(settings.api_keys_file) == read_api_keys(file)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first\nsecond\n", encoding="utf-8-sig")
    assert [key.get_secret_value() for key in read_api_keys(file)] == ["first", "second"]


def test_without_a_key_file_the_service_is_open() -> None:
    assert read_api_keys(parse_settings(service()).api_keys_file) == ()
    assert read_api_keys(None) == ()


@pytest.mark.parametrize("content", [b"", b"\n", b" \t\r\n\n", b"\xff\xfe"])
def test_a_key_file_without_a_readable_key_never_opens_the_service(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match="`api_keys_file`"):
        read_api_keys(file)


@pytest.mark.parametrize("key", ["two words", "s\u00e9same", "a\tb", "a\x7fb", "\u200bsesame"])
def test_a_key_that_no_header_can_carry_is_refused_by_its_line_and_not_quoted(
    tmp_path: Path, key: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"first\n\n{key}\n", encoding="utf-8")
    with pytest.raises(
        SettingsError, match="line 3: a key is printable ASCII without white space"
    ) as caught:
        read_api_keys(file)
    assert key not in str(caught.value)


def test_what_is_wrong_with_a_file_of_admin_keys_is_said_of_that_setting(tmp_path: Path) -> None:
    assert parse_settings(service()).admin_keys_file is None
    (tmp_path / "empty").touch()
    (tmp_path / "wrong").write_text("two words")
    for name in ("absent", "empty", "wrong"):
        with pytest.raises(SettingsError, match=r"^`admin_keys_file`"):
            read_api_keys(tmp_path / name, "admin_keys_file")


@pytest.mark.parametrize("name", ["absent", "."])
def test_a_key_file_that_cannot_be_read_never_opens_the_service(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="`api_keys_file`"):
        read_api_keys(parse_settings(service(api_keys_file=str(tmp_path / name))).api_keys_file)


def test_keys_are_in_no_repr_and_no_dump(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("sesame", encoding="utf-8")
    settings = parse_settings(service(api_keys_file=str(file)))
    shown = [
        repr(settings),
        str(settings),
        settings.model_dump_json(),
        repr(read_api_keys(settings.api_keys_file)),
    ]
    assert "sesame" not in "".join(shown)
