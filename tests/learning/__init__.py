"""`python -m learning`: TRL trains the demo policy on rewards over HTTP, one number per completion
beside one per token."""
