"""Adapters: a trainer's own way of asking for rewards, on the client. One trainer a file.

They know the client, and of the trainer only the objects that it hands them: none is imported.
"""
