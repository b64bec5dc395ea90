"""Tells a page that holds an article from one that stands in front of it: better no summary than a wall's.

Every rule needs two signs: words or markup of a wall, and too little text behind it. Long articles on
cookies, paywalls and captchas pass.
"""

from __future__ import annotations

import re

from bots.documents.article import Unreadable
from bots.documents.sanitise import count_words

SHORT = 150
"""Words below which a text may be the wall itself or the teaser in front of it."""
TEASER = 350
"""Words below which a text may be the free beginning of a paid article."""

_BOT_CHECK = re.compile(
    r"cf-browser-verification|cf[-_]challenge|cdn-cgi/challenge-platform|px-captcha|captcha-delivery\.com"
    r"|_incapsula_resource|awswafintegration|ddos-guard|g-recaptcha|h-captcha"
    r"|checking (?:if the site connection is secure|your browser)"
    r"|verify(?:ing)? (?:that )?you are (?:a )?human"
    r"|are you a robot|unusual traffic from your|attention required! \| cloudflare|<title>just a moment"
    r"|enable javascript and cookies to continue|pardon our interruption",
    re.IGNORECASE,
)
_COOKIES = re.compile(
    r"(?:accept|agree to|allow|consent to)[^.<>]{0,40}cookies?[^.<>]{0,60}to (?:continue|proceed|read|view)"
    r"|(?:continue|proceed|read on)[^.<>]{0,40}(?:accept|agree|allow)[^.<>]{0,40}cookies"
    r"|cookies? (?:must be|are required to be) (?:accepted|enabled)"
    r"|(?:akzeptieren|accepter)[^.<>]{0,30}cookies?[^<>]{0,80}(?:weiterlesen|continuer)",
    re.IGNORECASE,
)
_PAYWALL = re.compile(
    r"(?:only|exclusively) (?:available )?(?:to|for) (?:our )?(?:\w+ )?(?:subscribers|members)"
    r"|(?:subscribers|members)[- ]only|for (?:paying|paid) (?:subscribers|members|readers)"
    r"|(?:subscribe|sign in|log in|register|become a (?:subscriber|member))[^.<>]{0,40}"
    r"to (?:continue|keep|finish)? ?(?:read|view|access|unlock)"
    r"|to (?:continue|keep) reading,? (?:please )?(?:subscribe|sign|log|register)"
    r"|already a (?:subscriber|member)\?|this (?:article|story|content|post) is (?:for|reserved for|locked)"
    r"|unlock (?:this|the full) (?:article|story)|(?:you have|you've) reached your (?:\w+ )?limit of free"
    r"|réservé aux abonnés|nur für abonnenten",
    re.IGNORECASE,
)
_NOT_FREE = re.compile(r"[\"']isAccessibleForFree[\"']\s*:\s*[\"']?false", re.IGNORECASE)
_SHELL = re.compile(
    r"<noscript[^>]{0,200}>[^<]{0,500}(?:<[^>]{1,200}>[^<]{0,200}){0,3}javascript|\bng-app\b|<app-root|data-reactroot"
    r"|<div[^>]{1,200}id=[\"']?(?:root|app|__next|__nuxt|main-app|svelte)[\"']?[^>]{0,200}>\s{0,200}</div>"
    r"|you need to enable javascript|requires javascript|please (?:enable|turn on) javascript",
    re.IGNORECASE,
)
_SCRIPT = re.compile(r"<script(?![^>]{0,200}\bjson)", re.IGNORECASE)
_HIDDEN = frozenset({"script", "style", "noscript", "template", "svg", "head", "iframe"})


def check_for_wall(html: str, text: str) -> tuple[str, ...]:
    """Raise `Unreadable` when `text`, extracted from `html`, is a wall; else return what to note."""
    size = count_words(text)
    if size < SHORT:
        refuse_bot_check(html)
        shown = visible_text(html)
        if _PAYWALL.search(shown) or _NOT_FREE.search(html):
            raise _paywall()
        if _COOKIES.search(shown):
            raise Unreadable(
                "cookies",
                "The page shows only a cookie wall: open it in your browser, accept or refuse there, "
                "save the page and pass the file.",
            )
        if count_words(shown) < SHORT and (
            _SHELL.search(html) or (size < 20 and _SCRIPT.search(html))
        ):
            raise Unreadable(
                "shell",
                "The text of this page appears only after its scripts ran: add --browser to render it "
                "with an installed Chromium, or save the page from your browser and pass the file.",
            )
    if _NOT_FREE.search(html) or (size < TEASER and _PAYWALL.search(visible_text(html))):
        return ("The page says that parts of it are for subscribers: the text may not be whole.",)
    return ()


def refuse_bot_check(html: str) -> None:
    """Raise when the page only checks whether a person is asking."""
    if _BOT_CHECK.search(html[:200_000]):
        raise Unreadable(
            "bot-check",
            "The site checks for robots and shows no article: open it in your browser, save the page "
            "and pass the file.",
        )


def visible_text(html: str) -> str:
    """What a reader without scripts would see, roughly."""
    import lxml.html

    try:
        tree = lxml.html.fromstring(html)
    except (ValueError, lxml.etree.LxmlError):
        return ""
    shown: list[str] = []
    for event, node in lxml.etree.iterwalk(tree, events=("start", "end")):
        inside = isinstance(node.tag, str) and node.tag not in _HIDDEN
        if event == "start" and inside and node.text:
            shown.append(node.text)
        elif event == "start" and not inside:
            node.clear(keep_tail=True)
        elif event == "end" and node.tail and node is not tree:
            shown.append(node.tail)
    return " ".join(" ".join(shown).split())


def _paywall() -> Unreadable:
    return Unreadable(
        "paywall",
        "The article is behind a paywall and only its beginning is here: log in with your browser, "
        "save the page and pass the file.",
    )
