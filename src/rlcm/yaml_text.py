"""YAML as the project reads and writes it: no key twice, no guesses at what an unquoted text may mean."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from rlcm.lookalikes import torn, unquoted

MOST = 1_000_000
"""Values of one text, those that aliases repeat counted again."""
DEEPEST = 100
"""Brackets inside one another."""
_TAG = "tag:yaml.org,2002:"
_WHOLE = "(?:0|[1-9](?:_?[0-9])*)"
_DIGITS = "[0-9](?:_?[0-9])*"
_POWER = "[eE][-+]?[0-9]+"
_INT = re.compile(rf"[-+]?(?:{_WHOLE}|0x[0-9a-fA-F](?:_?[0-9a-fA-F])*|0b[01](?:_?[01])*)\Z")
_FLOAT = re.compile(
    rf"[-+]?(?:(?:{_WHOLE}\.(?:{_DIGITS})?|\.{_DIGITS})(?:{_POWER})?|{_WHOLE}{_POWER}|\.(?:inf|Inf|INF))\Z|\.(?:nan|NaN|NAN)\Z"
)
_BREAKS = re.compile("[\x85\u2028\u2029]")
_SIMPLE = re.compile(r"[A-Za-z][\w.\-/ ]*\Z")


class Written(str):
    """An unquoted scalar that means something else than its text, such as `no`, `1.10` or `null`.

    What it is taken for depends on the setting: a setting of type text takes it as it is written, any other takes `value`.
    """

    value: bool | int | float | None

    def __new__(cls, text: str, value: bool | int | float | None = None) -> Written:
        """Return a text with what it means."""
        made = super().__new__(cls, text)
        made.value = value
        return made

    def __repr__(self) -> str:
        return str(self)


def read_yaml(text: str) -> Any:
    """Return what a YAML text holds; unquoted scalars that are no text are `Written`, `None` is an empty text.

    Numbers are decimal and without leading zeros; 1e-4 is one. What is no number by that, such as 0012, 1:30 or a date, is text.

    Raises:
        ValueError: whatever is wrong with it, in one line.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(_in_one_line(error, text)) from error
    # Tags and scalars that YAML itself lets pass fail in the constructors in many ways: `!!int ''`, `!!timestamp x`.
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    finally:
        if loader is not None:
            loader.dispose()


def meant(value: Any) -> Any:
    """Return nested values of `read_yaml` as YAML means them: scalars that are no text as what they are.

    Keys stay texts, since those of a configuration that was written are.
    """
    if isinstance(value, Written):
        return value.value
    if isinstance(value, dict):
        return {str(key) if isinstance(key, str) else key: meant(entry) for key, entry in value.items()}
    return [meant(entry) for entry in value] if isinstance(value, list) else value


def write_yaml(value: Any, *, flow: bool = False) -> str:
    """Return a value as YAML that `read_yaml` and other readers read alike.

    Args:
        flow: on one line, with brackets.
    """
    kind, width = (_FlowDumper, float("inf")) if flow else (_Dumper, 120)
    text: str = yaml.dump(value, Dumper=kind, sort_keys=False, allow_unicode=True, width=width, default_flow_style=flow)
    return text.strip().removesuffix("\n...") if flow else text  # which a scalar alone ends in


class _Loader(yaml.SafeLoader):
    def fetch_flow_collection_start(self, kind: Any) -> None:
        if self.flow_level >= DEEPEST:  # the time that PyYAML takes grows with the square of it
            raise RecursionError
        super().fetch_flow_collection_start(kind)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here, since a node is still as it was written: merge keys are unfolded later.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                first = lines[key.value]
                where = f"lines {first} and {line}" if first != line else f"line {line}"
                raise ValueError(f"the key {key.value!r} stands twice, in {where}; keep one of them")
            lines[key.value] = line
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        value = super().construct_object(node, deep)
        if isinstance(node, yaml.ScalarNode) and node.style is None and isinstance(value, str):
            _refuse_typographic(value, node.start_mark.line + 1)
        if not isinstance(node, yaml.ScalarNode) or node.style is not None or isinstance(value, str):
            return value
        tagged = node.tag != self.resolve(yaml.ScalarNode, node.value, (True, False))
        return value if tagged else Written(node.value, value)

    def refuse_set(self, node: yaml.Node) -> None:
        raise ValueError(f"line {node.start_mark.line + 1} holds a set (!!set), which has no order; write a list: [a, b]")


_Loader.add_constructor(_TAG + "set", _Loader.refuse_set)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Unescaped, these would be read as line feeds.
        quoted = _BREAKS.search(data) or unquoted(data) is not None or torn(data)
        return self.represent_scalar(_TAG + "str", data, style='"' if quoted else None)

    def represent_written(self, data: Any) -> yaml.ScalarNode:
        text = str(data) or "null"
        return self.represent_scalar(self.resolve(yaml.ScalarNode, text, (True, False)), text)


class _FlowDumper(_Dumper):
    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar(_TAG + "str", data, style=None if _SIMPLE.match(data) else '"')


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_representer(Written, _Dumper.represent_written)
_FlowDumper.add_representer(str, _FlowDumper.represent_str)
_FlowDumper.add_representer(Written, _FlowDumper.represent_written)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag.removeprefix(_TAG) not in ("int", "float", "timestamp", "value")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in (_Loader, _Dumper):  # what either reader takes for a number is written in quotes where it is text
    _kind.add_implicit_resolver(_TAG + "int", _INT, list("-+0123456789"))
    _kind.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))


def _refuse_typographic(text: str, line: int) -> None:
    """Refuse an unquoted text in typographic quotes, which would be part of it."""
    inner = unquoted(text)
    if inner is None and not torn(text):
        return
    if inner is None:
        raise ValueError(
            f"{text} in line {line} begins with a typographic quote, which YAML takes for a letter; put the whole text into "
            f"straight quotes, such as {json.dumps(text[1:], ensure_ascii=False)}"
        )
    is_text = not (inner[:1] + inner[-1:] in ("[]", "{}") or _INT.match(inner) or _FLOAT.match(inner))
    remedy = json.dumps(inner, ensure_ascii=False) if is_text else inner
    raise ValueError(
        f"the quotes of {text} in line {line} are typographic ones, which YAML takes for letters; write {remedy}, or "
        f"{json.dumps(text, ensure_ascii=False)} where they belong to the text"
    )


def _measure(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node holds, what its aliases stand for included, before any of it is made."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 0  # until all of it is counted; what is met with this holds itself
        parts = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_measure(part, known) for part in parts)
    count = known[id(node)]
    if not count:
        raise ValueError(f"the value in line {node.start_mark.line + 1} holds itself")
    if count > MOST:
        raise ValueError(f"its aliases unfold to more than {MOST:,} values")
    return count


def _in_one_line(error: yaml.YAMLError, text: str) -> str:
    mark = getattr(error, "problem_mark", None)
    said = " ".join(str(getattr(error, "problem", None) or error).split())
    if mark is None:
        return said
    lines = text.split("\n")
    line = lines[mark.line].strip()[:80] if mark.line < len(lines) else ""
    return f"{said} (line {mark.line + 1}, column {mark.column + 1}{': ' + repr(line) if line else ''})"
