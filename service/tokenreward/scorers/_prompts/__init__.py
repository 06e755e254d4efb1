"""Prompts that scorers write: templates, quotations, step layouts. They are no scorer types and run
no model."""
