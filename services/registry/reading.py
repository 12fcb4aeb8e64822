"""What a stranger's query may be, pure: DuckDB's own parser gives the tree, and here it is walked.

Theory of operation. Three walls stand one behind the other. The parser accepts nothing but one select here (its JSON
knows no other statement; but since DuckDB 2.0 a named part of a select may insert, update, delete or copy). This walk
lets through only what reads, the registry's own tables, the query's own named parts, and functions that make rows out
of numbers: table functions that read files, pointers or settings never reach the engine. And the engine itself has
external access off, its configuration locked, and a transaction in which nothing can be written (`store`).
"""

from typing import Any

ROW_FUNCTIONS = frozenset(("range", "generate_series", "unnest"))
# Scalar functions that look beyond their arguments, leave something behind, or only wait. A plan is of another query,
# on which nobody has walked, and says what its settings come to.
NO_FUNCTIONS = frozenset(
    (
        "getenv", "getvariable", "current_setting", "set_config", "nextval", "currval", "setseed", "write_log",
        "parse_duckdb_log_message", "json_execute_serialized_sql", "json_serialize_plan", "sleep_ms", "pg_sleep",
        "icu_sort_key",
    )
)  # fmt: skip
# Scalar functions that make one value of any size out of a number: the engine neither counts that memory nor looks
# meanwhile whether it is to stop. (What doubles a text many times over gets through: docs/ledger.md.)
LARGE_FUNCTIONS = frozenset(
    (
        "range", "generate_series", "repeat", "lpad", "rpad", "format", "printf", "bitstring", "list_resize",
        "array_resize",
    )
)  # fmt: skip
# What a query is made of, at any depth. The others write: what a later engine brings is refused until it stands here.
READING = frozenset(("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"))
SHOWN = frozenset(("DESCRIBE", "SUMMARY"))


def refusal(parsed: dict[str, Any], tables: frozenset[str], hidden: frozenset[str]) -> str:
    """Why this query is not run; "" when it may be. `parsed` is what `json_serialize_sql` says of it.

    `hidden` are the names that mean something to the engine besides `tables`: a part of the query that bears one would
    let another part of it, where the name means the engine's own, through.
    """
    if parsed.get("error"):
        return f"only one select is answered here: {parsed.get('error_message', 'it cannot be parsed')}"
    statements = parsed.get("statements") or []
    if len(statements) != 1:
        return f"one select at a time: these are {len(statements)} statements"
    named = frozenset(_named(statements[0]))
    if taken := sorted(named & hidden):
        return f"a part of the query may not be named {taken[0][:80]}: the engine has something of that name"
    return _walk(statements[0], tables | named, tables)


def _named(node: Any) -> list[str]:
    """The names that the query itself gives to parts of it."""
    if isinstance(node, list):
        return [name for one in node for name in _named(one)]
    if not isinstance(node, dict):
        return []
    found = [name for one in node.values() for name in _named(one)]
    parts = node.get("cte_map")
    if isinstance(parts, dict):
        found += [one["key"].lower() for one in parts.get("map", [])]
    return found


def _walk(node: Any, known: frozenset[str], tables: frozenset[str]) -> str:
    if isinstance(node, list):
        return next((why for one in node if (why := _walk(one, known, tables))), "")
    if not isinstance(node, dict):
        return ""
    kind = node.get("type")
    if kind == "BASE_TABLE":
        path = [part.lower() for part in node["qualified_name"]["path"]]
        if path[-1] not in known if len(path) == 1 else path[:-1] != ["main"] or path[-1] not in tables:
            return f"there is no table {'.'.join(path)[:80]}; there are {', '.join(sorted(tables))}"
    elif kind == "SHOW_REF":
        if node.get("show_type") not in SHOWN:
            return "only describe and summarize are answered"
    elif kind == "TABLE_FUNCTION":
        function = node.get("function") or {}
        if _name(function) not in ROW_FUNCTIONS:
            return f"the function {_name(function)[:80]} is not available"
        return _walk([value for value in function.values() if isinstance(value, dict | list)], known, tables)
    elif isinstance(kind, str) and kind.endswith("_NODE") and kind not in READING:
        return f"only what reads is answered, at any place of a query: there is no {kind.split('_')[0].lower()} here"
    elif node.get("class") in ("FUNCTION", "WINDOW") and (name := _name(node)) in NO_FUNCTIONS | LARGE_FUNCTIONS:
        instead = f"; `from {name}(…)` is" if name in ROW_FUNCTIONS else ""
        return f"the function {name} is not available{instead}"
    return _walk([value for value in node.values() if isinstance(value, dict | list)], known, tables)


def _name(function: dict[str, Any]) -> str:
    return str(function.get("function_name", "")).lower()
