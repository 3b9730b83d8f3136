"""Published tokenizers read by llama.cpp as fastft exports them, beside the ids of training.

    PYTHONPATH=. python benchmarks/read_ids.py phi-3-mini=FOLDER:phi:phi3 ...     writes read_ids.json here

Those of the package llama-models are taken where it is installed, Mistral's and Qwen's out of `--unpacked`, a folder
with the unpacked wheels of mistral-common and dashscope (`pip download --no-deps`); more are named as
NAME=FOLDER:TEMPLATE:ARCHITECTURE, with tokenizer.json and tokenizer_config.json.
For each: prompts of the quickstart's rows and of odd strings in the template, with the settings that the tokenizer's
files give and with those that the rehearsal chooses.
"""

from __future__ import annotations

import argparse
import base64
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Any

from tokenizers import processors

from fastft.data.sentencepiece_model import _as_fast
from fastft.data.template import load_template
from fastft.data.tokenizer import load_tokenizer
from fastft.errors import FastftError, Where
from fastft.exports.gguf.agreement import _texts, _unequal, agree
from fastft.exports.gguf.vocabulary import read_vocabulary
from fastft.inference.conversation import render_chat

ROOT = Path(__file__).parents[1]
HERE = Where("benchmarks/read_ids.py")
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Case:
    """A tokenizer in a folder, the template that it is asked with, and the architecture that the file names."""

    name: str
    folder: Path
    template: str
    architecture: str


def write(folder: Path, tokenizer: Any, **settings: str) -> Path:
    """Save a fast tokenizer as a model folder has it; `settings`: its control tokens by name, such as bos."""
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": text for name, text in settings.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    return folder


def llama(work: Path, version: int) -> Path:
    """Llama's published vocabulary as Hugging Face has it."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    module = import_module(f"llama_models.llama{version}.tokenizer")
    special = module.Tokenizer.get_instance().special_tokens
    file = Path(str(module.__file__)).with_name("tokenizer.model")
    pattern = getattr(module.Tokenizer, "pat_str", None) or module.Tokenizer.O200K_PATTERN
    made = TikTokenConverter(str(file), pattern, extra_special_tokens=sorted(special, key=special.get)).converted()
    end = "<|eot_id|>" if version == 3 else "<|eot|>"
    return write(work / f"llama-{version}", made, bos="<|begin_of_text|>", eos=end)


def mistral(work: Path, file: Path) -> Path:
    """A SentencePiece vocabulary of Mistral, with merges in the order of its scores.

    transformers 5.17 orders them by id, and then reads runs of spaces otherwise than the model. Not by
    `write_fast_tokenizer`: its proof takes the names of control tokens for text, as SentencePiece does.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(file.read_bytes())
    tokenizer = _as_fast(proto)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    folder = write(work / file.name, tokenizer, bos="<s>", eos="</s>", unk="<unk>")
    (folder / "tokenizer.model").write_bytes(file.read_bytes())
    return folder


def tekken(work: Path, file: Path) -> Path:
    """Mistral's Tekken: its control tokens come first, then the ranks."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers.convert_slow_tokenizer import TikTokenConverter

    found = json.loads(file.read_text(encoding="utf-8"))
    config = found["config"]
    count = config["default_vocab_size"] - config["default_num_special_tokens"]
    ranks = "".join(f"{one['token_bytes']} {one['rank']}\n" for one in found["vocab"][:count])
    listed = work / f"{file.stem}.tiktoken"
    listed.write_text(ranks, encoding="utf-8")
    vocabulary, merges = TikTokenConverter(str(listed)).extract_vocab_merges_from_model(str(listed))
    known = {one["rank"]: one["token_str"] for one in found.get("special_tokens") or []}
    usual = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
    special = [
        known.get(number, usual[number] if number < len(usual) else f"<SPECIAL_{number}>")
        for number in range(config["default_num_special_tokens"])
    ]
    ids = {text: number for number, text in enumerate(special)}
    tokenizer = Tokenizer(BPE({**ids, **{text: len(special) + rank for text, rank in vocabulary.items()}}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(config["pattern"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    return write(work / file.stem, tokenizer, bos="<s>", eos="</s>", unk="<unk>")


def qwen(work: Path, file: Path) -> Path:
    """Qwen's published ranks, with the normalizer and the end tokens of its chat models."""
    from tokenizers import normalizers
    from transformers.convert_slow_tokenizer import TikTokenConverter

    base64.b64decode(file.read_bytes().split()[0])  # ranks, not something else
    made = TikTokenConverter(str(file), QWEN_SPLIT, extra_special_tokens=QWEN_SPECIAL).converted()
    made.normalizer = normalizers.NFC()
    return write(work / "qwen", made, eos="<|im_end|>", pad="<|endoftext|>")


def packaged(work: Path, unpacked: Path | None) -> Iterator[Case]:
    """Those of the packages that are there; `unpacked` has the wheels of dashscope and mistral-common, unpacked."""
    if util.find_spec("llama_models"):
        yield Case("Llama 3", llama(work, 3), "llama-3.1", "llama")
        yield Case("Llama 4", llama(work, 4), "chatml", "llama")
    if unpacked is None:
        return
    yield Case("Qwen 2.5", qwen(work, unpacked / "dashscope/resources/qwen.tiktoken"), "qwen2.5", "qwen2")
    data = unpacked / "mistral_common/data"
    for file in (data / "tokenizer.model.v1", *sorted(data.glob("*.model.v[23]"))):
        folder = mistral(work, file)
        for template in ("mistral", "mistral-v7", "zephyr"):
            yield Case(f"Mistral {file.suffix[1:]}, {template}", folder, template, "llama")
    for file in sorted(data.glob("tekken*.json")):
        folder = tekken(work, file)
        for template in ("mistral-nemo", "mistral-v7"):
            yield Case(f"{file.stem}, {template}", folder, template, "llama")


def measure(case: Case) -> dict[str, Any]:
    """How many prompts and odd strings llama.cpp reads otherwise, before and after the rehearsal's choice."""
    facts = load_tokenizer(case.folder)
    found: dict[str, Any] = {"tokens": facts.tokenizer.get_vocab_size(), "template": case.template}
    try:
        template = load_template(case.template, ROOT, facts.chat_template, HERE).source
        rows = (ROOT / "recipes/data/support_triage/train.jsonl").read_text(encoding="utf-8").splitlines()[:32]
        special = {"bos_token": facts.bos_token or "", "eos_token": facts.eos_token or ""}
        asked = [[turn for turn in json.loads(row)["messages"] if turn["role"] == "user"][:1] for row in rows]
        prompts = tuple(render_chat(template, turns, special) for turns in asked)
        ends = tuple(token for text in (facts.eos_token,) if text and (token := facts.id_of(text)) is not None)
        vocabulary = read_vocabulary(
            case.folder, case.folder, facts.tokenizer.get_vocab_size(), case.architecture, template, ends
        )
        texts = list(_texts(vocabulary, facts, prompts))
        before = _unequal(vocabulary, case.architecture, texts)
        found |= {"texts": len(texts), "unequal_as_the_files_say": len(before)}
        chosen = agree(vocabulary, case.folder, case.architecture, prompts)
        after = _unequal(chosen, case.architecture, texts)
        found |= {
            "unequal": len(after),
            "unequal_prompts": sum(not text.is_odd for text, _ in after),
            "chosen": {name: getattr(chosen, name) for name in ("adds_bos", "space_prefix", "family")},
            "notes": list(chosen.notes),
        }
    except FastftError as error:
        found["refused"] = str(error.problems[0].wrong)[:200]
    return found


def main() -> None:
    """Measure all and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="NAME=FOLDER:TEMPLATE:ARCHITECTURE")
    parser.add_argument("--unpacked", type=Path, help="a folder with unpacked wheels")
    figures: dict[str, Any] = {}
    named, options = [], parser.parse_args()
    for text in options.folders:
        name, _, rest = text.partition("=")
        folder, template, architecture = rest.rsplit(":", 2)
        named.append(Case(name, Path(folder), template, architecture))
    with tempfile.TemporaryDirectory() as work:
        for case in (*packaged(Path(work), options.unpacked), *named):
            figures[case.name] = measure(case)
            print(case.name, json.dumps(figures[case.name], ensure_ascii=False), flush=True)
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    Path(__file__).with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
