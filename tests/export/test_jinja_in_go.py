"""A foreign chat template in Go: what can be said is exact, what cannot is named with what to do."""

import json
import re
from datetime import datetime

import pytest

from toolkit.export.jinja_in_go import InGo, go_of
from toolkit.export.jinja_render import renderer

CHAT = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + CONTENT + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PLAIN = CHAT.replace("CONTENT", "m['content']")
STRIPPED = "(m['content'].split('</think>')[-1].lstrip() if m['role'] == 'assistant' else m['content'])"
IN_QUESTIONS = "(m['content'].rstrip() if m['role'] == 'user' else m['content'])"
MONTHS = {f"{number:02}": datetime(2024, number, 1).strftime("%B") for number in range(1, 13)}


def said(template: str) -> InGo:
    return go_of(lambda clock: renderer(template, {"bos_token": "<s>", "eos_token": "</s>"}, clock))


def dated(form: str) -> str:
    return f"{{{{ 'Today: ' + strftime_now('{form}') + '\\n' }}}}{PLAIN}"


def evaluated(go: str, day: datetime) -> str:
    """Put a day into the expressions that a template may have of it; a real Ollama does so in another test."""
    today = day.strftime("%Y-%m-%d")

    def sliced(found: re.Match[str]) -> str:
        return today[int(found[1]) : int(found[2])]

    for number, name in MONTHS.items():
        for text in (name, name[:3]):
            go = re.sub(
                rf'\{{\{{ (?:else )?if eq \(slice \(currentDate\) 5 7\) "{number}" \}}\}}{text}(?=\{{\{{ e)',
                text if number == today[5:7] else "",
                go,
            )
    return re.sub(r"\{\{ slice \(currentDate\) (\d+) (\d+) \}\}", sliced, go).replace("{{ end }}", "")


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%d/%m/%y", "%B %d, %Y", "%F", "100%% of %Y"])
@pytest.mark.parametrize("day", [datetime(2024, 2, 3), datetime(2031, 11, 28)])
def test_a_date_is_that_of_the_day(form: str, day: datetime) -> None:
    found = said(dated(form))
    assert found.text and not found.reason and not found.limits
    assert f"Today: {day.strftime(form)}\n" in evaluated(found.text, day)


def by_default(form: str) -> str:
    """A system message of its own with the date in it, as Mistral Small 3 and Granite 3.3 have."""
    return (
        f"{{% if messages[0]['role'] != 'system' %}}{{{{ '<|system|>Say \"it\" on ' + strftime_now('{form}')"
        f" + '.\nBe 100% kind.<|end|>' }}}}{{% endif %}}{PLAIN}"
    )


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%B %d, %Y", "%-d %b \\'%y", "%F"])
@pytest.mark.parametrize("day", [datetime(2024, 2, 3), datetime(2031, 11, 28)])
def test_a_date_in_the_system_message_of_the_template(form: str, day: datetime) -> None:
    found = said(by_default(form))
    assert found.text and not found.reason and not found.limits
    start, _, rest = found.text.partition('{{ $lead := "" }}')
    assert "{{ $lead = $default }}" in rest and "(eq $lead $default)" in rest
    plain = re.sub(r'\{\{ \$default = printf "%s%s" \$default \((.*?\d)\) \}\}', r"{{ \1 }}", start)
    for literal in re.findall(r'\$default ("(?:[^"\\]|\\.)*") \}\}', plain):
        plain = plain.replace(f'{{{{ $default = printf "%s%s" $default {literal} }}}}', json.loads(literal))
    text = re.sub(r"\{\{ if ne \(slice.*?\}\}", "", evaluated(plain, day)).replace('{{ $default := "" }}', "")
    written = day.strftime(form.replace("\\", ""))
    if "%-d" in form and day.day < 10:
        text = text.replace(" on 0", " on ")
    assert text == f'Say "it" on {written}.\nBe 100% kind.'


@pytest.mark.parametrize("form", ["%H:%M", "%A"])
def test_a_time_in_the_system_message_of_the_template(form: str) -> None:
    found = said(by_default(form))
    assert not found.text and found.reason == f"it writes the date as `{form}`"


@pytest.mark.parametrize("form", ["%H:%M", "%A", "%d %b %Y %H", "%c", "%j"])
def test_a_date_that_go_cannot_write(form: str) -> None:
    found = said(dated(form))
    assert not found.text and found.reason == f"it writes the date as `{form}`"


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%Y')[2:] }}" + PLAIN,
        "{{ strftime_now('%B') | upper }}" + PLAIN,
        "{{ 'early ' if strftime_now('%m') == '02' else 'late ' }}" + PLAIN,
        "{% if strftime_now('%Y') | int > 2030 %}{{ 'x' }}{% endif %}" + PLAIN,
    ],
)
def test_a_template_that_computes_with_the_date(template: str) -> None:
    found = said(template)
    assert not found.text and found.reason == "it computes with the date"


@pytest.mark.parametrize(
    ("content", "limits"),
    [
        ("m['content']", []),
        ("m['content'] | trim", ["spaces and newlines"]),
        ("m['content'].lstrip()", ["spaces and newlines"]),
        (IN_QUESTIONS, ["spaces and newlines"]),
        ("(m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'])", ["<think>"]),
        (STRIPPED, ["spaces and newlines", "<think>"]),
    ],
)
def test_what_is_done_within_messages_is_said(content: str, limits: list[str]) -> None:
    found = said(CHAT.replace("CONTENT", content))
    assert found.text and len(found.limits) == len(limits)
    assert all(word in limit and "send" in limit for word, limit in zip(limits, found.limits, strict=True))


def test_what_is_no_format_is_said() -> None:
    found = said("{% for m in messages %}{{ loop.index ~ m['content'] }}{% endfor %}")
    assert not found.text and "a fixed text before and after each message" in found.reason
