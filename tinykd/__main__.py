"""`python -m tinykd`: the command line without the script on the path."""

from tinykd.cli import main

main()
