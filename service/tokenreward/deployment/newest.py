"""Which weights are the newest, and what a replica begins with if those cannot be loaded.

A push or a redeploy that fails leaves the weights before it in service, and a replica that starts
afterwards serves these, too. Nobody is to mistake them for the newest ones: the failure is
returned, to be said wherever weights are shown, and every reply has its version. This module knows
neither engines nor Ray.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Awaitable, Callable, Sequence

from tokenreward.deployment.reloader import Reloader
from tokenreward.errors import drop_frames
from tokenreward.settings import DeploymentSettings
from tokenreward.wire.weights import Weights

logger = logging.getLogger("ray.serve")

# The versions that the other replicas of the deployment serve; None for one that does not say.
OtherVersions = Callable[[], Awaitable[Sequence[int | None]]]


def newest_first(declared: DeploymentSettings, pushed: Weights | None) -> list[DeploymentSettings]:
    """The settings with the weights that may serve: the pushed ones and the declared ones, the
    greater version first. Of two with one version only the pushed ones may serve: no reply would
    tell them apart.
    """
    if pushed is None:
        return [declared]
    with_pushed = declared.with_weights(pushed)
    if pushed.version == declared.version:
        return [with_pushed]
    return sorted([with_pushed, declared], key=lambda each: each.version, reverse=True)


async def load_first(
    reloader: Reloader,
    candidates: Sequence[DeploymentSettings],
    declared: DeploymentSettings,
    other_versions: OtherVersions,
) -> Exception | None:
    """Serves the newest weights or, if they cannot be loaded, the ones before.

    The ones before are loaded only if no other replica serves newer ones: a deployment does not go
    back while a part of it can go on.

    Args:
        reloader: Loads engines.
        candidates: The settings with the weights that may serve, the newest ones first.
        declared: The settings as they are declared.
        other_versions: Asks the other replicas.

    Returns:
        Why the newest weights do not serve; None if they do.

    Raises:
        Exception: Why the newest weights cannot be loaded, and no others serve in their place.
    """
    newest, *older = candidates
    try:
        await reloader.start(newest, declared)
        return None
    except Exception as error:
        if not older:
            raise
        versions = await other_versions()
        if any(each is None or each > older[0].version for each in versions):
            raise
        failure = error
    drop_frames(failure)  # they refer to what was loaded so far
    gc.collect()
    logger.error(
        "version %d cannot be loaded, and version %d is in its place: %s",
        newest.version,
        older[0].version,
        failure,
    )
    try:
        await reloader.start(older[0], declared)
    except Exception as error:
        logger.error("version %d cannot be loaded, either: %s", older[0].version, error)
        raise failure from None
    return failure
