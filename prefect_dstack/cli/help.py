"""Help in plain text, which is printed at once: Rich would take longer than all the rest."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

__all__ = ["CommandWithArguments", "Commands"]

OTHERS = "Commands"
# Whole sentences are folded, not cut.
LONGEST = 1000


class Commands(TyperGroup):
    """The commands, in the sections that `rich_help_panel` names."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Return the commands, section by section."""
        sections: dict[str, list[tuple[str, Any]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panel = getattr(command, "rich_help_panel", None)
                section = panel if isinstance(panel, str) else OTHERS
                sections.setdefault(section, []).append((name, command))
        widest = max((len(name) for commands in sections.values() for name, _ in commands), default=0)
        for section, commands in sections.items():
            with formatter.section(section):
                formatter.write_dl(
                    [(name.ljust(widest), command.get_short_help_str(LONGEST)) for name, command in commands]
                )


class CommandWithArguments(TyperCommand):
    """A command that hands on what follows `--`, in the context's `args`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what comes before `--`."""
        before, after = list(args), []
        if "--" in before:
            place = before.index("--")
            before, after = before[:place], before[place + 1 :]
        super().parse_args(ctx, before)
        ctx.args = after
        return after
