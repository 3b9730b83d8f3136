"""Write the pairs of recipes/quickstart_preference.toml: the quickstart's messages, each with two replies.

The chosen reply is one short sentence with the item and what happens next; the rejected one says the same with much
courtesy around it. No held-out row shares an item, order number, date or phrasing of the customer with a training row
(make_support_triage.py).
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
ROWS = {"train": 80, "eval": 50}
SHORT = (
    "We are checking order {order} and will write today.",
    "We will look into the {item} and write today.",
    "The {item} is with our team; you hear from us today.",
    "Order {order} is being checked; we write today.",
)
OPENINGS = (
    "Dear customer, thank you so much for reaching out to us today!",
    "Hello and thank you for contacting our support team!",
    "Thank you for your message! Your satisfaction is very important to us.",
)
ENDINGS = (
    "Please do not hesitate to contact us at any time!",
    "Please let us know if you have any further questions. Have a wonderful day!",
    "Thank you again for being such a valued customer.",
)


def main() -> None:
    """Write train.jsonl and eval.jsonl."""
    out = HERE / "support_replies"
    out.mkdir(exist_ok=True)
    for split, count in ROWS.items():
        lines = []
        rows = (HERE / "support_triage" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(rows[:count]):
            *_, question, answer = json.loads(line)["messages"]
            facts = dict(pair.split(": ", 1) for pair in answer["content"].splitlines())
            said = SHORT[number % len(SHORT)]
            if facts["order"] == "null" or facts["item"] == "null":
                said = "We are checking this and will write today."
            chosen = said.format(**facts)
            opening, ending = OPENINGS[number % len(OPENINGS)], ENDINGS[number // 3 % len(ENDINGS)]
            prompt = [{"role": "system", "content": "Reply to the customer."}, question]
            row = {"prompt": prompt, "chosen": chosen, "rejected": f"{opening} {chosen} {ending}"}
            lines.append(json.dumps(row) + "\n")
        (out / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
