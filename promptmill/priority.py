"""Priorities: four classes, and integers inside each. A higher number goes first.

background  -1,999 … -1,000      normal  -999 … 999      high  1,000 … 1,999      interactive  from 2,000
"""

from typing import Final

#: Somebody holds the line: the gateway's jobs. The answer is written, and said, without a moment's delay.
INTERACTIVE: Final = 2_000
HIGH: Final = 1_000
NORMAL: Final = 0
BACKGROUND: Final = -1_999

#: What a producer may call them.
CLASSES: Final = {"interactive": INTERACTIVE, "high": HIGH, "normal": NORMAL, "background": BACKGROUND}
#: Integers that a producer may give.
LOWEST: Final = -1_999
HIGHEST: Final = INTERACTIVE - 1
