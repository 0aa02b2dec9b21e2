"""Modules of the example programs; they import none of the programs.

The only exception is `adapters.py`, which is a single file so that it can be copied.
"""
