"""What can go wrong with the stack, in words meant for the person at the terminal."""

from __future__ import annotations


class StackError(Exception):
    """The stack cannot do what was asked; the message says what is wrong and what to do about it."""
