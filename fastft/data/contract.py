"""The contract of a row, checked on the arrays that are trained.

The renderer makes rows that keep it. This checks the arrays again, in case a later step changed them: a collator that
masks padding by its token id, for example, would remove the loss from every real end-of-turn token.
"""

from __future__ import annotations

from array import array

from fastft.data.encode import Encoded, carries_loss, labels_with_loss_on
from fastft.data.render import Renderer
from fastft.errors import Problem


def check_encoded(row: Encoded, renderer: Renderer, *, plain_text: bool = False) -> Problem | None:
    """What is wrong with the row, or None: some tokens carry loss, each answer ends, one BOS, labels equal ids."""
    ids, labels, facts = row.input_ids, row.labels, renderer.tokenizer
    if len(ids) != len(labels):
        return _broken(row, f"{len(ids)} tokens have {len(labels)} labels", "each token needs one label")
    runs = _runs(labels)
    if not runs:
        return _broken(row, "no token carries loss", "the row teaches nothing: was its answer cut off?")
    if labels != labels_with_loss_on(ids, runs):
        return _broken(row, "a label is not the token at its position", "labels are input_ids or -100, never shifted")
    bos = facts.id_of(facts.bos_token) if facts.bos_token else None
    if bos is not None and ids[:2].tolist() == [bos, bos]:
        return _broken(row, f"begins with two {facts.bos_token}", "write it once")
    if facts.adds_bos and ids[0] != bos:
        return _broken(row, f"does not begin with {facts.bos_token}", "this model needs it before every text")
    if plain_text or renderer.train_on == "all":
        return None
    return _check_answers(row, renderer, runs)


def _runs(labels: array[int]) -> list[tuple[int, int]]:
    """The unbroken runs of labels that carry loss, as (start, end)."""
    carries = carries_loss(labels)
    runs = []
    start = carries.find(1)
    while start >= 0:
        end = carries.find(0, start)
        end = len(carries) if end < 0 else end
        runs.append((start, end))
        start = carries.find(1, end)
    return runs


def _check_answers(row: Encoded, renderer: Renderer, runs: list[tuple[int, int]]) -> Problem | None:
    """What is wrong, or None: each unbroken run of tokens with loss is one answer with text and its end token."""
    name = renderer.end_of_turn[0]
    for start, end in runs:
        answer = row.input_ids[start:end]
        place = f"at tokens {start} to {end - 1}"
        if answer[-1] not in renderer.stop_ids:
            wrong = f"the answer {place} has no {name} with loss: the model would not learn to stop"
            return _broken(row, wrong, "was it cut off, or its end masked as padding?")
        if len(answer) == 1:
            return _broken(row, f"the answer at token {start} is only {name}", "was the mask shifted?")
        if not renderer.control_ids.isdisjoint(answer[:-1]):
            wrong = f"the loss {place} continues into another turn"
            return _broken(row, wrong, "end every answer with its own token, and train answers only")
    return None


def _broken(row: Encoded, wrong: str, instead: str) -> Problem:
    return Problem(row.where, "", wrong, instead)
