"""Whether the files a run names are there and can be read, told before any process starts."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_rl.spec.run import RunSpec
from megatron_rl.spec.schema import SpecError


def read_model_config(spec: RunSpec) -> dict[str, object]:
    """The config.json of the run's model."""
    part = spec.settings["model"]
    folder = Path(str(part.values["folder"]))
    path = folder / "config.json"
    what = f"{part.place}: 'model.folder' is '{folder}'"
    if not folder.is_dir():
        beside = (
            sorted(other.name for other in folder.parent.iterdir() if other.is_dir()) if folder.parent.is_dir() else []
        )
        hint = f"; beside it are {', '.join(beside[:8])}" if beside else ""
        raise SpecError(f"{what}, which is no folder here{hint}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{what}, which holds no config.json; it should be a Hugging Face model folder.") from None
    except (OSError, ValueError) as error:
        raise SpecError(f"{what}, whose config.json cannot be read: {error}.") from None
    if not isinstance(config, dict):
        raise SpecError(f"{what}, whose config.json should hold an object, but holds {config!r:.60}.")
    return config
