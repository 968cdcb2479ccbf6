"""How long a prompt will be in tokens must be known before it is sent, and cheaply: the limiter reserves by it.

It is an estimate from lengths alone, made without any model's vocabulary. A quarter of a token for each
character, and more for each byte that UTF-8 needs beyond the first: English comes to 4 characters a token, Chinese,
Japanese and Korean to 1.5, Cyrillic and Greek to 2.2. What the upstream counts replaces it when the answer arrives.
Known weakness: code and tables have shorter tokens than prose, so they come out up to a third too low.

Weights are counted in 24ths of a token, so that sums stay whole numbers.
"""

from typing import Final

#: Weight of one token.
TOKEN: Final = 24
#: Tokens of one picture, sound or film: what a picture of 1,024 x 1,024 costs on most models. A data URI of four
#: megabytes and a link to the same picture weigh the same.
MEDIA_TOKENS: Final = 1_000
#: Tokens that the chat template adds to each message (role, separators).
MESSAGE_TOKENS: Final = 4


def text_weight(text: str) -> int:
    """The weight of `text`; a text that is one base64 data URI weighs as a picture.

    >>> text_weight("four") // TOKEN, text_weight("你好世") // TOKEN, text_weight("data:image/png;base64,AAAA") // TOKEN
    (1, 2, 1000)
    """
    if text.startswith("data:") and ";base64," in text[:200]:
        return MEDIA_TOKENS * TOKEN
    if text.isascii():
        return 6 * len(text)
    return len(text) + 5 * len(text.encode())


def tokens(weight: int) -> int:
    """Whole tokens, rounded up, and never 0: every call costs something."""
    return max(1, -(-weight // TOKEN))
