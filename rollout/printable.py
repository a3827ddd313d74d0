"""Text that environments and policies wrote, as a terminal may get it."""


def printable(text: str) -> str:
    """`text` with control and other invisible characters as escapes (`\\x1b`, `\\u202e`).

    Line breaks stay; a tab becomes four spaces.
    """
    text = text.replace("\t", "    ")
    if text.isprintable():
        return text
    return "".join(char if char == "\n" or char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()
