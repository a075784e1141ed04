"""`tinykd completion`: the shell code that makes the tab key work."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_WHERE = {
    "bash": 'Add to ~/.bashrc:  eval "$(tinykd completion bash)"',
    "zsh": 'Add to ~/.zshrc:  eval "$(tinykd completion zsh)"',
    "fish": "Write it to ~/.config/fish/completions/tinykd.fish",
}


@click.command("completion")
@click.argument("shell", type=click.Choice(sorted(_WHERE)))
def command(shell: str) -> None:
    """Print the code that gives SHELL tab completion for tinykd.

    \b
    bash:  add to ~/.bashrc    eval "$(tinykd completion bash)"
    zsh:   add to ~/.zshrc     eval "$(tinykd completion zsh)"
    fish:  tinykd completion fish > ~/.config/fish/completions/tinykd.fish
    """
    from tinykd.cli import cli

    completion_class = get_completion_class(shell)
    assert completion_class is not None  # SHELL is one of click's own
    click.echo(f"# {_WHERE[shell]}")
    click.echo(completion_class(cli, {}, "tinykd", "_TINYKD_COMPLETE").source())
