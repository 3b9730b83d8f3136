"""Added tokens in the model: rows of embedding and output layer that begin as the mean of their pieces."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken

from fastft.errors import Problem, TrainingError, Where
from fastft.planning.plan import Plan


def add_tokens(plan: Plan, model: Any, tokenizer: Any) -> None:
    """Add the tokens of the plan to `tokenizer`, and to `model` a row for each where it has none.

    Each row of an added token, of the embedding (tokens, hidden) and of the output layer, becomes the mean of the rows
    of the pieces that its text was before (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
    Models", takes the mean of all rows; the pieces are nearer). Rows that grew without a token get the mean of all.

    Raises:
        TrainingError: the tokenizer gives other ids than rows were prepared with, or the model ties its layers
            otherwise than its config says.
    """
    if not plan.calls.tokens:
        return
    where = Where(plan.recipe)
    pieces = _pieces(plan, tokenizer)
    for call in plan.calls.tokens:
        special = call.kwargs["special_tokens"]
        texts = [AddedToken(text, normalized=False, special=special) for text in call.kwargs["new_tokens"]]
        if tokenizer.add_tokens(texts, special_tokens=special) != len(texts):
            wrong = f"the tokenizer of the engine has one of {', '.join(call.kwargs['new_tokens'])} already"
            raise TrainingError(Problem(where, "data.add_tokens", wrong, "remove it, or use another engine"))
    before = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > before:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    layers = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    tied = layers[0] is layers[1] or layers[0].data_ptr() == layers[1].data_ptr()
    adapter = plan.calls.adapter
    if adapter is not None and tied is not ("ensure_weight_tying" in adapter.kwargs):
        wrong = f"its output layer {'is' if tied else 'is not'} the embedding, unlike its config.json says"
        raise TrainingError(Problem(where, "model.id", wrong, "correct tie_word_embeddings there"))
    with torch.no_grad():
        for weight in layers[:1] if tied else layers:
            own = weight[:before].float()
            if weight.shape[0] > before:
                weight[before:] = own.mean(0).to(weight.dtype)
            means = {token: own[ids].mean(0) for token, ids in pieces.items()}
            for text, mean in means.items():
                weight[tokenizer.convert_tokens_to_ids(text)] = mean.to(weight.dtype)


def _pieces(plan: Plan, tokenizer: Any) -> dict[str, list[int]]:
    """The ids of each new token's text, as the tokenizer reads it before they are added."""
    texts = [text for call in plan.calls.tokens for text in call.kwargs["new_tokens"]]
    return {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts}
