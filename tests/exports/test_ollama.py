"""The Modelfile's template in Go's language says what the chat template says."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from fastft.data.template import FOLDER, TEMPLATES
from fastft.exports.go_template import go_text, render_go
from fastft.exports.ollama import go_template, modelfile, render_ollama
from fastft.inference.conversation import ChatMessage, render_chat

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
# Its system turn holds a date, flags and headings that move with what the system text says.
WITHOUT = {"smollm3"}
CONVERSATIONS: list[list[tuple[str, str]]] = [
    [("user", "What is 2 + 2?")],
    [("system", "You are terse."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Name a colour.\n\n- one")],
    [("user", "a {{ b }}"), ("assistant", "c\td"), ("user", 'e "f"'), ("assistant", "{g}"), ("user", "\u5c71")],
    [
        ("system", "Two\nlines"),
        ("user", "1"),
        ("assistant", "2"),
        ("user", "3"),
        ("assistant", "4"),
        ("user", "5"),
        ("assistant", "6"),
        ("user", "7"),
    ],
]


def messages(turns: list[tuple[str, str]]) -> list[ChatMessage]:
    return [{"role": role, "content": content} for role, content in turns]


def source_of(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - WITHOUT))
@pytest.mark.parametrize("adds_bos", [False, True])
def test_both_forms_of_a_known_template_make_one_prompt(name: str, adds_bos: bool) -> None:
    template = go_template(source_of(name), SPECIAL, adds_bos)

    assert template is not None
    for turns in map(messages, CONVERSATIONS):
        wanted = render_chat(source_of(name), turns, SPECIAL)
        assert render_ollama(template, turns) == (wanted.removeprefix("<s>") if adds_bos else wanted)


@pytest.mark.parametrize(
    "source",
    [
        *map(source_of, sorted(WITHOUT)),
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{{ messages[-1].content }}",
        "{{ raise_exception('never') }}",
        "{% for m in messages %}[{{ loop.index }}]{{ m.content }}{% endfor %}",
    ],
)
def test_a_template_that_go_cannot_say_gets_none(source: str) -> None:
    assert go_template(source, SPECIAL, adds_bos=False) is None


def test_a_template_that_refuses_system_texts_is_written_without() -> None:
    source = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}[{{ m.content }}]"

    template = go_template(f"{source}{{% endfor %}}", SPECIAL, adds_bos=False)

    assert template is not None
    assert ".System" not in template
    assert render_ollama(template, messages([("user", "a"), ("assistant", "b"), ("user", "c")])) == "[a][b][c]"


def test_what_a_modelfile_would_lose_is_written_as_a_go_string() -> None:
    source = "{% for m in messages %}\u00a0{{ '{{' }}\"\"\"{{ m.content }}{% endfor %}{{ '{' }}"

    template = go_template(source, SPECIAL, adds_bos=False)

    assert template is not None
    assert '"""' not in template
    assert "\u00a0" not in template
    assert render_ollama(template, messages([("user", "a")])) == '\u00a0{{"""a{'


def test_neighbours_of_one_role_are_joined_and_a_last_answer_is_gone_on_with() -> None:
    template = go_template(source_of("chatml"), SPECIAL, adds_bos=False)

    assert template is not None
    rendered = render_ollama(template, messages([("user", "a"), ("user", "b"), ("assistant", "c")]))
    assert rendered == "<|im_start|>user\na\n\nb<|im_end|>\n<|im_start|>assistant\nc"


def test_a_modelfile_without_a_template_says_so() -> None:
    text = modelfile("m.gguf", ("</s>", 'a"b'), None)

    assert text.splitlines()[0] == "FROM ./m.gguf"
    assert "TEMPLATE" not in text
    assert text.splitlines()[2].startswith("# The chat template in the file has no form")
    assert text.splitlines()[3:] == ['PARAMETER stop "</s>"', 'PARAMETER stop """a"b"""']


VALUES = {"System": "s", "Empty": "", "List": [{"Role": "user", "N": 0}, {"Role": "x", "N": 3}], "Zero": 0}


@pytest.mark.parametrize(
    ("source", "shown"),
    [  # each by the rules of Go's text/template
        ("a {{- 1 -}} b", "a1b"),
        ("a {{ 1 }} b", "a 1 b"),
        ("a{{-1}}", None),  # a number, not a trim mark: not in the subset
        ("{{ if .Empty }}a{{ else if .System }}b{{ else }}c{{ end }}", "b"),
        ("{{ if .Zero }}a{{ else }}b{{ end }}", "b"),
        ("{{ if and .System .Zero }}a{{ else }}b{{ end }}{{ and 1 2 }}{{ or .Empty 3 }}", "b23"),
        ("{{ range $i, $m := .List }}{{ $i }}{{ .Role }}{{ $m.N }}{{ $.System }}{{ end }}", "0user0s1x3s"),
        ("{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}", "21"),
        ("{{ range $i, $_ := .List }}{{ eq (len (slice $.List $i)) 1 }}{{ end }}", "falsetrue"),
        ('{{ eq .System "a" "s" }}{{ ne .System "s" }}{{ not .Empty }}', "truefalsetrue"),
        ('{{ "}} \\" \\u00e9" }}', '}} " \u00e9'),
        ("{{ printf 1 }}", None),
        ("{{ .System | html }}", None),
        ("{{ end }}", None),
        ("{{ if .System }}", None),
        ("{{ range $i, $m := .List }}", None),
        ("{{ .System", None),
        ("{{ (eq 1 1 }}", None),
    ],
)
def test_the_subset_of_gos_rules(source: str, shown: str | None) -> None:
    if shown is None:
        with pytest.raises(ValueError, match=r"not known|beginning|not end|missing"):
            render_go(source, VALUES)
    else:
        assert render_go(source, VALUES) == shown


@pytest.mark.parametrize(
    "text", ["plain\n\t<|x|>", "{{ x }}", "a{", '"""', "\x00\u00a0\u2028", "\U0001f98a{{", "\\n{{"]
)
def test_any_text_is_itself_in_a_template(text: str) -> None:
    assert render_go(go_text(text) + "{{ 1 }}", {}) == f"{text}1"
    assert json.dumps(text)  # a text, whatever it holds


PROGRAM = """package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

func main() {
	var cases []struct {
		Source string
		Values map[string]any
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	var shown []string
	for _, one := range cases {
		var out strings.Builder
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(one.Source))
		if err := parsed.Execute(&out, one.Values); err != nil {
			panic(err)
		}
		shown = append(shown, out.String())
	}
	json.NewEncoder(os.Stdout).Encode(shown)
}
"""


@pytest.mark.skipif(shutil.which("go") is None, reason="Go itself, where it is installed")
def test_go_itself_writes_the_same_prompts(tmp_path: Path) -> None:
    """Only this one compares the rules in fastft with those of Go's own package: 92 of 92 prompts with Go 1.19."""
    cases, wanted = [], []
    for name in sorted(set(TEMPLATES) - WITHOUT):
        for turns in map(messages, CONVERSATIONS):
            system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
            fields = [{"Role": turn["role"], "Content": turn["content"]} for turn in turns]
            source = go_template(source_of(name), SPECIAL, adds_bos=False)
            cases.append({"Source": source, "Values": {"System": system, "Messages": fields}})
            wanted.append(render_chat(source_of(name), turns, SPECIAL))
    (tmp_path / "main.go").write_text(PROGRAM)

    done = subprocess.run(
        ["go", "run", "main.go"],
        cwd=tmp_path,
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=True,
    )

    assert json.loads(done.stdout) == wanted
