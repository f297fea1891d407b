"""Which words may say something: none of punctuation alone, and English function words only where they are kept."""

import regex

# A letter, a digit, or a symbol that stands for itself: an emoji can carry a sentence. Never `+ = $ ^ | < >`.
_SAYS_SOMETHING = regex.compile(r"[\p{L}\p{N}\p{So}]")

# Words that English needs and that seldom decide anything. Negations, numbers, quantifiers and directions are not among them.
_STOP_LINES = """
    a an the this that these those such there here
    i me my mine myself you your yours yourself he him his himself she her hers herself it its itself
    we us our ours ourselves they them their theirs themselves someone something
    am is are was were be been being do does did doing done have has had having
    will would shall should can could may might must ought
    and or but so if then because as while although though until since when whenever where
    of at by for with about into through to from in on onto upon
    what which who whom whose why how just very too also quite rather really
    i'm i've i'll i'd you're you've you'll you'd he's he'll he'd she's she'll she'd it's it'll it'd
    we're we've we'll we'd they're they've they'll they'd that's there's here's what's who's let's
"""
STOP_WORDS = frozenset(_STOP_LINES.split())


def says_something(word: str, keep_stop_words: bool) -> bool:
    """Whether a word may be part of a rationale."""
    return bool(_SAYS_SOMETHING.search(word)) and (keep_stop_words or folded(word) not in STOP_WORDS)


def folded(word: str) -> str:
    """A word for comparison: in any case, with either apostrophe."""
    return word.casefold().replace("’", "'")
