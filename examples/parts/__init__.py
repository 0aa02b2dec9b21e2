"""What the programs beside this folder are made of: rooms of parts that know no program.

Only `adapters.py`, which is made to be copied into other code bases, is used from above.
"""
