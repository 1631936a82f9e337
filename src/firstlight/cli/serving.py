"""Commands about what is served: ``add-items``, ``export``, ``serve``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from firstlight.cli.options import command, settings, validated
from firstlight.cli.output import Answer, draw_pairs, say, tell
from firstlight.core.errors import InputError

#: Where the token is read from if no file is named.
TOKEN_VARIABLE = "FIRSTLIGHT_TOKEN"


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    command(app, "add-items", interrupted="nothing was added, unless it said so")(add_items)
    command(app, "export")(export)
    command(app, "serve")(serve)


def add_items(
    target: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="Where to add the items.")],
    new_items: Annotated[
        Path, typer.Argument(metavar="NEW_ITEMS", help="A dataset, a table of items, or one picture.")
    ],
    title: Annotated[str | None, typer.Option(help="Title of the item of a picture.")] = None,
    item: Annotated[str | None, typer.Option("--id", help="Its id; the file's name if not given.")] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="Features of the items (.npy, .safetensors, .parquet), row by row or by id.",
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Replace items that have clicks, too: content ranks them from now on."
        ),
    ] = False,
    skip_known: Annotated[
        bool,
        typer.Option(
            "--skip-known", help="Add only items that were never there, and leave all others alone."
        ),
    ] = False,
) -> Answer:
    """Make items without clicks recommendable, by their content; nothing is retrained.

    Items that are there already are replaced if nobody has clicked them; those with clicks are refused, unless
    --replace or --skip-known says what to do.
    """
    from firstlight.pipeline import served

    files = _files(features or [])
    how = {"replace": replace, "skip_known": skip_known}
    added = served.add_items(target, new_items, title=title, item=item, features=files, **how, emit=tell)
    value = {"target": target, **vars(added)}
    return Answer(value, lambda console: draw_pairs(console, value))


def _files(pairs: list[str]) -> dict[str, Path]:
    found = {}
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not equals or not name or not file:
            raise InputError(f"--features {pair!r} is not of the form NAME=FILE")
        found[name] = Path(file)
    return found


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that does not exist yet.")],
    items: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Dataset or table with the items' titles and covers; the run's own dataset "
                     "if it is still where it was."),
    ] = None,
) -> Answer:  # fmt: skip
    """Write a bundle that can be served: vectors, ids, titles, small covers, clicks, the encoder of new items."""
    from firstlight.pipeline import served
    from firstlight.training.run_folder import load_run

    made = served.export(load_run(run), bundle, items, emit=tell)
    value = {"run": run, "bundle": bundle, **served.exported(made)}
    return Answer(value, lambda console: draw_pairs(console, value))


def serve(
    target: Annotated[Path, typer.Argument(metavar="BUNDLE_OR_RUN", help="What to serve.")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help=f"A file with the token that writers must show; {TOKEN_VARIABLE} does as well."),
    ] = None,
    index: Annotated[
        str, typer.Option(metavar="auto|exact|hnsw|ivf", help="How lists are made; auto goes by size.")
    ] = "auto",
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A limit of the server.")
    ] = None,
) -> Answer:
    """Serve recommendations, new items and a page over HTTP, until Ctrl-C or SIGTERM.

    Without a token nobody may change anything.
    """
    serve_until_stopped(target, host, port, _token(token_file), index, settings(sets or []))
    value = {"target": target, "stopped": True}
    return Answer(value, lambda console: console.print("stopped"))


def serve_until_stopped(
    target: Path, host: str, port: int, token: str | None, index: str, limits: Mapping[str, Any]
) -> None:
    """Serve, and say where.

    Args:
        target: A bundle or a run.
        host: Address to listen at.
        port: Port; 0 takes a free one.
        token: What writers must show; nobody may write if None.
        index: How lists are made.
        limits: Further fields of :class:`firstlight.serving.server.settings.Settings`.

    Raises:
        InputError: There is nothing to serve, or a limit is not one.
        MissingExtraError: The extra ``serve`` is not installed.
    """
    from firstlight.core.extras import require

    require("serve")
    from firstlight.pipeline.served import open_shown
    from firstlight.serving.server.process import serve as serve_http
    from firstlight.serving.server.settings import Settings

    if not target.exists():
        raise InputError(
            "there is no such folder", path=target, hint="give a run, or the BUNDLE of firstlight export"
        )
    chosen = validated(Settings, {**limits, "index": index, "token": token})
    if token is None:
        say(f"no token: nobody may change anything (set {TOKEN_VARIABLE} or --token-file)")

    def listening(host: str, port: int) -> None:
        say(f"listening at http://{f'[{host}]' if ':' in host else host}:{port}/")

    # Another process opens the same thing to encode items, so this must be a function of a module.
    opener = partial(open_shown, emit=tell)
    serve_http(opener, target, chosen, host=host, port=port, listening=listening)


def _token(file: Path | None) -> str | None:
    """The token, without the line's end."""
    if file is None:
        return checked_token(None)
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the token cannot be read ({error})", path=file) from error
    return checked_token(token, file)


def checked_token(token: str | None, source: Path | None = None) -> str | None:
    """A token as it can be shown by writers; None: as the environment says, or none at all.

    Raises:
        InputError: It cannot be sent in a header.
    """
    if token is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    if not token.isascii() or not token.isprintable() or not token:
        raise InputError("a token is one line of ASCII", path=source)
    return token
