"""Commands about what is served: ``add-items``, ``export``, ``serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli.options import command, settings, validated
from firstlight.cli.output import Answer, draw_pairs, say
from firstlight.core.errors import InputError

if TYPE_CHECKING:
    import polars as pl

    from firstlight.serving.bundle import Bundle
    from firstlight.training.run_folder import Run

#: Where the token is read from if no file is named.
TOKEN_VARIABLE = "FIRSTLIGHT_TOKEN"


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    command(app, "add-items", interrupted="nothing was added, unless it said so")(add_items)
    command(app, "export")(export)
    command(app, "serve")(serve)


def open_served(path: Path) -> Bundle:
    """A bundle, or a run together with what was added to it."""
    from firstlight.serving.bundle import Bundle
    from firstlight.serving.journal import MANIFEST
    from firstlight.training.run_folder import load_run

    if not (path / MANIFEST).exists() and not (path / "config.yaml").exists():
        raise InputError(
            "this folder is neither a run nor a bundle",
            path=path,
            hint="give the --out folder of firstlight train, or the BUNDLE of firstlight export",
        )
    bundle = Bundle.open(path) if (path / MANIFEST).exists() else Bundle.open_run(load_run(path))
    left = bundle.interrupted()
    if left:
        say(f"left of interrupted writes and not read: {', '.join(map(str, left))}")
    return bundle


def has_manifest(path: Path) -> bool:
    """Whether a folder is a bundle."""
    return (path / "manifest.json").exists()


def has_additions(path: Path) -> bool:
    """Whether a folder is a bundle, or a run that items were added to."""
    return has_manifest(path) or (path / "additions" / "manifest.json").exists()


def add_items(
    target: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="Where to add the items.")],
    new_items: Annotated[
        Path, typer.Argument(metavar="NEW_ITEMS", help="A dataset, a table of items, or one picture.")
    ],
    title: Annotated[str | None, typer.Option(help="Title of the item of a picture.")] = None,
    item: Annotated[str | None, typer.Option("--id", help="Its id; the file's name if not given.")] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Features of the items (.npy, .safetensors), row by row."),
    ] = None,
) -> Answer:
    """Make items without clicks recommendable, by their content; nothing is retrained.

    Items whose ids are there already are replaced.
    """
    from firstlight.serving.new_items import read_new_items

    bundle = open_served(target)
    encoder = bundle.encoder()
    new = read_new_items(new_items, title=title, item=item, features=_files(features or []))
    for note in new.notes:
        say(note)
    vectors = encoder.encode(new.catalogue, new.folder)
    for problem in encoder.views.problems:
        say(problem)
    replaced = sum(bundle.snapshot.row(name) is not None for name in new.ids)
    version = bundle.add_items(new.ids, vectors, new.catalogue.items, new.pictures())
    value = {
        "target": target,
        "version": version,
        "added": len(new.ids) - replaced,
        "replaced": replaced,
        "items": int(bundle.alive.sum()),
    }
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
    from firstlight.serving.export import export_run
    from firstlight.training.run_folder import load_run

    loaded = load_run(run)
    made = export_run(loaded, bundle, *_content(loaded, items))
    base = made.snapshot.base
    value = {
        "run": run,
        "bundle": bundle,
        "version": made.version,
        "users": len(base.user_ids),
        "items": int(made.alive.sum()),
        "texts": [name for name in base.table.columns if name != "item"],
        "takes_new_items": base.encoder is not None,  # type: ignore[attr-defined]
    }
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
    from firstlight.core.extras import require

    require("serve")
    from firstlight.serving.server.process import serve as serve_http
    from firstlight.serving.server.settings import Settings

    fields = {**settings(sets or []), "index": index, "token": _token(token_file)}
    limits = validated(Settings, fields)
    if limits.token is None:
        say(f"no token: nobody may change anything (set {TOKEN_VARIABLE} or --token-file)")

    def listening(host: str, port: int) -> None:
        say(f"listening at http://{f'[{host}]' if ':' in host else host}:{port}/")

    serve_http(open_shown, target, limits, host=host, port=port, listening=listening)
    value = {"target": target, "stopped": True}
    return Answer(value, lambda console: console.print("stopped"))


def open_shown(path: Path) -> Bundle:
    """What is served, with titles and covers: a run's are with its dataset."""
    from firstlight.serving.bundle import Bundle
    from firstlight.training.run_folder import load_run

    if has_manifest(path):
        return open_served(path)
    run = load_run(path)
    return Bundle.open_run(run, *_content(run, None))


def _token(file: Path | None) -> str | None:
    """The token, without the line's end."""
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the token cannot be read ({error})", path=file) from error
    if not token.isascii() or not token.isprintable() or not token:
        raise InputError("a token is one line of ASCII", path=file)
    return token


def _content(run: Run, given: Path | None) -> tuple[pl.DataFrame | None, Path | None]:
    """Texts and covers of the run's items, and where paths of covers start.

    They come from the given place, or from where the run's data came, if that still works.
    """
    import polars as pl

    from firstlight.core.files import read_json
    from firstlight.serving.new_items import read_new_items

    recorded = read_json(run.path / "dataset.json")["path"]
    source = given or Path(recorded)
    if given is None and not (recorded and source.is_dir()):
        say("the run's dataset is not where it was: no titles and covers (name them with --items)")
        return None, None
    try:
        known = read_new_items(source)
    except InputError as error:
        if given is not None:
            raise
        say(f"no titles and covers (name them with --items): {error}")
        return None, None
    # A catalogue without any column has no rows either.
    columns = known.catalogue.items.drop("item", strict=False).get_columns()
    return pl.DataFrame([_series(known.ids), *columns]), known.folder


def _series(ids: list[str]) -> pl.Series:
    import polars as pl

    return pl.Series("item", ids, pl.String)
