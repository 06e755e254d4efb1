"""Prompts that scorers write: templates, quotations, step layouts.

The modules here are no scorer types and run no model.
"""
