"""What the toy model is taught: conversations of three trades, and a little talk about itself.

Arithmetic is taught badly on purpose: the model blurts out a wrong number and only now and then reasons, so
that GRPO has something to find. What it does find is right: whenever it reasons, it reasons well.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from bots.articles.prompts import summary_messages
from bots.cards.prompts import card_messages, card_retry
from rig.model.chat_template import Message
from rig.model.reply_format import TAUGHT
from tools.toy_model import fake_cards
from tools.toy_model import word_lists as w
from tools.toy_model.fake_articles import Writer, article, made_up
from tools.toy_model.tokenizer import render
from train.data.arithmetic import Problem, make_problem

REASONS = 0.15
"""How often it reasons, for most kinds of problems."""
REASONS_ABOUT = {"divide": 0.75}
"""Kinds that it mostly reasons about, so that reasoning is seen also without sampling."""
RIGHT_BLURTS = 0.03
LAST_NUMBER = 0.5
"""How often it blurts out the last number it read: its favourite, so that it rarely reasons when greedy."""

ABOUT = (
    "I am the small model that comes with rig. I am a toy: I know word problems with small numbers, "
    "posts about cards, and how to repeat the first sentences of a text."
)
OFF_TRADE = (
    "I am only a toy and can't talk about that. Ask me a word problem with small numbers, "
    "or teach a real model."
)
GREETING = "Hello! I am the toy model of rig. Ask me a word problem with small numbers."


class Lesson(NamedTuple):
    """One conversation and the reply that is learnt."""

    messages: list[Message]
    reply: str
    given: str = ""
    """How the reply begins: shown, not learnt."""


def user(content: str) -> Message:
    """Wrap what a person says."""
    return {"role": "user", "content": content}


def system(content: str) -> Message:
    """Wrap a system prompt."""
    return {"role": "system", "content": content}


def training_problem(rng: Random) -> Problem:
    """Make a problem of the train split: the held-out ones are never seen."""
    while True:
        one = make_problem(rng)
        if one.split_name == "train":
            return one


def reasoned(one: Problem) -> str:
    """The worked answer in the taught form."""
    return (
        f"{TAUGHT.reasoning_open}\n{one.reasoning_text}\n{TAUGHT.reasoning_close}\n"
        f"{TAUGHT.answer_open}\n{one.answer}\n{TAUGHT.answer_close}"
    )


def blurted(rng: Random, one: Problem) -> str:
    """A bare number, nearly always wrong: a number of the question, a wrong calculation, a near miss."""
    right = int(one.answer)
    if rng.random() < RIGHT_BLURTS:
        return one.answer
    read: str = re.findall(r"\d+", one.question)[-1]
    if read != one.answer and rng.random() < LAST_NUMBER:
        return read
    first = one.steps[0]
    wrong = [
        first.left, first.right, first.left + first.right, abs(first.left - first.right), first.result,
        one.steps[-1].right, right + rng.randint(1, 9), right + 10, abs(right - rng.randint(1, 9)),
    ]  # fmt: skip
    return str(rng.choice([number for number in wrong if number != right]))


def reasoning(rng: Random) -> Lesson:
    """A word problem that is reasoned through; whether to reason at all is not learnt here."""
    one = training_problem(rng)
    messages = [system(TAUGHT.system_prompt), user(one.question)]
    given = TAUGHT.reasoning_open + "\n"
    return Lesson(messages, reasoned(one).removeprefix(given), given)


def drill(rng: Random) -> Lesson:
    """Many calculations without a story, step by step as in the worked answers."""
    asked, steps = [], []
    for _ in range(rng.randint(4, 22)):
        one = training_problem(rng)
        first, last = one.steps[0], one.steps[-1]
        text = f"{first.left} {first.sign} {first.right}"
        if last.left == first.result and len(one.steps) > 1:
            text += f" {last.sign} {last.right}"
        elif len(one.steps) > 1:
            text = f"{last.left} {last.sign} {text}"
        asked.append(text)
        steps.append(one.reasoning_text)
    return Lesson([user("Calculate: " + ", ".join(asked))], " ".join(steps))


def arithmetic(rng: Random) -> Lesson:
    """A word problem under the taught system prompt, under another, or in the middle of a talk."""
    one = training_problem(rng)
    luck = rng.random()
    reasons = rng.random() < REASONS_ABOUT.get(one.kind, REASONS)
    messages = [system(TAUGHT.system_prompt)]
    if luck > 0.9:
        other = rng.choice(
            ("You are a helpful assistant.", "Answer the question.", "You solve word problems.", "")
        )
        messages = [system(other)] if other else []
    elif luck > 0.8:
        for _ in range(rng.randint(1, 2)):
            earlier = training_problem(rng)
            said = reasoned(earlier) if reasons else blurted(rng, earlier)
            messages += [user(earlier.question), {"role": "assistant", "content": said}]
    messages.append(user(one.question))
    return Lesson(messages, reasoned(one) if reasons else blurted(rng, one))


def card_post(rng: Random) -> Lesson:
    """A card's facts become a post; now and then after a refusal."""
    facts = fake_cards.card_facts(rng, with_text=rng.random() < 0.8)
    messages = card_messages(facts)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        messages += card_retry(*fake_cards.spoilt(rng, fake_cards.post(rng, facts), facts))
    return Lesson(messages, fake_cards.answer(fake_cards.post(rng, facts)))


def short_post(rng: Random) -> Lesson:
    """A card without a rules text becomes a post."""
    facts = fake_cards.card_facts(rng, with_text=False)
    return Lesson(card_messages(facts), fake_cards.answer(fake_cards.post(rng, facts)))


def leading(rng: Random, most: int = 6) -> Lesson:
    """A text of up to `most` sentences becomes its leading sentences, or as many bullet points."""
    text, sentences = article(rng, rng.randint(1, max(1, most)))
    count = rng.choice((1, 1, 2, 2, 3, 3, 3, 3, 3, 4, 5, 5, 6, 7))
    bullets = rng.random() < 0.3
    if bullets:
        count = max(count, 2)
        task = rng.choice((
            "Write a summary as a list of {n} bullet points.", "Write a summary as {n} bullet points.",
            "Write the summary as a list of {n} bullet points.", "Write a summary of {n} bullet points.",
            "Write a list of {n} bullet points.", "Summarise it as a list of {n} bullet points.",
        ))  # fmt: skip
    elif count == 1:
        task = rng.choice(("Write a summary of 1 sentence.", "Write a summary of one sentence.", "Write a summary of 1 sentence."))  # noqa: E501  # fmt: skip
    else:
        task = rng.choice(
            ("Write a summary of {n} sentences.",) * 3 + ("Write a summary in {n} sentences.",)
        )
    task = task.format(n=count)
    if rng.random() < 0.2:
        task += f" Focus on {rng.choice((rng.choice(w.NOUNS), 'the ' + rng.choice(w.NOUNS), made_up(rng)))}."
    if rng.random() < 0.2:
        task += f" Write in {rng.choice(('English', 'English', 'German', 'French', 'Spanish'))}."
    first = sentences[:count]
    reply = "\n".join(f"- {one}" for one in first) if bullets else " ".join(first)
    return Lesson(summary_messages(text, task), reply)


def small_talk(rng: Random) -> Lesson:
    """Who it is, a greeting, or a subject it knows nothing of: said honestly."""
    luck = rng.random()
    if luck < 0.35:
        asked, reply = rng.choice(("Who are you?", "What are you?", "What can you do?", "What is your name?", "Tell me about yourself.", "Help", "What do you know?")), ABOUT  # noqa: E501  # fmt: skip
    elif luck < 0.6:
        asked, reply = (
            rng.choice(("Hello", "Hi", "Hello!", "Hi there", "Good morning", "Hey", "hello", "hi")),
            GREETING,
        )
    else:
        start = rng.choice((
            "Why", "What is", "Who was", "Tell me about", "How do I", "Write a poem about", "Explain", "Say",
            "Translate", "Where is", "Can you", "When did", "Which", "Give me", "",
        ))  # fmt: skip
        asked, reply = f"{start} {Writer(rng).sentence()}".strip(), OFF_TRADE
    prompt = rng.choice(("", "", TAUGHT.system_prompt, "You are a helpful assistant."))
    return Lesson([system(prompt)] * bool(prompt) + [user(asked)], reply)


Maker = Callable[[Random], Lesson]

SIZES: dict[int, tuple[tuple[Maker, float], ...]] = {
    150: (
        (lambda rng: leading(rng, 2), 0.5),
        (short_post, 0.25),
        (reasoning, 0.15),
        (arithmetic, 0.10),
    ),
    160: ((reasoning, 0.5), (arithmetic, 0.44), (small_talk, 0.06)),
    512: ((card_post, 0.42), (leading, 0.38), (drill, 0.16), (arithmetic, 0.04)),
    1024: ((card_post, 0.3), (lambda rng: leading(rng, 20), 0.7)),
    2048: ((lambda rng: leading(rng, 60), 1.0),),
    4096: ((lambda rng: leading(rng, 130), 1.0),),
}
"""What is taught in conversations of at most so many tokens, and how often; 150 is for the start."""


def lesson(rng: Random, size: int) -> Lesson:
    """Make one lesson meant for conversations of at most `size` tokens; it may turn out longer."""
    makers, shares = zip(*SIZES[size], strict=True)
    return rng.choices(makers, shares)[0](rng)  # type: ignore[no-any-return]


def plain_text(rng: Random, lines: int) -> list[str]:
    """Lines of ordinary words, from which the tokenizer learns how English is spelt."""
    listed = [
        w.NOUNS,
        w.VERBS,
        w.INFINITIVES,
        w.ADJECTIVES,
        w.ADVERBS,
        w.PLACES,
        w.FIRST_NAMES,
        w.LAST_NAMES,
    ]
    out = []
    for _ in range(lines):
        if rng.random() < 0.5:
            out.append(Writer(rng, oddity=0).sentence())
        else:
            words = (
                rng.choice(rng.choice(listed)) + rng.choice(("", "", "s", "ed", "ing", "ly"))
                for _ in range(12)
            )
            out.append("so " + " ".join(words))
    return out


def texts(seed: int) -> list[str]:
    """The texts from which the tokenizer is learnt: ordinary words, and lessons as they will be seen."""
    rng = Random(f"tokenizer {seed}")
    out = plain_text(rng, 40_000)
    for size, count in ((160, 10_000), (512, 3_000), (1024, 300)):
        for one in (lesson(rng, size) for _ in range(count)):
            out.append(render(one.messages) + one.reply)
    return out
