"""`modelmora …`: the command tree. Commands are imported when they run, so that `modelmora --help` is instant."""

from __future__ import annotations

import errno
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import click

if TYPE_CHECKING:
    from modelmora.errors import ModelMoraError

COMMANDS: Mapping[str, tuple[str, str]] = {
    "up": ("platform", "Start the whole platform on this machine."),
    "serve": ("platform", "Start some of its services only."),
    "import": ("models", "Register a model from a folder, S3, HTTP, the Hugging Face Hub, or without files."),
    "models": ("models", "Find, show, choose and delete models, and move their aliases."),
    "links": ("links", "Link models to other registries, compare with them, export to them."),
    "lock": ("lock", "Lock models, see what drifted, bring a machine to a lock."),
    "load": ("memory", "Bring a model into memory."),
    "unload": ("memory", "Take a model out of memory."),
    "ps": ("memory", "Show what is in memory."),
    "explain": ("placement", "Say what would happen if a model were wanted now."),
    "tune": ("tuning", "Find the fastest accurate engine profile of a model."),
    "decisions": ("placement", "List what was evicted for what, and why."),
    "trace": ("placement", "Export what was wanted and used, for simulations."),
    "simulate": ("placement", "Replay a trace under other policies or budgets."),
    "residency": ("node", "Show and change how models are kept in memory."),
    "node": ("node", "Show and change budgets, policy and idle time."),
    "drain": ("node", "Empty the node for maintenance."),
    "uncordon": ("node", "Let the node load models again."),
    "embed": ("embed", "Turn texts into vectors."),
    "rerank": ("tasks", "Sort texts by how well they answer a query."),
    "classify": ("tasks", "Give texts labels with scores."),
    "answer": ("tasks", "Find the answer to a question in a text."),
    "predict": ("tasks", "Do any model's task with named inputs: texts, files."),
    "tokenize": ("tasks", "Show what a model's tokenizer makes of texts."),
    "describe": ("tasks", "Show what a model takes and gives."),
    "jobs": ("jobs", "Do tasks with many inputs in the background: create, watch, cancel, fetch."),
    "queue": ("queue", "Show what waits, and why a call waits."),
    "health": ("health", "Show how every component is."),
    "info": ("health", "Show versions, devices and storage."),
    "audit": ("audit", "Show who changed what."),
    "token": ("token", "Create, list and revoke access tokens."),
    "config": ("config", "Show the settings and where they come from."),
    "worker-bundle": ("bundle", "Lay out what a worker in another Python needs."),
    "completion": ("completion", "Print the completion script of a shell."),
}
"""Name → (module here, one line for the overview). The module has a command of that name."""

EXIT_CODES: Mapping[str, int] = {
    "INVALID_ARGUMENT": 2,
    "OUT_OF_RANGE": 2,
    "NOT_FOUND": 3,
    "ALREADY_EXISTS": 4,
    "FAILED_PRECONDITION": 4,
    "ABORTED": 4,
    "UNAUTHENTICATED": 5,
    "PERMISSION_DENIED": 5,
    "UNAVAILABLE": 6,
    "RESOURCE_EXHAUSTED": 6,
    "DEADLINE_EXCEEDED": 6,
}
"""Status → exit code; everything else is 1."""


JSON_KEY = "modelmora.json"
"""In the meta of the click context, which all levels share: somebody said `--json`."""


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--json`, remembered for answers and errors wherever it stands."""

    def remember(context: click.Context, _: click.Parameter, given: bool) -> bool:
        context.meta[JSON_KEY] = given or context.meta.get(JSON_KEY, False)
        return bool(context.meta[JSON_KEY])

    # Eager: known before another option is found to be wrong.
    return click.option(
        "--json", "as_json", is_flag=True, is_eager=True, callback=remember, help="Print JSON for programs."
    )(command)


class Tree(click.Group):
    """A group whose commands live in modules that are imported by need, and whose errors are one clear line."""

    table: ClassVar[Mapping[str, tuple[str, str]]] = COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.table:
            return None
        module = importlib.import_module(f"modelmora_app.cli.{self.table[name][0]}")
        command: click.Command = module.COMMANDS[name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.table.items()])

    def invoke(self, ctx: click.Context) -> Any:
        from modelmora.errors import InvalidArgument, ModelMoraError

        try:
            return super().invoke(ctx)
        except ModelMoraError as error:
            self._end(ctx, error)
        except click.UsageError as error:
            if not ctx.meta.get(JSON_KEY) or isinstance(error, click.exceptions.NoArgsIsHelpError):
                raise
            self._end(ctx, InvalidArgument(error.format_message()))
        except OSError as error:
            if error.errno in (errno.EPIPE, None):
                raise  # the reader has gone: click ends quietly
            named = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            raise click.ClickException(named) from error

    def _end(self, ctx: click.Context, error: ModelMoraError) -> NoReturn:
        from modelmora_app.cli.show import error_lines

        for line in error_lines(error):
            click.echo(line, err=True)
        ctx.exit(EXIT_CODES.get(error.status, 1))


@click.group(
    cls=Tree,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong use or invalid argument, 3 not found, 4 not possible in this state, "
    "5 not allowed, 6 unavailable, full or too late (trying again may help).",
)
@click.version_option(package_name="modelmora", message="modelmora %(version)s")
@click.option("--target", metavar="HOST:PORT", help="Where the platform listens. [env: MODELMORA_TARGET]")
@click.option("--token", help="Access token. Better in the environment. [env: MODELMORA_TOKEN]")
@json_option
def cli(**_: object) -> None:
    """ModelMora: register models, keep them in memory by need, call them through gRPC."""
