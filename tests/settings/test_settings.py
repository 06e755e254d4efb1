"""What an operator may set: wrong settings are refused by name, paths keep their meaning, secrets
stay secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from tokenreward.settings import (
    DeploymentSettings,
    ScorerSettings,
    Settings,
    SettingsError,
    demo_settings,
    load_settings,
    parse_settings,
    read_api_keys,
)


def deployment(**fields: Any) -> dict[str, Any]:
    return {
        "name": "lm",
        "checkpoint": "x",
        "task": "causal_lm",
        "scorers": [{"type": "endogenous"}],
        **fields,
    }


def service(*deployments: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"deployments": list(deployments or [deployment()]), **fields}


def refusal(content: dict[str, Any]) -> list[str]:
    """The lines of the SettingsError that this configuration raises."""
    with pytest.raises(SettingsError) as caught:
        parse_settings(content)
    return str(caught.value).splitlines()


def write(folder: Path, content: Any) -> Path:
    file = folder / "serve.yaml"
    file.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8"
    )
    return file


def test_the_smallest_configuration_is_one_checkpoint_with_one_scorer() -> None:
    settings = parse_settings(service())
    assert (settings.host, settings.port, settings.api_keys_file) == ("127.0.0.1", 8000, None)
    only = settings.deployments[0]
    assert (only.version, only.num_replicas, only.num_gpus, only.dtype) == (1, 1, 0, "float32")
    assert only.scorers[0].served_name == "endogenous"


def test_a_scorer_is_served_under_its_name_if_it_has_one() -> None:
    assert ScorerSettings(type="endogenous", name="sft").served_name == "sft"


@pytest.mark.parametrize(
    ("content", "setting"),
    [
        (service(prot=80), "prot"),
        (service(deployment(num_replica=2)), "deployments[0].num_replica"),
        (service(deployment(), deployment(name="b", num_replica=2)), "deployments[1].num_replica"),
        (
            service(deployment(scorers=[{"type": "a", "option": {}}])),
            "deployments[0].scorers[0].option",
        ),
    ],
)
def test_an_unknown_setting_is_named_with_its_path(content: dict[str, Any], setting: str) -> None:
    assert refusal(content) == [f"unknown setting `{setting}`"]


@pytest.mark.parametrize(
    ("content", "setting"),
    [
        ({}, "deployments"),
        ({"deployments": [{}]}, "deployments[0].name"),
        ({"deployments": [{}]}, "deployments[0].checkpoint"),
        ({"deployments": [{}]}, "deployments[0].task"),
        ({"deployments": [{}]}, "deployments[0].scorers"),
        (service(deployment(scorers=[{}])), "deployments[0].scorers[0].type"),
    ],
)
def test_a_missing_setting_is_named(content: dict[str, Any], setting: str) -> None:
    assert f"`{setting}` is required" in refusal(content)


@pytest.mark.parametrize(
    ("content", "setting"),
    [
        ({"deployments": []}, "deployments"),
        ({"deployments": ["lm"]}, "deployments[0]"),
        (service(port=0), "port"),
        (service(port=65536), "port"),
        (service(port="web"), "port"),
        (service(request_timeout_s=0), "request_timeout_s"),
        (service(request_timeout_s=float("nan")), "request_timeout_s"),
        (service(max_body_bytes=0), "max_body_bytes"),
        (service(max_request_items=0), "max_request_items"),
        (service(gateway_num_cpus=-1), "gateway_num_cpus"),
        (service(api_keys_file=3), "api_keys_file"),
        (service(deployment(name="LM")), "deployments[0].name"),
        (service(deployment(name="a/b")), "deployments[0].name"),
        (service(deployment(name="lm\n")), "deployments[0].name"),
        (service(deployment(name="")), "deployments[0].name"),
        (service(deployment(checkpoint="")), "deployments[0].checkpoint"),
        (service(deployment(task="seq2seq")), "deployments[0].task"),
        (service(deployment(dtype="int8")), "deployments[0].dtype"),
        (service(deployment(device="tpu")), "deployments[0].device"),
        (service(deployment(version=-1)), "deployments[0].version"),
        (service(deployment(num_replicas=0)), "deployments[0].num_replicas"),
        (service(deployment(num_gpus=2)), "deployments[0].num_gpus"),
        (service(deployment(max_batch_tokens=0)), "deployments[0].max_batch_tokens"),
        (service(deployment(max_sequence_tokens=0)), "deployments[0].max_sequence_tokens"),
        (service(deployment(max_queued_tokens=1.5)), "deployments[0].max_queued_tokens"),
        (service(deployment(scorers=[])), "deployments[0].scorers"),
        (service(deployment(scorers=[{"type": 3}])), "deployments[0].scorers[0].type"),
        (
            service(deployment(scorers=[{"type": "a", "name": "A b"}])),
            "deployments[0].scorers[0].name",
        ),
    ],
)
def test_a_wrong_value_is_named_and_nothing_else_is(content: dict[str, Any], setting: str) -> None:
    lines = refusal(content)
    assert len(lines) == 1
    assert lines[0].startswith(f"`{setting}`: ")


def test_everything_that_is_wrong_is_told_at_once() -> None:
    lines = refusal(service(deployment(num_replicas=0, dtyp="x"), port=0))
    assert len(lines) == 3
    assert "".join(lines).count("deployments[0]") == 2


def test_two_deployments_of_one_name_are_refused() -> None:
    other = deployment(scorers=[{"type": "endogenous", "name": "other"}])
    assert refusal(service(deployment(), other)) == [
        "`deployments`: the name `lm` is used 2 times; names are unique",
    ]


@pytest.mark.parametrize(
    "content",
    [
        service(deployment(scorers=[{"type": "endogenous"}, {"type": "endogenous"}])),
        service(deployment(), deployment(name="b")),
        service(
            deployment(), deployment(name="b", scorers=[{"type": "implicit", "name": "endogenous"}])
        ),
    ],
)
def test_two_scorers_of_one_name_are_refused_across_deployments_too(
    content: dict[str, Any],
) -> None:
    assert refusal(content) == [
        "`scorers`: the name `endogenous` is used 2 times; names are unique"
    ]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("nobody", "names `nobody`; there are plain, spread, again"),
        ("spread", "names `spread`, which takes its own score from `spread`"),
        ("again", "names `again`, which takes its own score from `plain`"),
    ],
)
def test_a_score_comes_from_another_scorer_that_has_one_of_its_own(source: str, line: str) -> None:
    scorers = [
        {"type": "endogenous", "name": "plain"},
        {"type": "endogenous", "name": "spread", "options": {"score_from": source}},
        {"type": "endogenous", "name": "again", "options": {"score_from": "plain"}},
    ]
    assert refusal(service(deployment(scorers=scorers))) == [
        f"`scorers`: `spread`: the option `score_from` {line}"
    ]
    scorers[1]["options"] = {"score_from": "plain"}
    parse_settings(service(deployment(scorers=scorers)))


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse_settings(service()).port = 80  # type: ignore[misc]


@pytest.mark.parametrize("model", [ScorerSettings, DeploymentSettings, Settings])
def test_every_setting_has_a_description_that_reads_as_a_sentence(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_the_demo_settings_survive_a_round_trip_and_name_eight_types() -> None:
    demo = demo_settings()
    assert parse_settings(demo.model_dump(mode="json", exclude_none=True)) == demo
    assert {scorer.type for d in demo.deployments for scorer in d.scorers} == {
        "endogenous",
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
    "text", ["", "- 1\n", "text", "deployments: [\n", "a: b: c\n", "key: \x00\n"]
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
    named = {"checkpoint": "weights", "adapter": "lora", "reference_checkpoint": "base"}
    (found,) = load_settings(write(tmp_path, service(deployment(**named)))).deployments
    assert {name: getattr(found, name) for name in named} == {
        n: str(tmp_path / folder) for n, folder in named.items()
    }
    (far,) = load_settings(write(tmp_path, service(deployment(adapter="org/lora")))).deployments
    assert far.adapter == "org/lora"


def test_a_model_is_named_with_its_adapter_and_compared_with_the_reference_or_its_base() -> None:
    adapted = {"checkpoint": "base", "adapter": "lora"}
    for fields, model, reference in [
        ({"checkpoint": "base"}, "base", None),
        ({"checkpoint": "base", "reference_checkpoint": "other"}, "base", "other"),
        (adapted, "base + lora", "base"),
        ({**adapted, "reference_checkpoint": "other"}, "base + lora", "other"),
    ]:
        (found,) = parse_settings(service(deployment(**fields))).deployments
        assert (found.model, found.reference) == (model, reference)


@pytest.mark.parametrize(
    ("name", "of"),
    [("adapter_revision", "adapter"), ("reference_revision", "reference_checkpoint")],
)
def test_a_revision_of_nothing_is_refused(name: str, of: str) -> None:
    assert refusal(service(deployment(**{name: "main"}))) == [
        f"`deployments[0]`: Value error, `{name}` has no effect without `{of}`"
    ]
    parse_settings(service(deployment(**{name: "main", of: "org/model"})))


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
    absolute = str(tmp_path / "elsewhere")
    assert load_settings(write(tmp_path, service(api_keys_file=absolute))).api_keys_file == Path(
        absolute
    )


def test_keys_are_the_lines_of_the_file_without_white_space(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("  first \r\n\n\t\nsecond\n \n", encoding="utf-8")
    assert [key.get_secret_value() for key in read_api_keys(file)] == ["first", "second"]
    settings = parse_settings(service(api_keys_file=str(file)))
    assert settings.api_keys() == read_api_keys(file)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first\nsecond\n", encoding="utf-8-sig")
    assert [key.get_secret_value() for key in read_api_keys(file)] == ["first", "second"]


def test_without_a_key_file_the_service_is_open() -> None:
    assert parse_settings(service()).api_keys() == ()
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


@pytest.mark.parametrize("name", ["absent", "."])
def test_a_key_file_that_cannot_be_read_never_opens_the_service(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="`api_keys_file`"):
        parse_settings(service(api_keys_file=str(tmp_path / name))).api_keys()


def test_keys_are_in_no_repr_and_no_dump(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("sesame", encoding="utf-8")
    settings = parse_settings(service(api_keys_file=str(file)))
    shown = [repr(settings), str(settings), settings.model_dump_json(), repr(settings.api_keys())]
    assert "sesame" not in "".join(shown)
