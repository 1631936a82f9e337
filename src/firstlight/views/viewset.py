"""All views of a run: fitted once on warm items, saved with it, applied to every item that comes later."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as parse_arrays
from safetensors.numpy import save as pack_arrays

from firstlight.core.errors import InputError
from firstlight.core.files import atomic_path, read_json, write_json
from firstlight.core.hashing import hash_file
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.views.base import Arrays, NothingToFitError, View, count_items
from firstlight.views.config import ViewsConfig
from firstlight.views.cover import CoverView
from firstlight.views.encoder import ClipView, EncoderView, check_vision, vision_hash
from firstlight.views.features import FeatureView
from firstlight.views.sentence import SentenceView, check_encoder, encoder_hash
from firstlight.views.text import TextView, chosen_columns

MANIFEST = "views.json"
FORMAT_VERSION = 1
_KINDS = {kind.kind: kind for kind in (FeatureView, TextView, SentenceView, CoverView, EncoderView, ClipView)}


def available_views(config: ViewsConfig, catalogue: Catalogue) -> dict[str, str]:
    """Names of the views that a catalogue can have → their kind (``feature``, ``text``, ``sentence``, ``cover``, …)."""
    found = dict.fromkeys(catalogue.features, FeatureView.kind)
    if chosen_columns(config.text, catalogue.items):
        found["text-words" if "text" in found else "text"] = TextView.kind
    if config.sentence.path is not None and chosen_columns(config.sentence, catalogue.items):
        check_encoder(config.sentence)
        found["sentence-encoder" if "sentence" in found else "sentence"] = SentenceView.kind
    if _has(catalogue, "cover"):
        found["cover-pixels" if "cover" in found else "cover"] = CoverView.kind
    for own, view, name, other in (
        (config.encoder, EncoderView, "encoder", "encoder-covers"),
        (config.clip, ClipView, "clip", "clip-frames"),
    ):
        if own.path is not None and _has(catalogue, view.column):
            check_vision(own)
            found[other if name in found else name] = view.kind
    return found


def _has(catalogue: Catalogue, column: str) -> bool:
    items = catalogue.items
    return column in items.columns and items[column].null_count() < items.height


def chosen_views(config: ViewsConfig, catalogue: Catalogue) -> dict[str, str]:
    """The views that a config takes of a catalogue, by name, in order, with their kind.

    Raises:
        InputError: The catalogue has no content at all, or not a view that the config names.
    """
    available = available_views(config, catalogue)
    if not available:
        raise InputError(
            "the items have no text, no cover and no feature, so nothing tells new items apart",
            hint="add a table of items with a title column, a cover column (bytes or paths), or features/NAME",
        )
    if config.use is None:
        return available
    for name in config.use:
        if name not in available:
            near = difflib.get_close_matches(name, available, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            if getattr(getattr(config, name, None), "path", "") is None:
                guess = f"views.{name}.path names the encoder; "
            raise InputError(
                f"the items have no view {name!r}", hint=f"{guess}they have: {', '.join(available)}"
            )
    return {name: available[name] for name in config.use}


def outside_hashes(config: ViewsConfig) -> list[str]:
    """Hashes of what the views read besides the catalogue: with it and the config they decide every row.

    Raises:
        InputError: It is not there.
    """
    found = [] if config.sentence.path is None else [encoder_hash(config.sentence.path)]
    pictures = {own.path for own in (config.encoder, config.clip) if own.path is not None}
    return found + [vision_hash(path) for path in sorted(pictures)]


class ViewSet:
    """Fitted views by name, in the order that models get them.

    Args:
        config: How they were made.
        views: Name → fitted view.

    Attributes:
        problems: What the last :meth:`fit` or :meth:`transform` of this object could not use, a sentence each.
    """

    def __init__(self, config: ViewsConfig, views: Mapping[str, View]) -> None:
        self.config = config
        self.views = dict(views)
        self.problems: list[str] = []

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the views, in order."""
        return tuple(self.views)

    @property
    def dims(self) -> dict[str, int]:
        """Name → width."""
        return {name: view.dim for name, view in self.views.items()}

    @classmethod
    def fit(
        cls,
        config: ViewsConfig,
        catalogue: Catalogue,
        warm: npt.NDArray[np.bool_],
        *,
        seed: int = 0,
        folder: Path | str | None = None,
    ) -> Self:
        """Fit all views on warm items; nothing of the others is read.

        A view that warm items say nothing of is left out and told of in :attr:`problems`, unless ``config.use``
        names it.

        Args:
            config: Which views, and how.
            catalogue: All items.
            warm: ``(n_items,)``: items with training clicks.
            seed: Seed of the run.
            folder: What relative cover paths start from (the dataset's folder).

        Returns:
            The fitted views.

        Raises:
            InputError: There is no view to fit, or one that was asked for cannot be fitted.
        """
        warm = np.asarray(warm)
        n_items = count_items(catalogue)
        chosen = chosen_views(config, catalogue)
        if warm.dtype != np.bool_ or warm.shape != (n_items,):
            raise InputError(f"warm must be {n_items} truth values, found {warm.dtype} {warm.shape}")
        if not warm.any():
            raise InputError("no item has training clicks, so there is nothing to fit views on")
        root = None if folder is None else Path(folder)
        views: dict[str, View] = {}
        problems = []
        for name, kind in chosen.items():
            try:
                views[name] = _fit_one(kind, name, config, catalogue, warm, seed, root)
            except NothingToFitError as reason:
                if config.use is not None:
                    raise InputError(f"the view {name!r} cannot be fitted: {reason}") from reason
                problems.append(f"view {name} is left out: {reason}")
        if not views:
            raise InputError(
                f"no view can be fitted: {'; '.join(problems)}",
                hint="warm items need texts, covers or features that differ",
            )
        fitted = cls(config, views)
        fitted.problems = problems
        return fitted

    def transform(self, catalogue: Catalogue, folder: Path | str | None = None) -> dict[str, FeatureMatrix]:
        """Rows of all views for all items of a catalogue.

        Args:
            catalogue: Any number of items; what it lacks is absent.
            folder: What relative cover paths start from.

        Returns:
            View name → float32 rows (zero where absent) and mask, in the order of :attr:`names`.

        Raises:
            InputError: A feature has another width than in training, or covers are paths and no folder is given.
        """
        n_items = count_items(catalogue)
        root = None if folder is None else Path(folder)
        problems: list[str] = []
        rows = {name: view.transform(catalogue, n_items, root, problems) for name, view in self.views.items()}
        self.problems = problems
        return rows

    def save(self, folder: Path | str) -> None:
        """Write ``views.json`` and a safetensors file that it names by its content, replacing what was there.

        The new state counts from the moment that ``views.json`` is renamed into place: a process killed before
        leaves the old one whole.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        entries: list[dict[str, Any]] = []
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, view in self.views.items():
            about, own = view.state()
            arrays |= {f"{name}.{key}": np.ascontiguousarray(array) for key, array in own.items()}
            entries.append({"name": name, "kind": view.kind, "dim": view.dim, "arrays": list(own), **about})
        content = pack_arrays(arrays)
        digest = hashlib.sha256(content).hexdigest()
        file = folder / f"views-{digest[:12]}.safetensors"
        with atomic_path(file) as temporary:
            temporary.write_bytes(content)
        manifest = {
            "format_version": FORMAT_VERSION,
            "config": self.config.model_dump(mode="json"),
            "file": file.name,
            "sha256": digest,
            "views": entries,
        }
        write_json(folder / MANIFEST, manifest)
        for old in folder.glob("views-*.safetensors"):
            if old != file:
                old.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read what :meth:`save` wrote; every bit is as it was.

        Raises:
            InputError: A file is missing, torn, changed, or of a newer version.
        """
        path = Path(folder) / MANIFEST
        try:
            manifest = read_json(path)
            if manifest["format_version"] != FORMAT_VERSION:
                raise InputError(
                    f"format version {manifest['format_version']!r} of the views is not known", path=path,
                    hint="install a newer firstlight",
                )  # fmt: skip
            file = path.with_name(Path(manifest["file"]).name)
            if hash_file(file) != manifest["sha256"]:
                raise InputError("this file is not the one that was written (its hash differs)", path=file)
            arrays = parse_arrays(file.read_bytes())
            config = ViewsConfig.model_validate(manifest["config"])
            return cls(config, {entry["name"]: _load_one(entry, arrays) for entry in manifest["views"]})
        except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
            raise InputError(f"the views cannot be read ({error})", path=path) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this does not describe views ({error!r})", path=path) from error


def _fit_one(
    kind: str,
    name: str,
    config: ViewsConfig,
    catalogue: Catalogue,
    warm: npt.NDArray[np.bool_],
    seed: int,
    folder: Path | None,
) -> View:
    if kind == TextView.kind:
        return TextView.fit(config.text, catalogue, warm, seed)
    if kind == SentenceView.kind:
        return SentenceView.fit(config.sentence, catalogue, warm)
    if kind == CoverView.kind:
        return CoverView.fit(config.cover, catalogue, warm, folder)
    if kind == EncoderView.kind:
        return EncoderView.fit(config.encoder, catalogue, warm, folder)
    if kind == ClipView.kind:
        return ClipView.fit(config.clip, catalogue, warm, folder)
    return FeatureView.fit(config.features, name, catalogue, warm)


def _load_one(entry: dict[str, Any], arrays: Arrays) -> View:
    own = {key: arrays[f"{entry['name']}.{key}"] for key in entry["arrays"]}
    view: View = _KINDS[entry["kind"]].from_state(entry, own)
    if view.dim != entry["dim"]:
        raise ValueError(f"view {entry['name']!r} is {view.dim} wide, not {entry['dim']}")
    return view
