"""Floor 7: the commands as functions of Python, by the same names; ``import firstlight`` offers them.

They parse nothing and print nothing but what a command says on stderr while it works; they call the rooms that the
commands call. Importing this package loads nothing: ``firstlight`` imports a function's module when it is first asked
for.
"""
