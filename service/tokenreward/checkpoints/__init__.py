"""From files to a model: weights, heads, adapters, and the reasons to refuse a checkpoint. It runs
no rows."""
