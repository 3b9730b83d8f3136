"""Arguments in YAML, read by PyYAML's safe loader within limits."""

from __future__ import annotations

from typing import Any

from fastft.errors import Problem, UsageError, Where
from fastft.migration.arguments import Argument, Source

# An example has 100 values. Aliases can make billions of a few lines.
MOST_VALUES = 20_000
MOST_BYTES = 256 * 1024


def read_yaml(path: str, text: str) -> Source:
    """The arguments of a YAML file, and whose they are.

    Raises:
        UsageError: it is no YAML table, too large, or of no tool that is known.
    """
    import yaml  # late: no other command needs it

    def fail(wrong: str, line: int | None = None) -> UsageError:
        return UsageError(Problem(Where(path, line), "", wrong, "name an Axolotl, LLaMA-Factory or TRL file"))

    if len(text.encode()) > MOST_BYTES:
        raise fail(f"is larger than {MOST_BYTES // 1024} KiB")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode) or _size(node, {}) > MOST_VALUES:
            raise fail("is no YAML table" if not isinstance(node, yaml.MappingNode) else "has too many values")
        loader = yaml.SafeLoader("")
        loader.flatten_mapping(node)
        arguments = tuple(
            Argument(str(key.value), loader.construct_object(value, deep=True), key.start_mark.line + 1)
            for key, value in node.value
        )
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or "cannot be read"
        raise fail(f"is not valid YAML: {said}", mark.line + 1 if mark else None) from None
    except (RecursionError, ValueError, TypeError):
        raise fail("is nested too deeply, or has a value that YAML cannot hold") from None
    return Source(path, "YAML", _tool({argument.name for argument in arguments}, fail), arguments)


def _size(node: Any, known: dict[int, int]) -> int:
    """How many values `node` has once its aliases are written out."""
    import yaml

    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # where it holds itself
        parts = node.value if isinstance(node, yaml.SequenceNode) else ()
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _tool(names: set[str], fail: Any) -> str:
    """The tool whose keys these are."""
    if "base_model" in names and names & {"datasets", "pretraining_dataset", "adapter", "micro_batch_size", "rl"}:
        return "Axolotl"
    if "model_class" in names:
        raise fail("is of the experimental v1 of LLaMA-Factory, whose keys are others")
    if "stage" not in names and names & {"infer_backend", "export_dir"}:
        raise fail("is for chat or export, and trains nothing")
    if names & {"stage", "finetuning_type", "cutoff_len"}:
        return "LLaMA-Factory"
    if "model" in names and names & {"tuner_type", "train_type", "dataset"}:
        return "ms-swift"
    if "model_name_or_path" in names:
        return "TRL"
    if names & {"compute_environment", "distributed_type"}:
        raise fail("says how Accelerate starts processes, and trains nothing")
    raise fail("has the keys of no tool that fastft knows")
