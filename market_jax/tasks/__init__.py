"""Tasks by name: a file defines `run`, which `evaluate.py --task=NAME` calls.

`run(run, *, ...) -> str` takes a run and the task's own flags, and returns the text for the
terminal. The flags are the function's keyword arguments; their help is its docstring.
"""
