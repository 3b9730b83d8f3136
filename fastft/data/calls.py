"""Tools, and calls of tools, in the one form that chat templates expect (OpenAI's), from the forms of real files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastft.data.json_rows import json_kind
from fastft.data.values import as_list
from fastft.errors import DataError, Problem, Where

# What other makers call the arguments of a call, and the schema of a tool's parameters.
_ARGUMENTS = ("arguments", "args", "input", "parameters")
_SCHEMA = ("parameters", "input_schema", "inputSchema")
_CALL = 'write {"type": "function", "function": {"name": "...", "arguments": {...}}}'
_FORM = {"name", "arguments"}


def read_calls(value: object, where: Where, field: str) -> list[Mapping[str, Any]]:
    """The calls of a turn: a list of them or one, as objects or JSON text, with `function` or flat.

    Raises:
        DataError: one has no name, or its arguments are no JSON object.
    """
    value = _parsed(value, where, field)
    calls = [value] if isinstance(value, Mapping) else as_list(value, where, field)
    return [_call(call, where, f"{field}[{index}]") for index, call in enumerate(calls)]


def read_tools(value: object, where: Where, field: str = "tools") -> tuple[Mapping[str, Any], ...]:
    """The tools of a row, each `{"type": "function", "function": {...}}`; a list of them, or its JSON text.

    Raises:
        DataError: it is no list of objects.
    """
    if isinstance(value, str) and value.strip():
        value = _parsed(value, where, field)
    if not value:
        return ()
    tools = []
    for index, tool in enumerate(as_list(value, where, field)):
        place = f"{field}[{index}]"
        read = _parsed(tool, where, place) if isinstance(tool, str) else tool
        if not isinstance(read, Mapping):
            raise DataError(
                Problem(where, f"{field}[{index}]", "not a tool", "write a JSON schema", got=json_kind(tool))
            )
        tools.append(_tool(read, where, f"{field}[{index}]"))
    return tuple(tools)


def without_padding(calls: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The calls without null arguments that their tool does not have.

    Files that were written from Arrow tables hold them: there, each call of a column has the arguments of all.
    """
    declared: dict[object, object] = {}
    for tool in tools:
        function = tool.get("function")
        if isinstance(function, Mapping):
            schema = function.get("parameters")
            declared[function.get("name")] = schema.get("properties") if isinstance(schema, Mapping) else None
    return [_without_padding(call, declared.get(call["function"]["name"])) for call in calls]


def _without_padding(call: Mapping[str, Any], properties: object) -> Mapping[str, Any]:
    function = call["function"]
    if not isinstance(properties, Mapping) or None not in function["arguments"].values():
        return call
    kept = {name: value for name, value in function["arguments"].items() if value is not None or name in properties}
    return {**call, "function": {**function, "arguments": kept}}


def _call(call: object, where: Where, field: str) -> Mapping[str, Any]:
    call = _parsed(call, where, field)
    if not isinstance(call, Mapping):
        raise DataError(Problem(where, field, "not a call of a tool", _CALL, got=json_kind(call)))
    function = call.get("function", call)
    if not isinstance(function, Mapping):
        function = {**call, "name": function} if isinstance(function, str) else {}
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        got = ", ".join(map(str, function)) or "an empty object"
        raise DataError(Problem(where, field, 'the call has no "name"', _CALL, got=got))
    given: object = next((function[key] for key in _ARGUMENTS if function.get(key) is not None), {})
    arguments = _arguments(given, where, f"{field}.arguments")
    if arguments is given and function is not call and function.keys() == _FORM:
        return call
    identity = {"id": call["id"]} if call.get("id") is not None else {}
    return {**identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _arguments(value: object, where: Where, field: str) -> Mapping[str, Any]:
    """The arguments as an object: templates that write JSON text as JSON would put quotes around it."""
    if isinstance(value, str):
        value = (_parsed(value, where, field) if value.strip() else None) or {}
    if not isinstance(value, Mapping):
        raise DataError(Problem(where, field, "not an object", 'write {"name": value}', got=json_kind(value)))
    return value


def _tool(tool: Mapping[str, Any], where: Where, field: str) -> Mapping[str, Any]:
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return tool  # no known form: the template may know it, and what it leaves out is found after rendering
    schema_key = next((key for key in _SCHEMA if function.get(key) is not None), None)
    schema = function[schema_key] if schema_key else None
    read = _parsed(schema, where, f"{field}.parameters") if isinstance(schema, str) else schema
    read = _without_null_properties(read)
    if function is not tool and read is schema and schema_key in (None, "parameters"):
        return tool
    rest = {key: value for key, value in function.items() if key not in (*_SCHEMA, "type")}
    return {"type": "function", "function": rest if schema_key is None else {**rest, "parameters": read}}


def _without_null_properties(schema: object) -> object:
    """The schema without properties that are null, which is no schema: Arrow gives every tool the properties of all."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping) or None not in properties.values():
        return schema
    assert isinstance(schema, Mapping)  # noqa: S101 -- it has properties
    return {**schema, "properties": {name: value for name, value in properties.items() if value is not None}}


def _parsed(value: object, where: Where, field: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(Problem(where, field, f"not valid JSON: {error}", "write JSON")) from error
