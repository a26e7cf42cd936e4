"""Tables of sequences: one column a token, broken where the console ends."""

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from bertfast.cli.common import console
from bertfast.data.show import Shown, Token

ROWS = {
    "position": lambda token: str(token.position),
    "token": lambda token: token.piece,
    "id": lambda token: str(token.id),
    "segment": lambda token: str(token.segment),
    "word": lambda token: str(token.word) if token.word >= 0 else "-",
    "predict": lambda token: token.target or "",
}
FOLLOWS = {0: "IsNext", 1: "NotNext", None: ""}


def _blocks(tokens: list[Token], shown: list[str]) -> list[list[Token]]:
    """Tokens whose columns fit the console side by side."""
    room = console.width - max(map(len, ROWS)) - 4
    blocks: list[list[Token]] = [[]]
    left = room
    for token in tokens:
        width = max(cell_len(ROWS[name](token)) for name in shown) + 3
        if width > left and blocks[-1]:
            blocks.append([])
            left = room
        blocks[-1].append(token)
        left -= width
    return blocks


def print_sequence(number: int, sequence: Shown) -> None:
    """Prints one sequence; the row of what is to be predicted only where there is something."""
    shown = [name for name in ROWS if name != "predict" or any(token.target for token in sequence.tokens)]
    title = f"sequence {number}: rows {sequence.first} to {sequence.end - 1} {FOLLOWS[sequence.next_sentence]}"
    for index, block in enumerate(_blocks(sequence.tokens, shown)):
        table = Table(title=title.strip() if index == 0 else None, title_justify="left", show_header=False)
        for _ in range(len(block) + 1):
            table.add_column(no_wrap=True, justify="center")
        for name in shown:
            # Text, because a corpus may hold what rich reads as markup.
            table.add_row(name, *(Text(ROWS[name](token)) for token in block))
        console.print(table, highlight=False)
