"""Lends what waits in this replica to idle replicas of the same deployment, over Ray.

A burst stays where it was accepted: Ray and HAProxy choose a replica for a request once. So a
replica with more than 0.1 s of work in its queue asks its peers which of them are idle, and sends
them jobs, two loans at a time, so that the next one waits there when the first is done. A replica
that has nothing to give away sends nothing. When the deployment has one replica, or no peer is
idle, the replica asks more and more rarely.

A loan is taken back when its peer is gone or late. A replica that Ray counts no more among those
that run is about to stop, and lends all that waits. This module knows engines through `Lending`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenreward.engine.slot import Slot
from tokenreward.engine.usage import Report
from tokenreward.errors import Loading, frames
from tokenreward.wire.weights import Weights

if TYPE_CHECKING:  # torch comes with the engine, after its threads are limited
    from tokenreward.deployment.peers import RayPeers
    from tokenreward.engine.lending import Lending, Loan, Repayment

_MAX_LOANS = 2  # at a peer: one that it computes, and one that waits there
_FIRST_PAUSE_S = 0.05
_MAX_PAUSE_S = 0.5
_PEERS_S = 2.0  # how long a list of peers is good
_STATUS_S = 0.5  # how long a peer's status is valid, while it has loans
_EXCLUDE_S = 10.0  # how long a peer that was gone or late gets nothing
_ENGINE_S = 2.0  # how long a change of the engine may go unnoticed while nothing waits

logger = logging.getLogger("ray.serve")


@dataclass(slots=True)
class Peer:
    """What a lender remembers of another replica.

    Attributes:
        weights: What it serves; None if it cannot compute.
        is_idle: Whether it said so last.
        heard_at: When it said so.
        excluded_until: Until when it gets nothing.
        loans: The loans that it has: for each number, its tokens, who lent it, and when it is late.
    """

    weights: Weights | None = None
    is_idle: bool = False
    heard_at: float = float("-inf")
    excluded_until: float = float("-inf")
    loans: dict[int, tuple[int, Lending, float]] = field(default_factory=dict)


class Lender:
    """Gives away what waits in a replica, and computes what others give. On one event loop.

    Args:
        slot: Holds the engine.
        peers: The other replicas.
        report: Told the metrics.

    Attributes:
        peers: The other replicas.
    """

    def __init__(self, slot: Slot, peers: RayPeers, report: Report) -> None:
        self._slot = slot
        self.peers = peers
        self._report = report
        self._lending: tuple[Any, Lending] | None = None  # an engine, and what lends its jobs
        self._peers: dict[str, Peer] = {}
        self._addresses: list[str] = []  # of the peers that take requests
        self._addresses_at = float("-inf")
        self._is_leaving = False
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run_forever(self) -> None:
        """Lends until it is cancelled. No fault ends it: without it, waiting jobs stay here. One
        that stays is logged once."""
        pause_s, last_fault = _FIRST_PAUSE_S, ""
        while True:
            self._wake.clear()
            try:
                starts_over = await self.lend_once() or await self._wait_for_jobs()
                last_fault = ""
            except Exception as error:
                fault, starts_over = frames(error), False
                if fault != last_fault:
                    logger.error("lending failed: %s", fault)
                last_fault = fault
            pause_s = _FIRST_PAUSE_S if starts_over else min(2 * pause_s, _MAX_PAUSE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def lend_once(self) -> bool:
        """Takes back what is late, then lends to idle peers.

        Returns:
            Whether anything was lent.
        """
        now = time.monotonic()
        for peer in self._peers.values():
            if any(late_at <= now for _, _, late_at in peer.loans.values()):
                self._exclude(peer)
        lending = self._current()
        if lending is None or not (lending.surplus_tokens() or self.has_loans):
            return False
        await self._find_peers()
        await asyncio.gather(*(self._ask(address) for address in self._stale()))
        idle = self._idle(lending)
        # The last loans are small, so that all replicas end together.
        share = lending.surplus_tokens() // (len(self._addresses) + 1)
        is_sent = await asyncio.gather(*(self._lend(each, lending, share) for each in idle))
        return any(is_sent)

    def forget(self) -> None:
        """Lets go of engines that serve no more: all their requests have been answered. Loans of
        the one that serves now stay."""
        current = self._current()
        for peer in self._peers.values():
            loans = peer.loans.items()
            peer.loans = {number: loan for number, loan in loans if loan[1] is current}

    def status(self) -> tuple[Weights | None, bool]:
        """The weights that serve here, and whether the replica is idle. From any thread."""
        if self._lending is None:
            return None, False
        lending = self._lending[1]
        return lending.weights, lending.is_idle

    def accept(self, loan: Loan, lender: str) -> None:
        """Begins to compute a loan for another replica."""
        task = asyncio.create_task(self._compute(loan, lender))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def repay(self, repayment: Repayment, address: str, is_idle: bool) -> None:
        """Answers the callers of a loan. One that was taken back is ignored, and what cannot be
        read is computed here."""
        peer = self._peers.get(address)
        if peer is None or repayment.number not in peer.loans:
            return
        _, lending, _ = peer.loans.pop(repayment.number)
        peer.is_idle, peer.heard_at = is_idle and bool(repayment.jobs), time.monotonic()
        try:
            lending.repay(repayment)
        except Exception as error:
            logger.error("a repayment cannot be read: %s", frames(error))
            self._exclude(peer)
        self._wake.set()

    async def _compute(self, loan: Loan, lender: str) -> None:
        lending = self._current()
        if lending is None:
            return
        try:
            repayment = await lending.compute(loan)
        except Exception as error:
            # It is refused, so that its lender need not wait until it is late.
            logger.error("a loan cannot be computed: %s", frames(error))
            from tokenreward.engine.lending import Repayment

            repayment = Repayment(loan.number, loan.weights, [])
        is_idle, address = lending.is_idle, self.peers.address
        try:
            await self.peers.call(lender, "repay", repayment, address, is_idle)
        except ConnectionError:
            logger.info("a replica that lent jobs does not answer")

    def _current(self) -> Lending | None:
        """What lends the jobs of the engine that serves now; None while there is none."""
        try:
            engine = self._slot.engine
        except Loading:
            return None
        if self._lending is None or self._lending[0] is not engine:
            from tokenreward.engine.lending import Lending

            self._lending = engine, Lending(engine, self._report)
        return self._lending[1]

    @property
    def has_loans(self) -> bool:
        """Whether any peer has jobs of this replica."""
        return any(peer.loans for peer in self._peers.values())

    async def _find_peers(self) -> None:
        now = time.monotonic()
        if now - self._addresses_at < _PEERS_S:
            return
        self._addresses_at = now
        addresses = await self.peers.addresses()
        if not addresses:  # nobody knows now
            return
        own = self.peers.address
        self._is_leaving = own not in addresses
        self._addresses = [address for address in addresses if address != own]
        for address in self._addresses:
            self._peers.setdefault(address, Peer())
        for address, peer in list(self._peers.items()):
            # One that stops may still repay what it has.
            if address not in addresses and not peer.loans:
                del self._peers[address]

    def _stale(self) -> list[str]:
        """The peers to be asked: those whose last word was no, and those that may have died."""
        now = time.monotonic()
        return [
            address
            for address, peer in self._peers.items()
            if peer.excluded_until <= now
            if not peer.is_idle or now - peer.heard_at >= _STATUS_S
        ]

    async def _ask(self, address: str) -> None:
        peer = self._peers[address]
        try:
            peer.weights, peer.is_idle = await self.peers.call(address, "status")
            peer.heard_at = time.monotonic()
        except ConnectionError as error:
            logger.warning("nothing is lent for a while: %s", error)
            self._exclude(peer)

    def _idle(self, lending: Lending) -> list[str]:
        """The peers that get a loan now, those with the fewest loans first."""
        now = time.monotonic()
        idle = []
        for address in self._addresses:
            peer = self._peers[address]
            if not peer.is_idle or peer.weights != lending.weights or peer.excluded_until > now:
                continue
            if len(peer.loans) < _MAX_LOANS:
                idle.append(address)
        return sorted(idle, key=lambda address: len(self._peers[address].loans))

    async def _lend(self, address: str, lending: Lending, max_tokens: int) -> bool:
        peer = self._peers[address]
        loan = lending.lend(lending.weights, max_tokens, lends_all=self._is_leaving)
        if loan is None:
            return False
        num_tokens = loan.num_tokens + sum(tokens for tokens, _, _ in peer.loans.values())
        late_at = time.monotonic() + lending.patience_s(num_tokens)
        peer.loans[loan.number] = (loan.num_tokens, lending, late_at)
        try:
            await self.peers.call(address, "accept", loan, self.peers.address)
        except ConnectionError:
            self._exclude(peer)
            return False
        except Exception:  # the loan did not leave: its jobs need not wait until it is late
            self._exclude(peer)
            raise
        return True

    def _exclude(self, peer: Peer) -> None:
        """Takes back what a peer has that is gone or late, and gives it nothing for a while."""
        for number, (_, lending, _) in peer.loans.items():
            lending.take_back(number)
        peer.loans.clear()
        peer.excluded_until = time.monotonic() + _EXCLUDE_S

    async def _wait_for_jobs(self) -> bool:
        """Waits for a job while nothing waits here, for 2 s at most, which costs nothing.

        Returns:
            Whether it waited.
        """
        lending = self._current()
        if lending is None or self.has_loans or not lending.is_empty:
            return False
        # The engine may be another one meanwhile, so the wait has an end.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENGINE_S):
                await lending.wait_for_jobs()
        return True
