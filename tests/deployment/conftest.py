"""Ray's own modules warn of things that are deprecated in pydantic when they are first imported."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.serve.schema  # noqa: F401
