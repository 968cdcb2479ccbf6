"""Priorities: four classes, and integers inside each. A higher number goes first.

background  -1,999 … -1,000      normal  -999 … 999      high  1,000 … 1,999      interactive  2,000 … 2,999

Calls that are held are above all integers that a producer can give: a class of their own.
"""

from typing import Final

#: Somebody holds the line: the gateway's jobs. The answer is written, and said, without a moment's delay.
HELD: Final = 3_000
INTERACTIVE: Final = 2_000
HIGH: Final = 1_000
NORMAL: Final = 0
BACKGROUND: Final = -1_999

#: What a producer may call them.
CLASSES: Final = {"interactive": INTERACTIVE, "high": HIGH, "normal": NORMAL, "background": BACKGROUND}
#: Integers that a producer may give.
LOWEST: Final = -1_999
HIGHEST: Final = HELD - 1
