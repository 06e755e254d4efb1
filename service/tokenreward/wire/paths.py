"""The routes of the service and the headers that it reads, for those who mount them and those who
ask for them.

It knows names only, and nothing of what is sent there.
"""

from __future__ import annotations

import re

REWARDS_PATH = "/v1/rewards"
SCORERS_PATH = "/v1/scorers"
HEALTH_PATH = "/healthz"
READY_PATH = "/readyz"
METRICS_PATH = "/metrics"
OPENAPI_PATH = "/openapi.json"
DOCS_PATH = "/docs"
# Where other programs look: whether the service answers, and for which models.
HEALTH_PATHS = ("/health", "/health/")
MODELS_PATHS = ("/v1/models", "/v1/models/")
TOKENIZE_PATH = "/tokenize"
SEED_SESSION_PATH = "/seed_session"  # what NeMo-Gym's agents ask before `/verify`
# On the gateway, for those with an admin key; of the service without one there is no such route.
WEIGHTS_PATH = "/v1/deployments/{name}/weights"

REQUEST_ID_HEADER = "x-request-id"
CALLER_HEADER = "x-tokenreward-caller"  # whom the gateway asks for, if there are no API keys
PROTOCOL_HEADER = "x-tokenreward-protocol"  # of an answer in another program's form
# Which distributed trace a request belongs to (W3C Trace Context). We log it and pass it on.
TRACE_HEADERS = ("traceparent", "tracestate")
# For how many seconds a request may be held while the service is full or loads. 0 is for callers
# who try again by themselves.
HOLD_HEADER = "x-tokenreward-hold-seconds"
TIMEOUT_HEADER = "x-request-timeout-seconds"

_WEIGHTS_ROUTE = re.compile(r"/v1/deployments/[^/]+/weights")


def weights_path(deployment: str) -> str:
    """Where the weights of one deployment are pushed, and where it is told which it has."""
    return WEIGHTS_PATH.replace("{name}", deployment)


def is_weights_path(path: str) -> bool:
    """Whether a path is one of `weights_path`."""
    return _WEIGHTS_ROUTE.fullmatch(path) is not None


def deployment_prefix(deployment: str) -> str:
    """Where the routes of one deployment are mounted, beside the gateway's at `/`."""
    return f"/d/{deployment}"
