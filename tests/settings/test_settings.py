"""The settings: wrong ones are refused by name, and what they say of a model."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from fakes.configs import deployment, refusal, service
from tokenreward.config import parse_settings
from tokenreward.settings import (
    AutoscalingSettings,
    DeploymentSettings,
    HeadSettings,
    ScorerSettings,
    Settings,
    SettingsError,
)
from tokenreward.wire.limits import MAX_ITEMS
from tokenreward.wire.weights import MAX_VERSION


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
        (service(max_timeout_s=0), "max_timeout_s"),
        (service(max_timeout_s=float("inf")), "max_timeout_s"),
        (service(max_body_bytes=0), "max_body_bytes"),
        (service(max_body_memory_bytes=0), "max_body_memory_bytes"),
        (service(deployment(max_batch_s=0)), "deployments[0].max_batch_s"),
        (service(deployment(max_batch_s=float("inf"))), "deployments[0].max_batch_s"),
        (service(max_request_items=0), "max_request_items"),
        (service(max_request_items=MAX_ITEMS + 1), "max_request_items"),
        (service(gateway_num_cpus=-1), "gateway_num_cpus"),
        (service(gateway_num_cpus=float("inf")), "gateway_num_cpus"),
        (service(gateway_num_replicas=0), "gateway_num_replicas"),
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
        (service(deployment(version=MAX_VERSION + 1)), "deployments[0].version"),
        (service(deployment(num_replicas=0)), "deployments[0].num_replicas"),
        (service(deployment(num_cpus=float("inf"))), "deployments[0].num_cpus"),
        (service(deployment(num_gpus=1.5)), "deployments[0].num_gpus"),
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


@pytest.mark.parametrize("num_gpus", [1.5, 2.25])
def test_gpus_above_one_are_whole(num_gpus: float) -> None:
    (line,) = refusal(service(deployment(num_gpus=num_gpus)))
    assert line == (
        "`deployments[0].num_gpus`: a replica has a share of one GPU, up to 1, or whole GPUs: "
        "2, 3, ..."
    )
    for num in (0, 0.5, 1, 2, 8):
        parse_settings(service(deployment(num_gpus=num)))


def test_everything_that_is_wrong_is_told_at_once() -> None:
    lines = refusal(service(deployment(num_replicas=0, dtyp="x"), port=0))
    assert len(lines) == 3
    assert "".join(lines).count("deployments[0]") == 2


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"max_body_bytes": 2000, "max_body_memory_bytes": 1999},
            "`max_body_memory_bytes` (1999) must be at least `max_body_bytes` (2000)",
        ),
        (
            {"request_timeout_s": 7200},
            "`max_timeout_s` (3600.0) must be at least `request_timeout_s` (7200.0)",
        ),
    ],
)
def test_a_limit_of_one_request_is_no_more_than_the_limit_above_it(
    fields: dict[str, Any], line: str
) -> None:
    assert refusal(service(**fields)) == [line]


def test_a_limit_of_one_request_may_be_the_limit_above_it() -> None:
    settings = parse_settings(
        service(
            max_body_bytes=2000,
            max_body_memory_bytes=2000,
            request_timeout_s=7200,
            max_timeout_s=7200,
        )
    )
    assert settings.max_body_memory_bytes == settings.max_body_bytes
    assert settings.max_timeout_s == settings.request_timeout_s


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


@pytest.mark.parametrize("number", [1, 2])
def test_a_number_of_replicas_and_autoscaling_exclude_each_other(number: int) -> None:
    fields = {"num_replicas": number, "autoscaling": {"max_replicas": 4}}
    assert refusal(service(deployment(**fields))) == [
        "`deployments[0]`: `num_replicas` and `autoscaling` exclude each other"
    ]


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({}, ["`deployments[0].autoscaling.max_replicas` is required"]),
        (
            {"min_replicas": 0, "max_replicas": 2},
            [
                "`deployments[0].autoscaling.min_replicas`: must be at least 1: without a replica "
                "nobody reports the load, and none is started"
            ],
        ),
        (
            {"min_replicas": 3, "max_replicas": 2},
            [
                "`deployments[0].autoscaling`: `max_replicas` (2) must be at least `min_replicas` "
                "(3)"
            ],
        ),
        (
            {"max_replicas": 2, "downscale_s": 3},
            ["unknown setting `deployments[0].autoscaling.downscale_s`"],
        ),
    ],
)
def test_autoscaling_that_cannot_be_is_refused_with_the_reason(
    fields: dict[str, Any], lines: list[str]
) -> None:
    assert refusal(service(deployment(autoscaling=fields))) == lines


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_replicas", 1.5),
        ("max_replicas", 0),
        ("target_queue_s", 0),
        ("target_queue_s", float("inf")),
        ("upscale_delay_s", -1),
        ("downscale_delay_s", float("nan")),
        ("tokens_per_second", 0),
    ],
)
def test_a_wrong_value_of_autoscaling_is_named(name: str, value: float) -> None:
    (line,) = refusal(service(deployment(autoscaling={"max_replicas": 2, name: value})))
    assert line.startswith(f"`deployments[0].autoscaling.{name}`: ")


def test_the_most_replicas_are_those_of_autoscaling_or_the_fixed_number() -> None:
    fixed, scaled = parse_settings(
        service(
            deployment(num_replicas=3),
            deployment(
                name="b",
                scorers=[{"type": "entropy"}],
                autoscaling={"min_replicas": 2, "max_replicas": 7},
            ),
        )
    ).deployments
    assert (fixed.max_replicas, scaled.max_replicas) == (3, 7)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse_settings(service()).port = 80  # type: ignore[misc]


@pytest.mark.parametrize(
    "model", [ScorerSettings, HeadSettings, AutoscalingSettings, DeploymentSettings, Settings]
)
def test_every_setting_has_a_description_that_reads_as_a_sentence(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_a_model_is_named_with_its_adapter_and_compared_with_the_reference_or_its_base() -> None:
    adapted = {"checkpoint": "base", "adapter": "lora"}
    for fields, model, reference in [
        ({"checkpoint": "base"}, "base", None),
        ({"checkpoint": "base", "reference_checkpoint": "other"}, "base", "other"),
        (adapted, "base + lora", "base"),
        ({**adapted, "reference_checkpoint": "other"}, "base + lora", "other"),
    ]:
        (settings,) = parse_settings(service(deployment(**fields))).deployments
        assert (settings.model, settings.reference) == (model, reference)


@pytest.mark.parametrize(
    ("name", "of"),
    [("adapter_revision", "adapter"), ("reference_revision", "reference_checkpoint")],
)
def test_a_revision_of_nothing_is_refused(name: str, of: str) -> None:
    assert refusal(service(deployment(**{name: "main"}))) == [
        f"`deployments[0]`: `{name}` has no effect without `{of}`"
    ]
    parse_settings(service(deployment(**{name: "main", of: "org/model"})))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "causal_lm", "head": {"label": 1}}, "`head` has no effect with task"),
        ({"head": {"label": 1, "label_weights": [1.0]}}, "`label_weights` exclude each other"),
        ({"head": {"label": -1}}, "greater than or equal to 0"),
        ({"head": {"label_weights": [float("nan")]}}, "finite"),
        ({"head": {"labels": 1}}, "unknown setting `deployments[0].head.labels`"),
        ({"head": {"activation": "swish"}}, "'relu', 'gelu', 'silu' or 'tanh'"),
    ],
    ids=str,
)
def test_a_head_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    fields = {"task": "reward_model", "scorers": [{"type": "reward_model"}], **fields}
    with pytest.raises(SettingsError, match=re.escape(message)):
        parse_settings(service(deployment(**fields)))
