"""Weights that change while requests are under way, and weights that are refused."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fakes import lora, tiny, trained
from fakes.layouts import Intercepted
from fakes.web import until
from tokenreward import errors
from tokenreward.checkpoints import checkpoint, stored
from tokenreward.wire import RewardsRequest, parse
from tokenreward.wire.weights import Weights

MakeEngine = Callable[..., Any]
RESPONSES = [[8 + number, 9, 10, 11 + number] for number in range(6)]


def request(*responses: list[int]) -> RewardsRequest:
    items = [{"prompt": [5, 6, 7], "response": response} for response in responses]
    return parse(RewardsRequest, {"scorer": "logprob", "items": items})


def weights(folder: Path, version: int = 2, **more: Any) -> Weights:
    return Weights(checkpoint=str(folder), version=version, **more)


@pytest.fixture(scope="module")
def new(language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.further(language_model, tmp_path_factory.mktemp("new") / "weights")


@pytest.fixture(scope="module")
def truths(language_model: Path, new: Path) -> Any:
    """The rewards of each response, by version: each alone on a fresh engine."""
    from tokenreward.engine import Engine
    from tokenreward.settings import DeploymentSettings

    rewards = {}
    for version, folder in ((1, language_model), (2, new)):
        settings = DeploymentSettings(
            name="x",
            checkpoint=str(folder),
            task="causal_lm",
            scorers=[{"type": "logprob"}],
        )
        engine = Engine.load(settings, say=lambda line: None)
        reply = asyncio.run(engine.score(request(*RESPONSES)))
        rewards[version] = [item.rewards for item in reply.items]
    return rewards


def assert_of_version(reply: Any, truths: Any, version: int) -> None:
    assert reply.version == version
    for item, expected in zip(reply.items, truths[version], strict=True):
        np.testing.assert_allclose(item.rewards, expected, atol=1e-5)


async def test_a_request_that_straddles_a_change_is_computed_again_and_has_one_version(
    make_engine: MakeEngine, new: Path, truths: Any
) -> None:
    engine = make_engine("causal_lm", ["logprob"], max_batch_requests=1)
    await engine.prepare(weights(new))
    passes = []
    commit: list[Any] = []

    def run(requests: Any, real: Any) -> Any:
        passes.append(len(requests))
        if len(passes) == 3:  # of six
            future = asyncio.run_coroutine_threadsafe(engine.commit(2), engine.worker.loop)
            commit.append(future)
            time.sleep(0.05)
        return real(requests)

    Intercepted(engine, run)
    reply = await engine.score(request(*RESPONSES))
    await asyncio.wrap_future(commit[0])
    assert_of_version(reply, truths, 2)
    assert len(passes) == 6 + 3  # the first three once more
    assert reply.model == str(new)
    await engine.close()


async def test_under_standing_load_a_change_waits_for_one_batch_and_every_reply_has_one_version(
    make_engine: MakeEngine, language_model: Path, new: Path, truths: Any
) -> None:
    engine = make_engine("causal_lm", ["logprob"], max_batch_requests=2)
    Intercepted(engine, lambda requests, real: (time.sleep(0.01), real(requests))[1])
    ended = asyncio.Event()
    replies: list[Any] = []

    async def ask() -> None:
        while not ended.is_set():
            replies.append(await engine.score(request(*RESPONSES)))

    callers = [asyncio.create_task(ask()) for _ in range(4)]
    await until(lambda: bool(replies))
    for version in range(2, 8):
        await engine.prepare(weights(language_model if version % 2 else new, version))
        began = time.monotonic()
        await engine.commit(version)
        assert time.monotonic() - began < 1.0
        assert engine.batcher.queued_items  # it did not wait for the queue to empty
        assert engine.version == version
    ended.set()
    await asyncio.gather(*callers)
    for reply in replies:
        for item, expected in zip(reply.items, truths[2 - reply.version % 2], strict=True):
            np.testing.assert_allclose(item.rewards, expected, atol=1e-5)
    assert {reply.version for reply in replies} >= {1, 7}
    await engine.close()


async def test_a_device_that_runs_ahead_is_waited_for(
    make_engine: MakeEngine, new: Path, truths: Any
) -> None:
    engine = make_engine("causal_lm", ["logprob"], max_batch_requests=1)
    engine.runner.num_ahead = 2
    await engine.prepare(weights(new))
    first = asyncio.create_task(engine.score(request(*RESPONSES)))
    await asyncio.sleep(0)
    commit = asyncio.create_task(engine.commit(2))
    assert_of_version(await engine.score(request(*RESPONSES)), truths, 2)
    await commit
    reply = await first
    assert_of_version(reply, truths, reply.version)
    await engine.close()


def without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        trained.rewrite(
            folder, lambda tensors: {key: of for key, of in tensors.items() if key != name}
        )

    return change


def put(name: str, tensor: torch.Tensor) -> Callable[[Path], None]:
    return lambda folder: void(trained.rewrite(folder, lambda of: {**of, name: tensor}))


def void(_: object) -> None:
    pass


NORM = "model.norm.weight"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (without(NORM), rf"does not hold {NORM}"),
    "shape": (
        put(NORM, torch.ones(31)),
        rf"another shape {NORM} \(\[31\] in place of \[32\]\)",
    ),
    "extra": (put("v_head.bias", torch.ones(1)), "v_head.bias, which the served model"),
    "bias": (put("model.norm.bias", torch.ones(32)), "its layers hold model.norm.bias"),
    "nan": (
        put(NORM, torch.full((32,), torch.nan)),
        rf"{NORM} in model.safetensors holds numbers that are not finite in float32",
    ),
    "cut": (
        lambda folder: (folder / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()[:5000]
        ),
        "model.safetensors is damaged or incomplete",
    ),
    "gone": (lambda folder: shutil.rmtree(folder), "cannot be loaded"),
    "larger": (lambda folder: void(tiny.save(folder, "qwen3")), "the class of the model"),
    "config": (
        lambda folder: void(change_config(folder, rms_norm_eps=0.5)),
        r"config.json says `rms_norm_eps` 0.5, and the served model has 1e-06",
    ),
}


def change_config(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("fault", FAULTS)
async def test_weights_that_do_not_fit_are_refused_by_name_and_change_nothing(
    fault: str, make_engine: MakeEngine, new: Path, tmp_path: Path, truths: Any
) -> None:
    change, message = FAULTS[fault]
    folder = tmp_path / "pushed"
    shutil.copytree(new, folder)
    change(folder)
    engine = make_engine("causal_lm", ["logprob"])
    with pytest.raises(errors.InvalidField, match=message) as refusal:
        await engine.prepare(weights(folder))
    assert refusal.value.param == "checkpoint"
    with pytest.raises(errors.Updating, match="no weights are prepared for version 2"):
        await engine.commit(2)
    assert_of_version(await engine.score(request(*RESPONSES)), truths, 1)
    await engine.close()


@pytest.mark.parametrize(
    ("named", "param"),
    [
        ({"version": 0}, "version"),
        ({"version": 1}, "version"),
        ({"adapter": "x"}, "adapter"),
        ({"reference_checkpoint": "x"}, "reference_checkpoint"),
    ],
)
async def test_a_push_of_an_older_version_or_of_other_parts_is_refused(
    named: dict[str, Any], param: str, make_engine: MakeEngine, new: Path
) -> None:
    engine = make_engine("causal_lm", ["logprob"])
    with pytest.raises(errors.InvalidField) as refusal:
        await engine.prepare(weights(new, **named))
    assert refusal.value.param == param
    await engine.prepare(weights(Path(engine.settings.checkpoint), 1))  # what serves: nothing to do
    await engine.commit(1)


async def test_files_may_be_removed_after_they_were_prepared(
    make_engine: MakeEngine, new: Path, tmp_path: Path, truths: Any
) -> None:
    folder = tmp_path / "pushed"
    shutil.copytree(new, folder)
    engine = make_engine("causal_lm", ["logprob"])
    await engine.prepare(weights(folder))
    shutil.rmtree(folder)
    await engine.commit(2)
    assert_of_version(await engine.score(request(*RESPONSES)), truths, 2)
    await engine.close()


async def test_files_that_are_overwritten_after_they_were_prepared_change_nothing(
    make_engine: MakeEngine, new: Path, tmp_path: Path, truths: Any
) -> None:
    folder = tmp_path / "pushed"
    shutil.copytree(new, folder)
    engine = make_engine("causal_lm", ["logprob"])
    await engine.prepare(weights(folder))
    file = folder / "model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(errors.Updating, match=r"model\.safetensors was overwritten after"):
        await engine.commit(2)
    assert_of_version(await engine.score(request(*RESPONSES)), truths, 1)
    engine.check_health()
    await engine.close()


CHANGED = r"the files of the weights changed: .*model\.safetensors changed while it was read"


async def test_a_file_that_is_overwritten_while_its_numbers_are_cast_refuses_the_push(
    make_engine: MakeEngine, language_model: Path, new: Path, tmp_path: Path
) -> None:
    """What was read is then finite, and of two versions."""
    folder = tmp_path / "pushed"
    shutil.copytree(language_model, folder)
    engine = make_engine("causal_lm", ["logprob"], dtype="bfloat16")
    before = await engine.score(request(*RESPONSES))
    content = (new / trained.FILE).read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        trained.amid_the_cast(patch, lambda: trained.overwrite(folder / trained.FILE, content))
        with pytest.raises(errors.Updating, match=CHANGED):
            await engine.prepare(weights(folder))
    assert_of_version(
        await engine.score(request(*RESPONSES)), {1: [item.rewards for item in before.items]}, 1
    )
    fresh = make_engine("causal_lm", ["logprob"], dtype="bfloat16", checkpoint=new)
    after = await fresh.score(request(*RESPONSES))
    await engine.prepare(weights(folder))  # it is whole again
    await engine.commit(2)
    assert_of_version(
        await engine.score(request(*RESPONSES)), {2: [item.rewards for item in after.items]}, 2
    )
    await engine.close()
    await fresh.close()


@pytest.mark.parametrize("is_replaced", [False, True], ids=["overwritten", "replaced"])
async def test_a_file_that_changes_as_soon_as_it_is_mapped_refuses_the_push(
    is_replaced: bool,
    make_engine: MakeEngine,
    language_model: Path,
    new: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    truths: Any,
) -> None:
    folder = tmp_path / "pushed"
    shutil.copytree(language_model, folder)
    engine = make_engine("causal_lm", ["logprob"])
    real = checkpoint.load_model

    def load_model(*arguments: Any) -> Any:
        loaded = real(*arguments)
        if is_replaced:
            os.replace(shutil.copy(new / trained.FILE, tmp_path), folder / trained.FILE)
        else:
            trained.overwrite(folder / trained.FILE, (new / trained.FILE).read_bytes())
        return loaded

    monkeypatch.setattr(checkpoint, "load_model", load_model)
    with pytest.raises(errors.Updating, match=CHANGED):
        await engine.prepare(weights(folder))
    assert_of_version(await engine.score(request(*RESPONSES)), truths, 1)
    await engine.close()


async def test_a_file_that_is_removed_while_its_numbers_are_cast_is_served(
    make_engine: MakeEngine, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pushed"
    shutil.copytree(new, folder)
    engine = make_engine("causal_lm", ["logprob"], dtype="bfloat16")
    fresh = make_engine("causal_lm", ["logprob"], dtype="bfloat16", checkpoint=new)
    after = await fresh.score(request(*RESPONSES))
    trained.amid_the_cast(monkeypatch, (folder / trained.FILE).unlink)
    await engine.prepare(weights(folder))
    assert not (folder / trained.FILE).exists()
    await engine.commit(2)
    assert_of_version(
        await engine.score(request(*RESPONSES)), {2: [item.rewards for item in after.items]}, 2
    )
    await engine.close()
    await fresh.close()


@pytest.mark.parametrize(
    ("call", "number"), [("open", errno.EMFILE), ("preadv", errno.EIO), ("fstat", errno.ESTALE)]
)
async def test_files_that_cannot_be_read_are_not_said_to_have_changed(
    call: str, number: int, make_engine: MakeEngine, new: Path, truths: Any
) -> None:
    engine = make_engine("causal_lm", ["logprob"])
    at_commit = call == "fstat"
    if at_commit:
        await engine.prepare(weights(new))

    def fail(*arguments: Any) -> Any:
        raise OSError(number, os.strerror(number))

    cause = rf"the files of the weights could not be read: \[Errno {number}\]"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(errors.InternalError, match=cause):
            await (engine.commit(2) if at_commit else engine.prepare(weights(new)))
    assert_of_version(await engine.score(request(*RESPONSES)), truths, 1)
    engine.check_health()
    await engine.prepare(weights(new))
    await engine.commit(2)
    assert_of_version(await engine.score(request(*RESPONSES)), truths, 2)
    await engine.close()


async def test_an_engine_whose_copy_failed_half_way_computes_nothing_any_more(
    make_engine: MakeEngine, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("causal_lm", ["logprob"])
    await engine.prepare(weights(new))
    real, copies = stored.StoredTensor.copy_to, []

    def copy_to(self: Any, target: Any) -> None:
        copies.append(target)
        if len(copies) == 5:
            raise OSError("the disk is gone")
        real(self, target)

    monkeypatch.setattr(stored.StoredTensor, "copy_to", copy_to)
    with pytest.raises(errors.InternalError, match="two versions: the disk is gone"):
        await engine.commit(2)
    assert engine.version == 1
    with pytest.raises(errors.InternalError, match="two versions"):
        engine.check_health()
    with pytest.raises(errors.InternalError, match="two versions"):
        await engine.score(request(*RESPONSES))
    await engine.close()


async def test_of_an_adapter_on_a_base_that_stays_only_the_adapter_is_copied(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = lora.save(tmp_path / "adapter", target_modules=["q_proj"])
    engine = make_engine("causal_lm", ["logprob"], adapter=str(adapter))
    base = Path(engine.settings.checkpoint)
    copies: list[Any] = []
    real = stored.StoredTensor.copy_to
    monkeypatch.setattr(
        stored.StoredTensor, "copy_to", lambda self, to: void((copies.append(to), real(self, to)))
    )
    for version in (2, 3):
        pushed = trained.further(adapter, tmp_path / f"version {version}", seed=version)
        await engine.prepare(weights(base, version, adapter=str(pushed)))
        await engine.commit(version)
        assert len(copies) == 3 * 2 * (version - 1)  # A and B of three layers
    await engine.close()


async def test_what_is_discarded_is_not_served_and_a_closed_engine_answers(
    make_engine: MakeEngine, new: Path
) -> None:
    engine = make_engine("causal_lm", ["logprob"])
    await engine.prepare(weights(new))
    engine.discard()
    with pytest.raises(errors.Updating):
        await engine.commit(2)
    await engine.prepare(weights(new))
    entered, leave = threading.Event(), threading.Event()

    def run(requests: Any, real: Any) -> Any:
        entered.set()
        leave.wait(5)
        return real(requests)

    Intercepted(engine, run)
    asked = asyncio.create_task(engine.score(request(RESPONSES[0])))
    await asyncio.to_thread(entered.wait, 5)
    commit = asyncio.create_task(engine.commit(2))
    await asyncio.sleep(0.05)
    await engine.close()
    leave.set()
    for task in (asked, commit):
        with pytest.raises(errors.InternalError, match="closing"):
            await task
