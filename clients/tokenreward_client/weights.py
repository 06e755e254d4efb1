"""Pushing weights, and waiting until they are served.

It knows the bodies of the route and of the listing, and sends nothing itself.
"""

from __future__ import annotations

import re
from typing import Required, TypedDict, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from tokenreward.errors import RequestError
from tokenreward.wire import NAME_PATTERN
from tokenreward.wire.paths import READY_PATH, weights_path
from tokenreward.wire.weights import DeploymentWeights, PushReply, parse_weights
from tokenreward_client.errors import BadArgument, BadReply, DeadlineExceeded
from tokenreward_client.flow import Flow
from tokenreward_client.listing import Listing
from tokenreward_client.request import send_until_answered
from tokenreward_client.retry import Attempts

_ASK_AGAIN_S = 0.5
_KEY = re.compile(r"[!-~]+")

T = TypeVar("T")


class PushOptions(TypedDict, total=False):
    """What a push says.

    Attributes:
        checkpoint: Folder of the weights, as the service's machines see it, or a hub id.
        version: Their version, which must be greater than the one that is served.
        admin_key: A key of the service's `admin_keys_file`. The client does not keep it.
        adapter: The LoRA adapter on `checkpoint`, for a deployment that has one.
        reference_checkpoint: The model that `implicit` compares with, for a deployment that names
            one.
        timeout_s: The deadline in seconds, in place of the client's.
    """

    checkpoint: Required[str]
    version: Required[int]
    admin_key: Required[str]
    adapter: str | None
    reference_checkpoint: str | None
    timeout_s: float | None


def push_weights(deployment: str, options: PushOptions, attempts: Attempts) -> Flow[PushReply]:
    """The flow of one push. It is sent again where that may help: the same push changes nothing
    twice.

    Raises:
        BadArgument: Something cannot be sent.
        ClientError: As `send_until_answered`; BadReply if the reply is not one to a push.
    """
    path, authorization = _path_and_key(deployment, options["admin_key"])
    names = ("checkpoint", "version", "adapter", "reference_checkpoint")
    content = {name: options.get(name) for name in names}
    try:
        body = to_json({name: value for name, value in content.items() if value is not None})
        parse_weights(body)
    except RequestError as error:
        raise BadArgument(error.message, param=error.param) from None
    except ValueError as error:
        raise BadArgument(f"the push cannot be written: {error}") from None
    response = yield from send_until_answered(
        path, lambda: body, attempts, authorization=authorization
    )
    return _read(TypeAdapter(PushReply), response)


def show_weights(deployment: str, admin_key: str, attempts: Attempts) -> Flow[DeploymentWeights]:
    """The flow that asks for the weights of a deployment. Raises as `push_weights`."""
    path, authorization = _path_and_key(deployment, admin_key)
    response = yield from send_until_answered(path, None, attempts, authorization=authorization)
    return _read(TypeAdapter(DeploymentWeights), response)


def wait_until_ready(
    listing: Listing, attempts: Attempts, version: int | None, deployment: str | None
) -> Flow[None]:
    """Returns once every deployment answers, and `deployment`, or each of them, has a version.

    Raises:
        ClientError: As `send_until_answered`; DeadlineExceeded if it takes too long.
    """
    yield from send_until_answered(READY_PATH, None, attempts)
    while version is not None:
        # A new count of tries each time: that it takes long is no failure.
        scorers = yield from listing.refresh(Attempts(attempts.retry, attempts.deadline))
        versions = [
            scorer.version
            for scorer in scorers
            if deployment is None or scorer.deployment == deployment
        ]
        if versions and all(each is not None and each >= version for each in versions):
            return
        if not attempts.has_time_for(_ASK_AGAIN_S):
            raise DeadlineExceeded(f"version {version} was not served in time, but {versions}")
        yield _ASK_AGAIN_S


def _path_and_key(deployment: str, admin_key: str) -> tuple[str, str]:
    """The path of a deployment's weights, and the header that opens it. Raises BadArgument."""
    if re.fullmatch(NAME_PATTERN, deployment) is None:
        raise BadArgument(f"must match {NAME_PATTERN}", param="deployment")
    if _KEY.fullmatch(admin_key) is None:
        # The message never quotes the key: it may end up in a log.
        raise BadArgument("must be printable ASCII without white space", param="admin_key")
    return weights_path(deployment), f"Bearer {admin_key}"


def _read(adapter: TypeAdapter[T], response: httpx.Response) -> T:
    """A reply of the route. Raises BadReply."""
    try:
        return adapter.validate_json(response.content)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise BadReply(f"the reply is not one about weights: {message}") from None
