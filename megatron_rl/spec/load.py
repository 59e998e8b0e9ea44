"""A configuration file, what it extends and what the command line changes, read into a checked `RunSpec`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from megatron_rl.spec import resolve, tree
from megatron_rl.spec.reading import Node, read_file
from megatron_rl.spec.run import SECTIONS, Part, RunSpec, Section
from megatron_rl.spec.schema import Shape, SpecError, nearest
from megatron_rl.spec.values import complete, read_section

SHIPPED: Final = Path(__file__).parent.parent.parent / "configs"
"""Where `extends` also looks: the configurations that come with the package's sources."""


def load(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """The run that a file and `a.b=c` overrides describe; SpecError lists everything that is wrong with it."""
    problems: list[str] = []
    pairs = tree.read_overrides(overrides, problems)
    base = next((value for keys, value in pairs if keys == ("extends",)), None)
    root, files = _read_extended(path, base, ())
    for keys, value in pairs:
        if keys != ("extends",):
            root = tree.with_override(root, keys, value, problems)
    spec = _checked(root, files, problems)
    if problems:
        raise SpecError(problems)
    return spec


def _read_extended(path: Path, base: Node | None, above: tuple[Path, ...]) -> tuple[Node, tuple[str, ...]]:
    """The file laid over what it extends. `base` takes the place of what it says itself."""
    root = read_file(path)
    if not isinstance(root.value, dict):
        raise AssertionError("read_file gives mappings")
    sections = dict(root.value)
    written = sections.pop("extends", None)
    root = tree.in_one_form(Node(sections, root.place))
    named = base or written
    if named is None:
        return root, (str(path),)
    name, place = named.value, named.place
    if not isinstance(name, str):
        raise SpecError(f"{place}: 'extends' should be the path of one configuration, but is {named.kind}.")
    found = _base_file(name, path, place)
    if found.resolve() in {file.resolve() for file in (*above, path)}:
        raise SpecError(
            f"{place}: '{name}' extends itself by way of {path}; a configuration has one line of ancestors."
        )
    under, files = _read_extended(found, None, (*above, path))
    return tree.merged(under, root), (str(path), *files)


def _base_file(name: str, path: Path, place: str) -> Path:
    candidates = [path.parent / name, SHIPPED / name]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        shipped = (str(file.relative_to(SHIPPED)) for file in SHIPPED.rglob("*.yaml"))
        raise SpecError(
            f"{place}: 'extends' names '{name}', which is neither beside {path} nor shipped{nearest(name, shipped)}."
        )
    return found


def _checked(root: Node, files: tuple[str, ...], problems: list[str]) -> RunSpec:
    written = root.value if isinstance(root.value, dict) else {}
    problems.extend(
        f"{node.place}: there is no section '{name}'{nearest(name, [*tree.BY_NAME, 'extends'])}."
        for name, node in written.items()
        if name not in tree.BY_NAME
    )
    settings: dict[str, Part] = {}
    choices: dict[str, Part] = {}
    chains: dict[str, tuple[Part, ...]] = {}
    for section in SECTIONS:
        node = written.get(section.name)
        if section.kind == "chain":
            chains[section.name] = _chain(section, node, root.place, problems)
        elif section.kind == "choice":
            found = _choice(section, node, root.place, problems)
            choices |= {section.name: found} if found else {}
        else:
            node = node or Node({}, root.place)
            settings[section.name] = _part(resolve.settings(section), section.name, (section.name, node), problems)
    return RunSpec(settings=settings, choices=choices, chains=chains, files=files)


def _part(shape: Shape, path: str, named: tuple[str, Node], problems: list[str]) -> Part:
    name, node = named
    given = read_section(shape, node, path, problems)
    values = complete(shape, given)
    return Part(path=path, name=name, target=shape.target, given=given, values=values, place=node.place)


def _idea(room: str, path: str, named: tuple[str, Node], problems: list[str]) -> Part | None:
    name, node = named
    try:
        shape = resolve.find(name, room)
    except SpecError as error:
        problems.extend(f"{node.place}: {problem}." for problem in error.problems)
        return None
    return _part(shape, path, named, problems)


def _choice(section: Section, node: Node | None, place: str, problems: list[str]) -> Part | None:
    if node is None and section.default:
        node = Node({section.default: Node({}, place)}, place)
    if node is None:
        known = ", ".join(resolve.known(section))
        problems.append(f"{place}: the section '{section.name}' is missing; choose one of {known}.")
        return None
    if not isinstance(node.value, dict) or len(node.value) != 1:
        problems.append(f"{node.place}: '{section.name}' should be one name, with its keys if any, but is {node.kind}.")
        return None
    ((name, fields),) = node.value.items()
    if section.known and ":" not in name and name not in resolve.known(section):
        here = resolve.known(section)
        problems.append(f"{node.place}: '{section.name}' is '{name}', which is not among them{nearest(name, here)}.")
        return None
    return _idea(section.room, section.name, (name, fields), problems)


def _chain(section: Section, node: Node | None, place: str, problems: list[str]) -> tuple[Part, ...]:
    if node is None or not isinstance(node.value, list):
        came = f"is {node.kind}" if node else "is missing"
        at = node.place if node else place
        problems.append(f"{at}: '{section.name}' should be a list of stages, as in [generate, judge], but {came}.")
        return ()
    parts = []
    for number, step in enumerate(node.value):
        name = tree.step_name(step)
        if name:
            named = (name, tree.step_fields(step))
            parts.append(_idea(section.room, f"{section.name}.{name}", named, problems))
        else:
            problems.append(
                f"{step.place}: item {number} of '{section.name}' should be a stage's name, but is {step.kind}."
            )
    return tuple(part for part in parts if part is not None)
