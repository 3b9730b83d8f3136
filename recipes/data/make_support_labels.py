"""Write the rows of recipes/quickstart_classification.toml: the quickstart's messages, each with its kind as label.

No held-out row shares an item, order number, date or phrasing with a training row (make_support_triage.py).
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Write train.jsonl and eval.jsonl."""
    out = HERE / "support_labels"
    out.mkdir(exist_ok=True)
    for split in ("train", "eval"):
        lines = []
        for line in (HERE / "support_triage" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            *_, question, answer = json.loads(line)["messages"]
            label = answer["content"].splitlines()[0].removeprefix("type: ")
            lines.append(json.dumps({"text": question["content"], "label": label}) + "\n")
        (out / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
