"""What `evaluate.py --task=NAME` runs.

A file defines `run(run, *, ...) -> str`: a run and the task's own flags -> the text for the
terminal. The flags are the function's keyword arguments, their help is its docstring.
"""
