"""A terminal in memory: what is left on it after a stream of characters and control sequences."""

import re

_TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


def screen(output: str) -> list[str]:
    """The lines on a terminal of unlimited width and height, without trailing blanks.

    Knows what rich writes: text, CR, LF, colours, cursor up, erase line, cursor on and off. Raises
    ValueError for another control sequence.
    """
    lines, row, column = [""], 0, 0
    for match in _TOKEN.finditer(output):
        numbers, command, control, text = match.groups()
        if control == "\r":
            column = 0
        elif control == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif text is not None:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + text + line[column + len(text) :]
            column += len(text)
        elif command == "A":
            row -= int(numbers or 1)
        elif command == "K" and numbers == "2":
            lines[row] = ""
        elif not (command == "m" or numbers == "?25"):
            raise ValueError(f"control sequence {match.group()!r} is not known here")
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.rstrip() for line in lines]
