"""A configuration that an earlier version of this software wrote out, as the present one reads it."""

from __future__ import annotations

from collections.abc import Mapping

from megatron_rl.spec import resolve
from megatron_rl.spec.run import SECTIONS, Section
from megatron_rl.spec.schema import SpecError
from megatron_rl.spec.tree import BY_NAME
from megatron_rl.spec.values import complete


def completed(began: object) -> dict[str, object]:
    """`RunSpec.plain` of then, with the defaults of sections and keys that have come since.

    What is not known any more stays where it was written, so that it still differs from any configuration of now.
    """
    if not isinstance(began, Mapping):
        raise SpecError(
            f"the run's spec.yaml holds no configuration but {began!r:.40}, so nobody knows what began its folder; "
            "remove that file to go on with the present one, or give the run another run.name."
        )
    sections = {
        section.name: completed_section(section.name, began.get(section.name, _unwritten(section)))
        for section in SECTIONS
        if section.name in began or _unwritten(section) is not None
    }
    return {**began, **sections}


def completed_section(name: str, written: object) -> object:
    """The same of one section; anything that is none comes back as it is."""
    section = BY_NAME.get(name)
    if section is None:
        return written
    if section.kind == "settings":
        return complete(resolve.settings(section), written) if isinstance(written, Mapping) else written
    if section.kind == "chain" and isinstance(written, list):
        return [_named(section, step) for step in written]
    return _named(section, written)


def _unwritten(section: Section) -> Mapping[str, object] | None:
    """What stands for a section that is not there; None where one must be written."""
    if section.kind == "settings":
        return {}
    return {section.default: {}} if section.default else None


def _named(section: Section, written: object) -> object:
    """A choice, or a step of a chain: {name: {keys}}."""
    if not isinstance(written, Mapping) or len(written) != 1:
        return written
    ((name, keys),) = written.items()
    if not isinstance(keys, Mapping):
        return written
    try:
        shape = resolve.find(str(name), section.room)
    except SpecError:  # there is no such idea any more
        return written
    return {name: complete(shape, keys)}
