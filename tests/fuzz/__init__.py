"""Fuzzing: what no input may do.  `make fuzz`, or `python -m tests.fuzz [--minutes N] [--seed S] [--only NAME] [--cases N]`.

A target is a plain function from a seed to what happened, in a word or two.  It raises where hvlab does what it must not: any exception
but `HvlabError` for what a user gives (files, options), any exception at all for what a guest gives (registers, tables in memory, DMA), or
an invariant that does not hold.  A hang, a process that dies and memory without end are found by the parent of the process it runs in.
"""
