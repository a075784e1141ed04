"""One module per verb of the command line; each defines a click command called `command`.

`tinykd/cli.py` imports a module only when its verb is used.
"""
