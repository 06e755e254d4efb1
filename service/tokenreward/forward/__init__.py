"""Token rows in, model outputs out: the packed pass, the plain one, and the probe that decides
between them.

None of it knows scorers, credit or HTTP.
"""
