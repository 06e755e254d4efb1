"""The window alone: who is let in, when, and how many. A clock that only the test moves; nothing is
sent."""

from __future__ import annotations

import threading
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tokenreward_client.window import Ticket, Window


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def line(window: Window, num: int) -> list[Ticket]:
    return [window.join(window.next_number()) for _ in range(num)]


def let_in(tickets: list[Ticket]) -> list[int]:
    return [place for place, ticket in enumerate(tickets) if ticket.done()]


def refuse(window: Window, *tickets: Ticket) -> list[int]:
    """`overloaded`, one after the other. Returns what each retreat said."""
    halvings = []
    for ticket in tickets:
        halvings.append(window.retreat(ticket.result()))
        window.leave(ticket)
    return halvings


def answer(window: Window, *tickets: Ticket) -> None:
    for ticket in tickets:
        window.leave(ticket)
        window.advance()


def test_as_many_are_let_in_as_there_are_places_in_the_order_of_their_numbers() -> None:
    window = Window(2)
    tickets = line(window, 5)
    assert let_in(tickets) == [0, 1]
    window.leave(tickets[1])
    assert let_in(tickets) == [0, 1, 2]
    window.leave(tickets[0])
    assert let_in(tickets) == [0, 1, 2, 3]


def test_who_comes_again_goes_before_those_who_came_later() -> None:
    window = Window(1)
    early = window.next_number()
    (holder,) = line(window, 1)
    late = line(window, 2)
    again = window.join(early)
    window.leave(holder)
    assert (again.done(), let_in(late)) == (True, [])
    window.leave(again)
    assert let_in(late) == [0]


def test_one_refusal_halves_and_an_answer_adds_a_share_of_one() -> None:
    window = Window(16)
    tickets = line(window, 16)
    assert refuse(window, tickets[0]) == [0]
    assert window.limit == 8
    answer(window, *tickets[1:8])
    assert window.limit == 8
    answer(window, *tickets[8:10])
    assert window.limit == 9  # a round of eight, and a bit for the ninth that it then is


def test_what_is_refused_together_counts_once_and_leaves_what_the_service_holds() -> None:
    window = Window(64)
    tickets = line(window, 64)
    assert refuse(window, *tickets[:10]) == [0] * 10
    assert window.limit == 32
    refuse(window, *tickets[10:61])
    assert window.limit == 3


def test_refusals_without_an_answer_between_are_counted_and_one_place_always_remains() -> None:
    window = Window(4)
    counted = []
    for _ in range(5):
        counted += refuse(window, *line(window, 1))
    assert (counted, window.limit) == ([0, 1, 2, 3, 4], 1)
    answer(window, *line(window, 1))
    assert refuse(window, *line(window, 1)) == [0]


def test_a_refusal_of_what_was_sent_before_the_last_retreat_does_not_halve_again() -> None:
    window = Window(8)
    tickets = line(window, 8)
    refuse(window, tickets[0])
    answer(window, tickets[1])
    refuse(window, tickets[2])
    assert window.limit == 4


def test_a_closed_window_opens_with_time_or_with_an_answer() -> None:
    clock = Clock()
    window = Window(4, clock)
    (ticket,) = line(window, 1)
    window.close(5)
    window.close(3)
    assert window.closed_s() == 5
    clock.now += 4
    assert window.closed_s() == 1
    clock.now += 4
    assert window.closed_s() == 0
    window.close(5)
    answer(window, ticket)
    assert window.closed_s() == 0


def test_an_answer_while_another_thread_closes_the_window_is_not_lost() -> None:
    """The clock is read in the middle of `close`: there another thread notes an answer, which
    either comes before the closing as a whole or opens the window after it."""
    answers: list[threading.Thread] = []

    def clock() -> float:
        if not answers:
            answers.append(threading.Thread(target=window.advance))
            answers[0].start()
            answers[0].join(0.5)  # as long as `close` holds the lock, it cannot end
        return 1000.0

    window = Window(4, clock)
    window.close(5)
    answers[0].join(5)
    assert not answers[0].is_alive()
    assert window.closed_s() == 0


def test_who_leaves_the_line_is_not_let_in_and_takes_no_place() -> None:
    window = Window(1)
    tickets = line(window, 3)
    window.leave(tickets[1])
    assert tickets[1].cancelled()
    window.leave(tickets[0])
    assert tickets[2].done()
    window.leave(tickets[2])
    assert line(window, 1)[0].done()


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "leave", "answer", "refuse"]), st.integers(0, 20)),
        max_size=60,
    )
)
def test_whatever_happens_no_more_are_in_flight_than_allowed_and_nobody_is_forgotten(
    steps: list[Any],
) -> None:
    window, tickets = Window(5), []
    for step, place in steps:
        before = sum(ticket.done() for ticket in tickets)
        if step == "ask":
            tickets.append(window.join(window.next_number()))
        elif tickets:
            ticket = tickets.pop(place % len(tickets))
            if step == "refuse" and ticket.done():
                window.retreat(ticket.result())
            window.leave(ticket)
            if step == "answer":
                window.advance()
        num_in = sum(ticket.done() for ticket in tickets)
        assert 1 <= window.limit <= 5
        assert num_in <= max(window.limit, before)
        if num_in < window.limit:
            assert num_in == len(tickets)
        assert let_in(tickets) == list(range(num_in))


def test_threads_share_it_and_none_waits_for_ever() -> None:
    window, most, now = Window(3), [0], [0]
    lock = threading.Lock()

    def work() -> None:
        for count in range(50):
            ticket = window.join(window.next_number())
            ticket.result(timeout=30)
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            with lock:
                now[0] -= 1
            if count % 7 == 0:
                window.retreat(ticket.result())
            window.leave(ticket)
            window.advance()

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert 1 <= most[0] <= 3


def test_an_answer_wakes_those_who_rest_but_not_those_who_have_only_begun() -> None:
    now = 10.0
    window = Window(4, lambda: now)
    early = window.rest(0.5)
    now += 0.4
    window.advance()
    assert not early.done()
    late = window.rest(0.5)
    gone = window.rest(0.0)
    window.stop_resting(gone)
    now += 0.2
    window.advance()
    assert early.done()
    assert not late.done()
    assert not gone.done()
