"""What counts as a final answer, and when two are the same: exact where numbers are, deaf to their dress.

`1,000`, `$1,000`, `1000.00`, `\\boxed{1000}` and `1000 dollars` are one answer; `10,00`, `5 or 6`, `not 5`
and `5*3` are none, for an answer that hedges or leaves the sum to the reader must not pay. A gold that is one
plain number is met by one plain number alone. Otherwise words are compared, then lists part by part, then
math-verify is asked. Pure: no torch.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

from rig.model.reply_format import TAUGHT, ReplyFormat
from train.data import lists, number
from train.data.formulas import formulas_agree, is_formula
from train.data.number import Number, parse_number
from train.data.undress import find_boxed, undress, write_out

__all__ = [
    "accepted_answers", "bare_answer", "extract_final_answer", "extract_gold_answer",
    "extract_tagged_answer", "join_answers", "matches_gold", "parse_number", "same_answer",
]  # fmt: skip

LONGEST = number.LONGEST
"""Characters; a longer answer is compared to the letter alone. A last number is looked for in so many."""

_PHRASE = re.compile(r"\banswer\b\**\s*(?:is|:|=|would be|comes to)+\s*:?[\s*]*", re.IGNORECASE)
_HEADING = re.compile(r"^[ \t]*####[ \t]*(.*)$", re.MULTILINE)
_LABEL = re.compile(r"[^\W\d_][^\W\d_][^:=0-9\n]{0,60}?\s*[:=]\s*(?=\S)")
_ABOUT = re.compile(
    r"(?:~|≈|(?:it|that|this|they|he|she)(?:'s|\s+is|\s+are)\b|approximately|approx\.?|about|around|roughly|nearly|almost"
    r"|exactly|only|just|(?:a|the)?\s*(?:grand\s+)?total\s+of)\s*",
    re.IGNORECASE,
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|be|has|have|had|gets?|got|makes?|made|needs?|takes?|took|costs?|equals?|gives?|gave"
    r"|earn(?:s|ed)?|spen[dt]s?|pays?|paid|sells?|sold|buys?|bought|lefts?|leaves|contains?|holds?|will|can"
    r"|should|must|do(?:es)?|did|eats?|ate|runs?|ran|reads?|walk(?:s|ed)?|travel(?:s|led|ed)?|drives?|drove"
    r"|uses?|used|remains?|weighs?|owes?|saves?|saved|finds?|found|scores?|scored|there|we|you|they)\b",
    re.IGNORECASE,
)
_CHOICE = re.compile(
    r"(?:option|choice|answer)?\s*\(?([A-Za-z])(?:[).:](?:\s+(?P<more>.*))?)?", re.IGNORECASE
)
_NAMED = re.compile(r"\s*\\?([A-Za-z](?:_\{?\w+\}?)?)\s*=(?!=)")
_WHOLE_EQUATION = re.compile(r"[^=]*[0-9^+*/\\-][^=]*(?<![<>!])=")
_THINK = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


# ----------------------------------------------------------------------------------------------------------
# Finding the answer in a reply, and in a cell


def extract_tagged_answer(text: str, reply_format: ReplyFormat = TAUGHT) -> str | None:
    """Return what stands in the one answer block; None without a block, or with several.

    >>> extract_tagged_answer("<reasoning>2+2</reasoning><answer> 4 </answer>")
    '4'
    >>> extract_tagged_answer("4"), extract_tagged_answer("<answer>4</answer><answer>5</answer>")
    (None, None)
    """
    opening, closing = reply_format.answer_open, reply_format.answer_close
    if not opening:
        return text.strip() or None
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    found = text.partition(opening)[2].partition(closing)[0].strip()
    return found or None


def extract_final_answer(text: str, reply_format: ReplyFormat = TAUGHT) -> str | None:
    r"""Return any clear final answer: in tags, boxed, after ####, after "the answer is", or the last number.

    A thought that was cut off holds no answer, whatever numbers stand in it; a heading (#### Step 1) is none.

    >>> said = ["<answer>4</answer>", "So it is \\boxed{4}.", "2+2=4\n#### 4"]
    >>> tuple(map(extract_final_answer, said))
    ('4', '4', '4')
    >>> said = ["The answer is 4 apples.", "I count 2 and 2, so 4.", "<reasoning>2+2=4"]
    >>> tuple(map(extract_final_answer, said))
    ('4 apples', '4', None)
    """
    text = _THINK.sub("", text)
    if reply_format.answer_open and reply_format.answer_open in text:
        last = text.rpartition(reply_format.answer_open)[2]
        return _one(last.partition(reply_format.answer_close or "\0")[0].strip()) or None
    if (boxed := find_boxed(text)) is not None:
        return boxed.strip() or None
    if (marked := _after_marker(text)) is not None:
        return marked or None
    if rest := _after_phrase(text):
        return _one(rest, first=True)
    said = reply_format.split_reply(text).answer
    return _one(said) or None


def extract_gold_answer(text: str) -> str:
    """Return the answer of a cell: what follows the last `####`, or the bare answer of a short sentence.

    >>> extract_gold_answer("She has 48/2 = <<48/2=24>>24 clips.\\n#### 1,024"), extract_gold_answer(" 18 ")
    ('1,024', '18')
    >>> [extract_gold_answer(t) for t in ("The answer is 42.", "Tom has 42 cups.", "Apollo 11")]
    ['42', '42 cups', 'Apollo 11']
    """
    text = text.strip()
    if "####" in text and (marked := _after_marker(text)) is not None:
        return marked
    if "\\boxed{" in text or "<answer>" in text:
        return extract_final_answer(text) or ""
    return bare_answer(text)


@lru_cache(maxsize=65536)
def bare_answer(text: str) -> str:
    """Return what a model that is asked for the final answer alone would write for the gold `text`.

    >>> bare_answer("approximately 42"), bare_answer("3x^2"), bare_answer("not 42"), bare_answer("x = 5")
    ('42', '3x^2', 'not 42', 'x = 5')
    """
    if text[-1:].isdigit() and text.isalnum() and text.isdigit():
        return text
    text = text.strip()
    rest = _after_phrase(text) or text
    if len(rest) > LONGEST:
        return rest
    for opening in (_LABEL, _ABOUT):
        if (found := opening.match(rest)) and number.read_number(rest[found.end() :]):
            rest = rest[found.end() :]
    if not _VERB.search(rest) or number.read_number(rest) is None:
        return rest
    bare = write_out(undress(rest))
    match = next(number.find_numbers(bare))
    words_before = re.findall(r"[^\W\d_]+", bare[: match.start()])
    if not words_before or not _VERB.search(bare[: match.start()]):
        return rest
    return bare[match.start() :].strip().rstrip(".")


def _after_marker(text: str) -> str | None:
    """The rest of the last `####` line, unless it is a heading with more text below; None without one."""
    lines = list(_HEADING.finditer(text)) or (
        [found] if (found := re.search(r"####[ \t]*([^\n]*)", text)) else []
    )
    if not lines:
        return None
    last = lines[-1]
    said = last[1].strip()
    below = text[last.end() :].strip()
    if said and below and not re.match(r"[-+]?\s?[\\$€£]*-?\.?[0-9]", said):
        return None
    return said or below.partition("\n")[0].strip()


def _after_phrase(text: str) -> str:
    """What follows the last "the answer is", up to the end of its sentence."""
    if not (phrases := list(_PHRASE.finditer(text))):
        return ""
    return re.split(r"\n|\.(?:\s|\Z)", text[phrases[-1].end() :].strip(), maxsplit=1)[0].strip(" *")


def _one(text: str, first: bool = False) -> str:
    """`text` itself where it states one number or none, else its last (or first) number."""
    if number.read_number(text) is not None:
        return text if len(text) < 80 or first else _picked(text, -1)
    return _picked(text, 0 if first else -1) or text


def _picked(text: str, at: int) -> str:
    near = text[:LONGEST] if at == 0 else text[-LONGEST:]
    found = [match[0].strip() for match in number.find_numbers(write_out(undress(near)))]
    return found[at] if found else ""


# ----------------------------------------------------------------------------------------------------------
# When two answers are the same


def matches_gold(said: str | None, gold: str) -> bool:
    r"""Whether `said` is the answer `gold`; of several accepted ones (`join_answers`) any counts.

    Decimals may be off by what a float or a rounding to six places loses (`train.data.number`).

    >>> said = ["1000", "$1,000", "1000.00", r"\boxed{1000}", "1000 pens."]
    >>> all(matches_gold(one, "1,000") for one in said)
    True
    >>> [matches_gold(said, "1000") for said in ("10,00", "999", "1000 or 1001", "500*2", "-1000", "", None)]
    [False, False, False, False, False, False, False]
    >>> matches_gold("Paris.", "paris"), matches_gold(r"\frac{1}{2}", "0.5"), matches_gold("1+x", "$x + 1$")
    (True, True, True)
    >>> matches_gold("3", "3x^2"), matches_gold("(4,3)", "(3,4)"), matches_gold("-2 and 1", "1, -2")
    (False, False, True)
    """
    if not said or not said.strip() or not gold.strip():
        return False
    return any(_same(said, one) for one in accepted_answers(gold))


def accepted_answers(gold: str) -> list[str]:
    """Return every answer that `gold` accepts: one, or those that `join_answers` put into it.

    >>> accepted_answers("42"), accepted_answers('["42", "forty-two"]')
    (['42'], ['42', 'forty-two'])
    """
    if gold.startswith('["') and gold.endswith('"]'):
        try:
            found = json.loads(gold)
        except ValueError:
            return [gold]
        return [str(one) for one in found]
    return [gold]


def join_answers(accepted: list[str]) -> str:
    """Return one gold that accepts any of `accepted`; those that say the same are kept once.

    >>> join_answers(["2", "2 cups"]), join_answers(["half", "0.5"])
    ('2', '["half", "0.5"]')
    """
    kept: list[str] = []
    for one in accepted:
        if not any(matches_gold(one, other) and matches_gold(other, one) for other in kept):
            kept.append(one)
    return kept[0] if len(kept) == 1 else json.dumps(kept, ensure_ascii=False)


def same_answer(first: str, second: str) -> bool:
    """Whether two models gave one answer: the same number, or the same words; neither of them is the gold.

    >>> same_answer("It is 4.", "$4.00"), same_answer("Paris", "paris."), same_answer("4", "5")
    (True, True, False)
    """
    stated = parse_number(first)
    return parse_number(second) == stated if stated is not None else _short(first) == _short(second)


def _short(text: str) -> str:
    return _words(text) if len(text) <= LONGEST else text


def _same(said: str, gold: str) -> bool:
    gold = bare_answer(gold)
    if len(said) > LONGEST or len(gold) > LONGEST:
        return said.strip() == gold
    if wanted := gold_number(gold):
        if _names_differ(said, gold):
            return False
        found = number.read_number(said)
        return found is not None and number.same_number(found, wanted)
    if _words(said) == _words(gold):
        return True
    if (choice := _CHOICE.fullmatch(gold.strip())) and not choice["more"]:
        return _chosen(said) == choice[1].upper()
    if (parts := lists.split_list(undress(gold))) is not None:
        return lists.same_list(undress(said), parts, _same_part)
    bare_said, bare_gold = undress(said), undress(gold)
    return is_formula(bare_gold) and is_formula(bare_said) and formulas_agree(bare_said, bare_gold)


def _same_part(said: str, gold: str) -> bool:
    return not _names_differ(said, gold) and _same(said, gold)


@lru_cache(maxsize=65536)
def gold_number(gold: str) -> Number | None:
    """The plain number that a bare gold is; None for a name (Apollo 11), an equation or any other formula."""
    bare = write_out(undress(gold))
    if re.match(r"[^0-9]*[^\W\d_]{2}[^0-9]*[0-9]", bare) and "=" not in bare:
        return None
    if _WHOLE_EQUATION.match(bare):
        return None
    if re.fullmatch(r"\s*\(.*,.*\)\s*|\s*\[.*\]\s*|\s*\{.*\}\s*", bare):
        return None  # a point or an interval
    return number.read_number(gold, gold=True)


def _names_differ(said: str, gold: str) -> bool:
    """Whether both name what they give a value, and not the same: `y = 5` is not `x = 5`."""
    one, other = _NAMED.match(undress(said)), _NAMED.match(undress(gold))
    return bool(one and other) and one[1] != other[1]  # type: ignore[index]


def _chosen(said: str) -> str:
    """The letter of a choice, in capitals: `(B)`, `B. Paris`, `Option B`."""
    found = _CHOICE.fullmatch(undress(said).rstrip(". "))
    if not found or re.search(r"\b(?:or|and|not)\b|\b[A-Z][).:]", found["more"] or ""):
        return ""
    return found[1].upper()


def _words(text: str) -> str:
    """`text` reduced to what makes two answers in words the same; signs stay where there are digits."""
    bare = re.sub(r"\s+", " ", undress(text)).casefold()
    bare = re.sub(r"([_^])\{(\w+)\}", r"\1\2", bare)
    wordy = re.fullmatch(r"[^0-9\\^=+*/<>|_]*", bare) and not re.search(r"[(\[{].*,", bare)
    if wordy:
        return bare.strip(" .,:;!?()[]\"'")
    return re.sub(r"\s*([-:/+*=<>,])\s*", r"\1", bare).strip(" .;\"'")
