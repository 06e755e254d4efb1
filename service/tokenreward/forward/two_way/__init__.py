"""Classifiers: models whose own class scores a whole row, and whose tokens see the tokens after
them."""

from tokenreward.forward.two_way.layout import TwoWayLayout, reads_segments
from tokenreward.forward.two_way.probe import choose_two_way_layout, pair_line

__all__ = ["TwoWayLayout", "choose_two_way_layout", "pair_line", "reads_segments"]
