"""pytest tests/test_data_rules.py: words, line rules, metrics and quality rules."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pytest

from openmai.data.filter import english
from openmai.data.filter import words as words_module
from openmai.data.filter.config import DOCS, HEAVY, LineRules, Thresholds
from openmai.data.filter.lines import clean_lines
from openmai.data.filter.metrics import clean_and_measure, measure, measure_page
from openmai.data.filter.repetition import count_sentences, repeated_ngrams
from openmai.data.filter.rules import RULES, judge
from openmai.data.filter.words import Vocabulary, words

PROSE = (
    "The river that runs past the old mill is slow in summer and wild in spring. Many people of the town walk along it with their dogs. "
    "In the evening, herons stand in the shallow water and wait for fish to come near. Nobody knows how old the stone bridge is, but the "
    "oldest map shows it already. A small museum beside it tells of floods, trade and two long wars."
)

# What spaCy 3.8's blank English pipeline makes of these chunks, pieces divided by a blank.
SPACY = {
    "don't": "do n't",
    "Can’t": "Ca n’t",
    "they'll've": "they 'll 've",
    "cannot": "can not",
    "its": "its",
    "Im": "I m",
    "ill": "ill",
    '("Hello,': '( " Hello ,',
    "James's.": "James 's .",
    "e.g.,": "e.g. ,",
    "U.S.A.": "U.S.A.",
    "Ph.D.)": "Ph.D. )",
    "end.Next": "end . Next",
    "well-known/old": "well - known / old",
    "and/or": "and/or",
    "3-4": "3 - 4",
    "10km.": "10 km .",
    "$5.00": "$ 5.00",
    "20%": "20 %",
    "7p.m.": "7 p.m.",
    "wait...what": "wait ... what",
    "https://x.org/a-b?c=d,": "https://x.org/a-b?c=d ,",
    "me@site.co.uk": "me@site.co.uk",
    "f(x)=1": "f(x)=1",
    "foo:)": "foo :)",
    "(:": "(:",
    "C++,": "C++ ,",
    "#tag_name": "# tag_name",
    "x=a.": "x = a.",
    "C#": "C #",
    "naïve—but": "naïve — but",
    "日本,語": "日本 , 語",
    "☃snow☃": "☃ snow ☃",
    "🥰😀": "🥰 😀",
    "......": "......",
    "°C.": "° C .",
}


@pytest.mark.parametrize("chunk", SPACY)
def test_english_words_are_those_of_spacy(chunk: str) -> None:
    assert " ".join(words(chunk)) == SPACY[chunk]


def test_no_character_is_lost() -> None:
    noise = random.Random(3)
    alphabet = [
        "a",
        "B",
        "s",
        "n't",
        "'s",
        "’",
        ".",
        "...",
        ",",
        "(",
        ")",
        "-",
        "/",
        ":",
        "$",
        "7",
        "km",
        "é",
        "中",
        "☃",
        "#",
        "\U0001f600",
        "@x.org",
    ]
    for _ in range(2000):
        chunk = "".join(noise.choices(alphabet, k=noise.randrange(1, 12)))
        assert "".join(english.segment(chunk)) == chunk
        assert words(chunk) == list(english.segment(chunk))


def test_long_chunks_take_linear_time_and_keep_their_ends() -> None:
    assert words("(" * 50_000 + "x" + ")" * 50_000 + " y") == ["("] * 50_000 + ["x"] + [")"] * 50_000 + ["y"]
    assert words("." * 50)[-1] == "." * 50
    assert len(words("a:" * 50_000)) == 100_000


def test_special_cases_fit_the_bounds_of_the_search() -> None:
    assert max(map(len, english._specials())) <= english._LONGEST_SPECIAL
    assert min(map(len, english._torn_specials())) >= 2


def test_words_of_other_languages() -> None:
    assert words("L’été, c'est-à-dire: 3,5 km!", "fr") == [
        "L",
        "’",
        "été",
        ",",
        "c",
        "'",
        "est",
        "-",
        "à",
        "-",
        "dire",
        ":",
        "3",
        ",",
        "5",
        "km",
        "!",
    ]
    assert words("私は猫。OK", "ja") == ["私", "は", "猫", "。", "OK"]
    assert "stop_words" not in measure("Das ist ein Satz.", "de")


def test_vocabulary_forgets_and_measures_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [measure(PROSE), measure("New words come here. " + PROSE)]
    small = Vocabulary(is_english=True)
    monkeypatch.setattr(words_module, "_MOST_CHARACTERS", 3)
    monkeypatch.setattr("openmai.data.filter.metrics.vocabulary", lambda language: small)
    assert [measure(PROSE), measure("New words come here. " + PROSE)] == expected
    small.encode(["one"])
    assert len(small) == 3  # the blank, the line end, and this chunk


def ngrams_by_definition(tokens: list[str]) -> list[int]:
    """Return the nine numbers as datatrove defines them, on strings."""
    found = []
    for n in range(2, 5):
        counts = Counter(" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        best = counts.most_common(1)
        found.append(len(best[0][0]) * best[0][1] if best else 0)
    for n in range(5, 11):
        seen, chars, i = set(), 0, 0
        while i < len(tokens) - n + 1:
            gram = tuple(tokens[i : i + n])
            chars, i, _ = (chars + len("".join(gram)), i + n, None) if gram in seen else (chars, i + 1, seen.add(gram))
        found.append(chars)
    return found


def test_repeated_ngrams_against_definition() -> None:
    noise = random.Random(2)
    for count in [*range(12), 50, 200, 1000]:
        tokens = noise.choices(["a", "bb", "ccc", "dddd"], k=count)
        numbers = {word: number for number, word in enumerate(dict.fromkeys(tokens))}
        got = repeated_ngrams(
            np.array([numbers[word] for word in tokens], dtype=np.int64), np.array(list(map(len, tokens)), dtype=np.int64)
        )
        assert got.tolist() == ngrams_by_definition(tokens)


def test_sentences() -> None:
    assert measure("One. Two! Three?\nFour")["sentences"] == 4
    assert measure('He said "Stop." Then (see there.) nothing')["sentences"] == 3
    assert measure("Wait... what? e.g. this")["sentences"] == 2
    assert measure("\n\n  \n")["sentences"] == 0
    assert count_sentences(np.array([2, 4, 1, 3, 0, 1, 0], dtype=np.int8)) == 2  # white space begins a sentence, the mark fills it


def test_marks_of_headings_are_not_words() -> None:
    page = f"# The river\n\n{PROSE}\n\n#### Its banks\n\n#tag # x\n\n{PROSE}"
    plain = f"The river\n\n{PROSE}\n\nIts banks\n\n#tag # x\n\n{PROSE}"
    assert measure_page(page, "en", None) == (page, measure(plain))
    assert measure(page)["alpha_words"] < measure(plain)["alpha_words"]
    cleaned, metrics = measure_page(page, "en", LineRules())
    assert cleaned == page.replace("\n\n", "\n")
    assert metrics == clean_and_measure(plain, "en", LineRules(min_words=1))[1]


def test_shares_are_taken_of_what_datatrove_takes_them_of() -> None:
    text = "\n•  one thing\nsame line...\n\n\nsame line...\n\nx #1\n"
    m = measure(text)
    assert m["duplicate_lines"] == 2 / 6  # white space at the ends of the text makes an empty line at each
    assert m["duplicate_line_chars"] == 12 / len(text)
    assert m["duplicate_paragraphs"] == 0.0
    assert m["bullet_lines"] == 1 / 8
    assert m["ellipsis_lines"] == 2 / 8
    assert m["line_punctuation"] == 2 / 4
    assert m["repeated_line_chars"] == 12 / len(text.replace("\n", ""))
    assert m["words"] == 9  # the bullet is none of the marks that do not count
    assert m["newlines"] == 8 / 12
    assert m["hashes"] == 1 / 12


def test_metrics_of_nothing() -> None:
    for text in ("", " ", "\n\n", "\u2028"):
        assert all(np.isfinite(value) for value in measure(text).values())
        assert judge(measure(text), Thresholds())[0] != ""


LINES = """A good line of words stays here.
No mark at its end but words
Too few.
Please turn on JavaScript to see this {page}.
We use cookies on this site, read on.
It was built in 1888.[12] It burnt down[citation needed].

Hyphen-long {}
""".replace("{}", "x" * 1001)


def test_clean_lines() -> None:
    text, counts = clean_lines(LINES, LineRules())
    assert text == "A good line of words stays here.\nNo mark at its end but words\nIt was built in 1888. It burnt down."
    assert counts == {"curly": 0, "lorem": 0, "lines_few_words": 2, "lines_javascript": 1, "lines_policy": 1, "lines_long_word": 1}
    text, counts = clean_lines(LINES, LineRules(terminal_punctuation=True))
    assert text == "A good line of words stays here.\nIt was built in 1888. It burnt down."
    assert counts["lines_no_punctuation"] == 2
    off = LineRules(min_words=0, max_word=0, citations=False, javascript=False, policies=False)
    assert clean_lines(LINES, off) == (LINES.strip(), {"curly": 1, "lorem": 0})


def test_cleaning_keeps_what_rejects_the_page() -> None:
    text = f"{PROSE}\n{PROSE}\nWe use cookies and {{curly}} brackets here.\nLorem ipsum is javascript here."
    cleaned, metrics = clean_and_measure(text, "en", LineRules())
    assert cleaned == f"{PROSE}\n{PROSE}"
    assert (metrics["curly"], metrics["lorem"]) == (1, 1)
    assert metrics["duplicate_line_chars"] == measure(text)["duplicate_line_chars"] < measure(cleaned)["duplicate_line_chars"]
    assert metrics["repeated_line_chars"] == measure(cleaned)["repeated_line_chars"]


# Each rule with a metric and a value that it rejects; everything else as in good prose.
BAD = {
    "gopher.words": ("words", 3),
    "gopher.mean_word": ("mean_word", 11),
    "gopher.hashes": ("hashes", 0.2),
    "gopher.ellipses": ("ellipses", 0.2),
    "gopher.bullet_lines": ("bullet_lines", 0.95),
    "gopher.ellipsis_lines": ("ellipsis_lines", 0.4),
    "gopher.alpha_words": ("alpha_words", 0.6),
    "gopher.stop_words": ("stop_words", 1),
    "repetition.duplicate_lines": ("duplicate_lines", 0.4),
    "repetition.duplicate_line_chars": ("duplicate_line_chars", 0.25),
    "repetition.duplicate_paragraphs": ("duplicate_paragraphs", 0.4),
    "repetition.duplicate_paragraph_chars": ("duplicate_paragraph_chars", 0.25),
    "repetition.top_2gram": ("top_2gram", 0.21),
    "repetition.top_3gram": ("top_3gram", 0.19),
    "repetition.top_4gram": ("top_4gram", 0.17),
    **{f"repetition.duplicate_{n}gram": (f"duplicate_{n}gram", 0.2 - n / 100 + 0.01) for n in range(5, 11)},
    "c4.sentences": ("sentences", 2),
    "c4.curly": ("curly", 1),
    "c4.lorem": ("lorem", 1),
    "fineweb.line_punctuation": ("line_punctuation", 0.1),
    "fineweb.short_lines": ("short_lines", 0.7),
    "fineweb.repeated_line_chars": ("repeated_line_chars", 0.15),
    "fineweb.newlines": ("newlines", 0.35),
    "words.toxic": ("toxic_words", 0.05),
    "quality.low": ("quality", -1.0),
}


@pytest.mark.parametrize("profile", [Thresholds(), HEAVY], ids=["web", "heavy"])
@pytest.mark.parametrize("rule", list(RULES))
def test_each_rule_fires_alone(rule: str, profile: Thresholds) -> None:
    metric, value = BAD[rule]
    good = measure(f"{PROSE} It was cold.\n\nThen came a summer like no other, and the water fell. {PROSE[:200].upper()}.")
    assert judge(good, profile) == ("", "")
    found, reason = judge(good | {metric: value}, profile)
    assert found == rule
    assert re.search(r"\d|lorem", reason)


def test_what_was_not_measured_is_not_judged() -> None:
    good = measure(PROSE)
    assert judge(good | {"quality": 0.9, "toxic_words": 0.0}, Thresholds()) == ("", "")
    del good["stop_words"]
    assert judge(good, Thresholds()) == ("", "")


def test_a_section_of_law_with_its_citations_is_kept() -> None:
    section = (
        "# § 26-831.21. Termination of conservatorship.\n\n"
        "(a) If the Commissioner determines that termination of the conservatorship and resumption of the transaction of the business "
        "by the merchant bank can be achieved and maintained in a safe and sound manner and is otherwise in the public interest, the "
        "Commissioner may petition the Superior Court for termination of the conservatorship.\n\n"
        "(b) If the Superior Court determines that reasons for the conservatorship no longer exist, the Superior Court may dissolve the "
        "conservatorship and terminate any pending proceedings.\n\n"
        "(c) If the Commissioner determines that it would be in the public interest, the Commissioner may petition the Superior Court for "
        "termination of a conservatorship and appointment of a receiver for the merchant bank under § 26-833.12.\n\n"
        "(June 9, 2001, D.C. Law 13-308, § 321, 48 DCR 3244.)"
    )
    metrics = measure_page(section, "en", None)[1]
    assert judge(metrics, Thresholds()) == ("", "")
    assert judge(metrics, Thresholds(min_alpha_words=0.8))[0] == "gopher.alpha_words"


def test_docs_profile_keeps_reference_pages() -> None:
    page = "# m\n\n" + "\n\n".join(
        f"do_{verb}(self, path: str, *, {verb}_mode={{}}) -> dict[str, int]\n    Do what it takes to {verb} the file at the path.\n"
        f"    Returns the number of bytes that have been {verb}."
        for verb in ("open", "read", "write", "seek", "close", "flush", "lock", "map")
    )
    assert judge(measure(page), Thresholds())[0] != ""
    assert judge(measure(page), DOCS) == ("", "")
