"""Names that others chose (experiments, runs, signals, settings) in lines, Markdown and figures."""

from __future__ import annotations

import re
import unicodedata

INLINE = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
"""What begins or ends something within a line of Markdown: emphasis, code, link, cell, formula. An
underscore within a word does neither."""
AT_START = re.compile(r"^(?:[-+=:#]|(\d+)(?=\.))")
"""What makes a list, a heading or a rule of a line that begins with it."""
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}
LINK = re.compile(r"(?i)(?<=[a-z])(://)|(?<=www)(\.)")
"""What many readers of Markdown make a link of, brackets or not."""
JOINERS = "\u200c\u200d"
"""Letters without a shape that Persian, Hindi and emoji need."""


def one_line(text: str) -> str:
    """A name without what a terminal or a page would obey.

    Line ends and tabs become spaces; control characters (escape sequences of a terminal), marks
    that turn the direction of writing and halves of characters become U+FFFD.
    """
    return "".join(
        "\ufffd"
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs") and letter not in JOINERS
        else letter
        for letter in " ".join(text.split())
    )


def cause_of(problem: BaseException) -> str:
    """What another library's error says, as part of a sentence: in a line, and cut."""
    return one_line(str(problem))[:200].rstrip(".")


def inline_markdown(text: str) -> str:
    """A text within a line or a cell, that Markdown shows as it is.

    No emphasis, code, cell, link, HTML, mention or formula comes of it.
    """
    text = INLINE.sub(r"\\\g<0>", one_line(text))
    text = "".join(ENTITIES.get(letter, letter) for letter in text)
    return LINK.sub(lambda found: "&#58;//" if found.group(1) else "&#46;", text)


def markdown(text: str) -> str:
    """A text at the start of a line, that Markdown shows as it is: no heading or list either."""
    return AT_START.sub(
        lambda found: f"{found.group(1)}\\" if found.group(1) else f"\\{found.group()}",
        inline_markdown(text),
    )


def figure_text(text: str) -> str:
    """A title as matplotlib shows it: between two dollars it would read a formula, or fail."""
    return one_line(text).replace("$", r"\$")
