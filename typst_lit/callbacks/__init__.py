"""Habits of a run, one a file; each can be used in any Lightning trainer."""
