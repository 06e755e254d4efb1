"""Ray Serve's config from settings: valid, complete, and changed only where a change may be made in
place."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from tokenreward.cli import schema
from tokenreward.config import demo_settings, parse_settings
from tokenreward.deployment.autoscaling import TokenPolicy
from tokenreward.deployment.plan import internal_url, limits_of, needed_cpus, serve_config
from tokenreward.http.gateway.scorer_routes import ScorerRoute
from tokenreward.http.held_requests import MAX_HELD
from tokenreward.settings import DeploymentSettings, Settings


def changed(settings: Settings, **fields: Any) -> Settings:
    """The same settings with fields of the first deployment changed."""
    first, *others = (d.model_dump(exclude_unset=True) for d in settings.deployments)
    return parse_settings({**settings.model_dump(), "deployments": [{**first, **fields}, *others]})


def test_config_is_valid_for_ray() -> None:
    config = ServeDeploySchema.model_validate(serve_config(demo_settings()))
    assert {app.route_prefix for app in config.applications} == {"/", "/d/sft", "/d/dpo", "/d/rm"}
    assert config.http_options.host == "127.0.0.1"


def test_logs_are_text_or_json() -> None:
    for log_format, encoding in (("text", "TEXT"), ("json", "JSON")):
        settings = parse_settings(
            {**demo_settings().model_dump(exclude_unset=True), "log_format": log_format}
        )
        config = ServeDeploySchema.model_validate(serve_config(settings))
        assert config.logging_config is not None
        assert config.logging_config.encoding == encoding


def test_import_paths_lead_to_builders() -> None:
    for application in serve_config(demo_settings())["applications"]:
        module, _, name = application["import_path"].partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_gateway_is_told_where_every_scorer_lives() -> None:
    (gateway,) = [
        app for app in serve_config(demo_settings())["applications"] if app["route_prefix"] == "/"
    ]
    assert {name: ScorerRoute(**route) for name, route in gateway["args"]["routes"].items()} == {
        "endogenous": ScorerRoute("sft", "endogenous"),
        "logprob": ScorerRoute("sft", "logprob"),
        "entropy": ScorerRoute("sft", "entropy"),
        "treg": ScorerRoute("sft", "treg"),
        "generation_attention": ScorerRoute(
            "sft", "generation_attention", score_from="reward_model"
        ),
        "implicit": ScorerRoute("dpo", "implicit"),
        "reward_model": ScorerRoute("rm", "reward_model"),
        "attention_dense": ScorerRoute("rm", "attention_dense"),
        "process": ScorerRoute("rm", "process"),
    }


def test_gateway_is_told_who_asks_whom_for_a_score() -> None:
    scorers = [
        {"type": "endogenous"},
        {"type": "my.own:Spread", "name": "spread", "options": {"score_from": "reward_model"}},
    ]
    settings = changed(demo_settings(), scorers=scorers)
    (gateway,) = [
        app for app in serve_config(settings)["applications"] if app["route_prefix"] == "/"
    ]
    assert ScorerRoute(**gateway["args"]["routes"]["spread"]) == ScorerRoute(
        "sft", "my.own:Spread", score_from="reward_model"
    )


def test_replica_gets_back_the_settings_it_was_planned_with() -> None:
    settings = changed(
        demo_settings(),
        dtype="bfloat16",
        num_cpus=2,
        num_replicas=3,
        version=7,
        adapter="lora",
        reference_checkpoint="base",
        max_batch_tokens=99,
    )
    planned = serve_config(settings)["applications"][1]
    (options,) = planned["deployments"]
    rebuilt = DeploymentSettings.model_validate(
        {
            **planned["args"]["deployment"],
            **options["user_config"],
            "num_replicas": options["num_replicas"],
        }
    )
    assert rebuilt == settings.deployments[0]
    assert options["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 0}
    assert options["max_ongoing_requests"] == settings.deployments[0].max_concurrent_requests


@pytest.mark.parametrize("num_gpus", [0.25, 1, 4])
def test_ray_reserves_a_share_of_a_gpu_or_whole_ones(num_gpus: float) -> None:
    config = serve_config(changed(demo_settings(), num_gpus=num_gpus))
    ServeDeploySchema.model_validate(config)
    (options,) = config["applications"][1]["deployments"]
    assert options["ray_actor_options"]["num_gpus"] == num_gpus


@pytest.mark.parametrize(
    "change",
    [
        {"num_replicas": 5},
        {"autoscaling": {"max_replicas": 5}},
        {"version": 2},
        {"checkpoint": "elsewhere"},
        {"adapter": "elsewhere"},
        {"reference_checkpoint": "elsewhere"},
        {"max_concurrent_requests": 7},
    ],
)
def test_change_in_place_leaves_args_alone_so_that_no_replica_restarts(
    change: dict[str, Any],
) -> None:
    before, after = (
        serve_config(s)["applications"]
        for s in (demo_settings(), changed(demo_settings(), **change))
    )
    assert before != after
    restarting = ("args", "import_path", "route_prefix")
    assert [[app[key] for key in restarting] for app in before] == [
        [app[key] for key in restarting] for app in after
    ]
    assert [app["deployments"][0]["ray_actor_options"] for app in before] == [
        app["deployments"][0]["ray_actor_options"] for app in after
    ]


AUTOSCALING = {"min_replicas": 2, "max_replicas": 5, "target_queue_s": 9, "upscale_delay_s": 1}


@pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")
def test_autoscaling_is_rays_own_with_our_policy() -> None:
    settings = changed(demo_settings(), autoscaling=AUTOSCALING, max_queued_tokens=700)
    config = ServeDeploySchema.model_validate(serve_config(settings))
    (replica,) = config.applications[1].deployments
    scaling = replica.autoscaling_config
    assert scaling["min_replicas"] == 2
    assert scaling["max_replicas"] == 5
    ray_config = AutoscalingConfig(**scaling)
    assert (ray_config.upscale_delay_s, ray_config.downscale_delay_s) == (1, 600)
    assert ray_config.policy.get_policy().__name__ == TokenPolicy.__name__
    assert ray_config.policy.policy_kwargs == {
        "target_queue_s": 9,
        "tokens_per_second": None,
        "max_queued_tokens": 700,
    }
    TokenPolicy(**ray_config.policy.policy_kwargs)


def test_autoscaling_changes_in_place_and_so_does_the_way_back() -> None:
    plans = [
        serve_config(settings)["applications"][1]
        for settings in (
            changed(demo_settings(), num_replicas=2),
            changed(demo_settings(), autoscaling=AUTOSCALING),
            changed(demo_settings(), autoscaling={**AUTOSCALING, "target_queue_s": 1}),
        )
    ]
    assert plans[0]["args"] == plans[1]["args"] == plans[2]["args"]
    deployments = [plan["deployments"][0] for plan in plans]
    scaling = [deployment.get("autoscaling_config") for deployment in deployments]
    assert [deployment.get("num_replicas") for deployment in deployments] == [2, None, None]
    assert scaling[0] is None
    assert scaling[1] != scaling[2]


def test_limits_and_resources_count_the_most_replicas() -> None:
    settings = changed(
        demo_settings(), autoscaling=AUTOSCALING, num_cpus=2, max_concurrent_requests=10
    )
    gateway = serve_config(settings)["applications"][0]["deployments"][0]
    others = sum(d.max_concurrent_requests for d in settings.deployments[1:])
    held = MAX_HELD * len(settings.deployments)
    assert gateway["max_ongoing_requests"] == 5 * 10 + others + held
    assert needed_cpus(settings) == 5 * 2 + len(settings.deployments[1:]) + 1  # the gateway's 0.1


def test_a_replica_that_is_to_stop_has_as_long_as_a_request_may_last() -> None:
    settings = parse_settings(
        {**demo_settings().model_dump(exclude_unset=True), "max_timeout_s": 900}
    )
    for application in serve_config(settings)["applications"]:
        assert application["deployments"][0]["graceful_shutdown_timeout_s"] == 900


def test_ray_asks_every_second_whether_a_replica_is_there() -> None:
    for application in serve_config(demo_settings())["applications"]:
        assert application["deployments"][0]["health_check_period_s"] == 1


def test_keys_travel_as_a_file_name_and_never_as_keys(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sesame\n")
    settings = parse_settings({**demo_settings().model_dump(), "api_keys_file": tmp_path / "keys"})
    config = serve_config(settings)
    assert "sesame" not in str(config)
    limits = limits_of(config["applications"][0]["args"])
    assert [key.get_secret_value() for key in limits.api_keys] == ["sesame"]
    assert "sesame" not in repr(limits)


def test_only_the_gateway_learns_the_file_of_admin_keys(tmp_path: Path) -> None:
    (tmp_path / "admins").write_text("sesame\n")
    content = {**demo_settings().model_dump(), "admin_keys_file": tmp_path / "admins"}
    config = serve_config(parse_settings(content))
    assert "sesame" not in str(config)
    gateway, *deployments = (limits_of(app["args"]) for app in config["applications"])
    assert [key.get_secret_value() for key in gateway.admin_keys] == ["sesame"]
    assert not any(limits.admin_keys for limits in deployments)
    assert "sesame" not in repr(gateway)


def test_limits_of_requests_travel_to_the_gateway_and_to_every_replica() -> None:
    limits = {
        "max_body_bytes": 1000,
        "max_body_memory_bytes": 5000,
        "max_request_items": 7,
        "request_timeout_s": 20.0,
        "max_timeout_s": 40.0,
    }
    settings = parse_settings({**demo_settings().model_dump(), **limits})
    for application in serve_config(settings)["applications"]:
        travelled = limits_of(application["args"])
        assert {name: getattr(travelled, name) for name in limits} == limits


def test_all_replicas_fit_on_the_private_instance() -> None:
    assert (
        needed_cpus(changed(demo_settings(), num_replicas=3, num_cpus=0.5)) == 4
    )  # 3 x 0.5 + 2 x 1 + 0.1
    assert needed_cpus(with_gateways(2)) == 4  # 3 x 1 + 2 x 0.5


def with_gateways(num_replicas: int) -> Settings:
    """The demo's settings with so many replicas of the gateway, each with half a CPU."""
    gateway = {"gateway_num_replicas": num_replicas, "gateway_num_cpus": 0.5}
    return parse_settings({**demo_settings().model_dump(), **gateway})


@pytest.mark.parametrize(
    ("num_replicas", "is_cluster", "per_node"), [(1, True, None), (2, False, None), (2, True, 1)]
)
def test_replicas_of_the_gateway_are_on_different_nodes_of_a_cluster(
    num_replicas: int, is_cluster: bool, per_node: int | None
) -> None:
    config = serve_config(with_gateways(num_replicas), is_cluster=is_cluster)
    ServeDeploySchema.model_validate(config)
    (options,) = config["applications"][0]["deployments"]
    assert options["num_replicas"] == num_replicas
    assert options.get("max_replicas_per_node") == per_node
    assert options["max_ongoing_requests"] == 3 * (1024 + MAX_HELD)


@pytest.mark.parametrize(
    ("most", "is_cluster", "per_node"), [(None, True, None), (2, False, None), (2, True, 2)]
)
def test_replicas_of_a_deployment_are_on_several_nodes_of_a_cluster_if_settings_say_so(
    most: int | None, is_cluster: bool, per_node: int | None
) -> None:
    settings = changed(demo_settings(), num_replicas=3, max_replicas_per_node=most)
    config = serve_config(settings, is_cluster=is_cluster)
    ServeDeploySchema.model_validate(config)
    (options,) = config["applications"][1]["deployments"]
    assert options.get("max_replicas_per_node") == per_node
    assert "max_replicas_per_node" not in config["applications"][1]["args"]["deployment"]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),  # noqa: S104
        ("::", "http://[::1]:8000"),
        ("10.1.2.3", "http://10.1.2.3:8000"),
    ],
)
def test_service_reaches_itself(host: str, url: str) -> None:
    assert internal_url(parse_settings({**demo_settings().model_dump(), "host": host})) == url


def test_printed_config_is_yaml_that_ray_deploys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(yaml.safe_dump(demo_settings().model_dump(mode="json", exclude_defaults=True)))
    parser = argparse.ArgumentParser()
    schema.add_parser(parser.add_subparsers())
    args = parser.parse_args(["schema", "--serve", str(file)])
    assert args.run(args) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == serve_config(demo_settings())
    ServeDeploySchema.model_validate(printed)
