"""A reward server of the kind that OpenRLHF's `serve_rm` is: FastAPI, and the forward pass in the
handler itself.

Each request is a padded batch of its own, and while one is computed no other is read. Run it with
`python -m bench.rivals.serve_rm FOLDER TASK PORT`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from bench.rivals.huggingface import Scoring


def build_app(scoring: Any) -> FastAPI:
    """`POST /get_reward {"query": [ids], "start": [int]}`, one of each per sequence."""
    app = FastAPI()

    @app.post("/get_reward")
    async def get_reward(request: Request) -> JSONResponse:
        asked = await request.json()
        return JSONResponse({"rewards": scoring.rewards(asked["query"], asked["start"])})

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({})

    return app


def main(folder: str, task: Any, port: str) -> None:
    uvicorn.run(
        build_app(Scoring(Path(folder), task)),
        host="127.0.0.1",
        port=int(port),
        log_level="warning",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
