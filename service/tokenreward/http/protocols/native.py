"""Our own protocol: `POST /v1/rewards`, in JSON or msgpack.

It knows how a request and a reply are written, and nothing of what a request asks for.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenreward.errors import RequestError
from tokenreward.http.protocols import Protocol
from tokenreward.wire import Reply, RewardsRequest, write_reply
from tokenreward.wire.head import RequestHead, read_head
from tokenreward.wire.media import JSON, Media, answer_media, media_of
from tokenreward.wire.paths import REWARDS_PATH
from tokenreward.wire.reply import EncodingFormat


class Native(Protocol):
    """Bodies are `RewardsRequest` and `Reply` as they are."""

    paths = (REWARDS_PATH,)
    asks_for = None
    patience_s = 240.0  # the client of ours says that it tries again by itself

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__(headers)
        self._encoding: EncodingFormat = "float"

    @property
    def reads(self) -> Media:
        return media_of(self.headers)

    @property
    def writes(self) -> Media:
        return answer_media(self.headers)

    def head(self, body: bytes) -> RequestHead:
        return read_head(body, self.reads)

    def read(self, body: bytes) -> RewardsRequest:
        request = self.reads.parse(RewardsRequest, body)
        if self.writes is JSON:  # msgpack carries arrays as they are, and no base64
            self._encoding = request.encoding_format
        return request

    def write(self, reply: Reply) -> bytes:
        return self.writes.dump_items(write_reply(reply, encoding=self._encoding))

    def write_error(self, error: RequestError) -> tuple[int, bytes]:
        return error.status, self.writes.dump({"error": error.detail()})
