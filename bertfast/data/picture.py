"""Draws sequences as figure 2 of the BERT paper (Devlin et al., 2019) does: each token's input is word + segment + position.

A line of boxes for the tokens, under it a line each for the embeddings that are added; a sequence wider than the page goes on
below. Tokens to be predicted are outlined, with the true token above.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from bertfast._extras import install
from bertfast.data.files import missing_extra
from bertfast.data.show import Shown, Token

PER_LINE = 12  # tokens side by side
MOST_LINES = 8  # about 4,000 pixels high; viewers and browsers shrink what is higher until nothing can be read
STEP, BOX, HEIGHT = 1.18, 1.0, 0.56  # width of a column, and of a box in it; height of a box
ROW_GAP = 0.36  # between rows, room for a plus sign
ROWS = ("input", "word", "segment", "position")
INCHES = 0.72  # of one unit
TOP, BOTTOM = 1.35, 0.45  # room above a line of tokens (targets, segments) and below it (bounds)
HEAD, FOOT = 0.7, 0.65  # room for the title and the notes
LABEL_WIDTH = 3.35  # from the left edge to the middle of the first column
NAMES = {"input": "Input", "word": "Word embedding", "segment": "Segment embedding", "position": "Position embedding"}

INK, FAINT, PREDICT = "#23303f", "#8792a0", "#c8352b"
FILLS = {"input": "#f3dfe6", "special": "#e3e3ea", "mask": "#23303f", "word": "#fdf0c4", "position": "#e9edf2"}
LINES = ("#4f9a45", "#3f7fbd")
SEGMENTS = ("#d7ecd3", "#cfe3f5")
PREFERRED = (
    "Noto Sans CJK JP",
    "Noto Sans JP",
    "IPAexGothic",
    "IPAGothic",
    "TakaoGothic",
    "Yu Gothic",
    "Hiragino Sans",
)


def _covers(path: str, text: frozenset[str]) -> bool:
    from matplotlib.ft2font import FT2Font

    try:
        known = FT2Font(path).get_charmap()
    except (RuntimeError, OSError):
        return False
    return all(ord(char) in known for char in text)


def _japanese(char: str) -> bool:
    return "\u3000" <= char <= "\u30ff" or "\u3400" <= char <= "\u9fff" or "\uff00" <= char <= "\uffef"


@lru_cache(maxsize=8)
def find_font(text: frozenset[str]) -> str:
    """File of a font with the Japanese characters of `text`: matplotlib's own, the system's, or matplotlib-fontja's.

    ImportError that names the extra `ja` where there is none.
    """
    from matplotlib import font_manager

    needed = frozenset(char for char in text if _japanese(char))
    usual = font_manager.findfont("DejaVu Sans")
    if not needed:
        return usual
    fonts = {font.fname: font.name for font in font_manager.fontManager.ttflist if font.style == "normal"}
    rank = {name: index for index, name in enumerate(PREFERRED)}
    for path in sorted(
        (p for p in fonts if not fonts[p].startswith("Last Resort")),
        key=lambda path: (rank.get(fonts[path], len(rank)), path),
    ):
        if _covers(path, needed):
            return path
    if (spec := importlib.util.find_spec("matplotlib_fontja")) is not None and spec.origin:
        for font in sorted((Path(spec.origin).parent / "fonts").glob("*.ttf")):
            if _covers(str(font), needed):
                return str(font)
    raise ImportError(f"no font of this system has the Japanese characters of the picture; to get one: {install('ja')}")


class _Page:
    """An axes in units of boxes, y growing downwards, and the two fonts: one for pieces, one for the rest."""

    def __init__(self, axes: Any, pieces_font: str) -> None:
        from matplotlib.font_manager import FontProperties
        from matplotlib.ft2font import FT2Font

        self.axes, self.font = axes, FontProperties(fname=pieces_font)
        self._known = FT2Font(pieces_font).get_charmap()

    def text(
        self, x: float, y: float, text: str, size: float, color: str = INK, piece: bool = False, **more: Any
    ) -> None:
        if piece:
            # A character that the font lacks becomes a square rather than a warning and a hole.
            more["fontproperties"] = self.font
            text = "".join(char if ord(char) in self._known else "\u25a1" for char in text)
        else:
            text = text.replace("$", r"\$") if not more.pop("math", False) else text
        more = {"ha": "center", "va": "center", **more}
        self.axes.text(x, y, text, fontsize=size, color=color, parse_math=not piece, **more)

    def box(self, x: float, y: float, fill: str, edge: str = INK, width: float = 0.8) -> None:
        from matplotlib.patches import FancyBboxPatch

        shape = "round,pad=0,rounding_size=0.11"
        self.axes.add_patch(
            FancyBboxPatch((x - BOX / 2, y - HEIGHT / 2), BOX, HEIGHT, boxstyle=shape, fc=fill, ec=edge, lw=width)
        )


def _width(piece: str, size: float) -> float:
    """About how wide `piece` is, in units."""
    return sum(1.0 if _japanese(char) else 0.58 for char in piece) * size / 72 / INCHES


def _fitting(piece: str, largest: float, room: float = BOX - 0.12) -> float:
    """Font size at which a piece fits."""
    return min(largest, largest * room / max(_width(piece, largest), 1e-9))


def _word_embedding(page: _Page, piece: str, x: float, y: float) -> None:
    """E with the piece as its index."""
    size = _fitting(piece, 9.5, BOX - 0.34)
    left = x - (0.16 + _width(piece, size)) / 2
    page.text(left, y + 0.02, "$E$", 12, math=True, ha="left")
    page.text(left + 0.16, y + 0.08, piece, size, piece=True, ha="left")


def _column(page: _Page, token: Token, x: float, y: float, special: bool) -> None:
    """One token: its box and the three embeddings that are added under it."""
    rows = {name: y + index * (HEIGHT + ROW_GAP) for index, name in enumerate(ROWS)}
    masked = token.piece == "[MASK]" and token.target is not None
    fill = FILLS["mask" if masked else "special" if special else "input"]
    chosen = token.target is not None
    page.box(x, rows["input"], fill, PREDICT if chosen else INK, 1.8 if chosen else 0.8)
    page.text(x, rows["input"], token.piece, _fitting(token.piece, 13), "white" if masked else INK, piece=True)
    if token.target is not None:
        page.text(x, rows["input"] - HEIGHT / 2 - 0.22, token.target, _fitting(token.target, 11), PREDICT, piece=True)
    page.box(x, rows["word"], FILLS["word"])
    _word_embedding(page, token.piece, x, rows["word"])
    page.box(x, rows["segment"], SEGMENTS[token.segment % 2])
    page.text(x, rows["segment"], f"$E_{{{'AB'[token.segment % 2]}}}$", 12, math=True)
    page.box(x, rows["position"], FILLS["position"])
    page.text(x, rows["position"], f"$E_{{{token.position}}}$", 12, math=True)
    for above, below in pairwise(ROWS[1:]):
        page.text(x, (rows[above] + rows[below]) / 2, "+", 12, FAINT)
    middle = (rows["input"] + HEIGHT / 2, rows["word"] - HEIGHT / 2)
    page.axes.annotate(
        "",
        (x, middle[1]),
        (x, middle[0]),
        arrowprops={"arrowstyle": "-|>", "color": FAINT, "lw": 0.9, "mutation_scale": 8},
    )


def _names(page: _Page, y: float) -> None:
    for index, name in enumerate(ROWS):
        page.text(LABEL_WIDTH - BOX / 2 - 0.2, y + index * (HEIGHT + ROW_GAP), NAMES[name], 11.5, ha="right")


def _segments(page: _Page, tokens: Sequence[Token], y: float) -> None:
    """A line over each run of one segment, with its name."""
    for segment, run in groupby(range(len(tokens)), key=lambda index: tokens[index].segment):
        columns = list(run)
        left, right = (LABEL_WIDTH + at * STEP + side * BOX / 2 for at, side in ((columns[0], -1), (columns[-1], 1)))
        page.axes.plot([left, right], [y, y], color=LINES[segment % 2], lw=2.2, solid_capstyle="round")
        name = f"sentence {'AB'[segment % 2]}, segment {segment}" if len(columns) > 2 else "AB"[segment % 2]
        page.text((left + right) / 2, y - 0.2, name, 10, LINES[segment % 2])


def _bracket(page: _Page, left: float, right: float, y: float, text: str, open_left: bool, open_right: bool) -> None:
    """A bracket under a sequence; a side on which it goes on over another line stays open."""
    page.axes.plot([left, right], [y, y], color=INK, lw=1)
    for x, is_open in ((left, open_left), (right, open_right)):
        if not is_open:
            page.axes.plot([x, x], [y - 0.1, y], color=INK, lw=1)
    page.text((left + right) / 2, y + 0.2, text, 10)


def _lines(shown: Sequence[Shown]) -> Iterator[tuple[int, Shown, int]]:
    for number, sequence in enumerate(shown):
        for start in range(0, len(sequence.tokens), PER_LINE):
            yield number, sequence, start


def _caption(number: int, sequence: Shown) -> str:
    follows = {0: ", B follows A (IsNext)", 1: ", B is from elsewhere (NotNext)"}.get(sequence.next_sentence or 0, "")
    follows = follows if sequence.next_sentence is not None else ""
    return f"sequence {number}: rows {sequence.first} to {sequence.end - 1} of the packed batch{follows}"


def draw(shown: Sequence[Shown], path: Path, title: str) -> int:
    """Draws sequences into a PNG (or whatever the ending of `path` says), as many tokens as `MOST_LINES` hold.

    Returns how many tokens that is.

    ImportError without matplotlib (extra `plot`), or without a font for the Japanese characters (extra `ja`); OSError where `path`
    cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra(error, "plot", "drawing a batch") from None
    characters = frozenset("".join(t.piece + (t.target or "") for sequence in shown for t in sequence.tokens))
    columns = min(PER_LINE, max(len(sequence.tokens) for sequence in shown))
    lines = list(_lines(shown))[:MOST_LINES]
    line_height = TOP + len(ROWS) * HEIGHT + (len(ROWS) - 1) * ROW_GAP + BOTTOM
    width, height = LABEL_WIDTH + columns * STEP - 0.28, HEAD + len(lines) * line_height + FOOT
    figure = Figure(figsize=(width * INCHES, height * INCHES))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    page = _Page(axes, find_font(characters))
    page.text(0.25, 0.42, title, 15, ha="left", weight="bold")
    for at, (number, sequence, start) in enumerate(lines):
        _line(page, HEAD + at * line_height + TOP, number, sequence, start)
    notes = "Each token's input is the sum of three learned vectors: its word, its segment (A or B) and its position."
    if any(token.target is not None for sequence in shown for token in sequence.tokens):
        notes += " Red: the token to be predicted."
    page.text(0.25, height - 0.32, notes, 10.5, FAINT, ha="left")
    figure.savefig(path, dpi=130)
    return sum(len(sequence.tokens[start : start + PER_LINE]) for _, sequence, start in lines)


def _line(page: _Page, y: float, number: int, sequence: Shown, start: int) -> None:
    tokens = sequence.tokens[start : start + PER_LINE]
    _names(page, y)
    _segments(page, tokens, y - HEIGHT / 2 - 0.48)
    for index, token in enumerate(tokens):
        _column(page, token, LABEL_WIDTH + index * STEP, y, special=token.word < 0)
    left, right = LABEL_WIDTH - BOX / 2, LABEL_WIDTH + (len(tokens) - 1) * STEP + BOX / 2
    below = y + 3 * (HEIGHT + ROW_GAP) + HEIGHT / 2 + 0.24
    last = start + len(tokens) == len(sequence.tokens)
    _bracket(page, left, right, below, _caption(number, sequence), start > 0, not last)
