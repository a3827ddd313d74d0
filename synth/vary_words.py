"""The words that variations are drawn from: synonyms, paraphrases, distractors and noise."""

from envpool.variation import Distractor, Parameter

# Words of tool names and what else they may be called. Each synonym must be as true as the word.
TOOL_WORDS: dict[str, tuple[str, ...]] = {
    "add": ("append", "put_in"),
    "begin": ("start", "open"),
    "check": ("inspect", "examine"),
    "compare": ("contrast", "weigh"),
    "count": ("number_of", "tally"),
    "find": ("locate", "search"),
    "get": ("read", "fetch", "look_up", "retrieve"),
    "guess": ("try_value", "propose"),
    "insert": ("put", "place"),
    "is": ("test_if", "check_if"),
    "item": ("element", "entry"),
    "length": ("size", "count_all", "how_many"),
    "list": ("sequence", "series"),
    "look": ("view", "observe"),
    "move": ("shift", "go"),
    "next": ("successor", "following"),
    "number": ("value", "figure"),
    "order": ("arrange", "put_in_order"),
    "peek": ("glance", "preview"),
    "pop": ("take_off", "remove_last"),
    "price": ("cost", "unit_price"),
    "push": ("put_on", "stack_up"),
    "quantity": ("amount", "pieces"),
    "query": ("ask", "request"),
    "read": ("get", "fetch", "view"),
    "remove": ("delete", "take_out"),
    "reset": ("restart", "start_over"),
    "set": ("write", "assign"),
    "show": ("display", "view"),
    "size": ("length", "extent"),
    "start": ("first", "origin"),
    "step": ("advance", "proceed"),
    "sum": ("total", "add_up"),
    "swap": ("exchange", "switch"),
    "update": ("change", "modify"),
    "visit": ("go_to", "enter"),
    "write": ("set", "store"),
}
# For a name without a known word.
TOOL_PREFIXES = ("do", "run", "call", "use")

PARAMETER_WORDS: dict[str, tuple[str, ...]] = {
    "amount": ("quantity", "how_much"),
    "char": ("letter", "character"),
    "col": ("column", "x"),
    "column": ("col", "x"),
    "count": ("how_many", "times"),
    "end": ("stop", "last"),
    "i": ("index", "position"),
    "index": ("position", "place", "idx"),
    "j": ("second", "other_index"),
    "key": ("name", "label"),
    "left": ("low", "first"),
    "name": ("label", "title"),
    "node": ("vertex", "element"),
    "number": ("value", "num"),
    "pos": ("position", "index"),
    "position": ("index", "pos"),
    "right": ("high", "second"),
    "row": ("line", "y"),
    "start": ("begin", "first"),
    "text": ("string", "words"),
    "value": ("number_given", "val"),
    "word": ("term", "token"),
}
PARAMETER_PREFIXES = ("the", "given", "arg")

# Around a description, which ends with a full stop.
DESCRIPTIONS = (
    "{}",
    "What it does: {}",
    "Use this for the following. {}",
    "{} The reply comes as text.",
    "Tool of the environment. {}",
)

NOISE = (
    "[12:04:55] {}",
    "[info] request served\n{}",
    "{}\n[debug] 1 request, 0 warnings",
    "The reply is: {}",
    "Result -> {} (end of result)",
    "--- output ---\n{}\n--- end of output ---",
    "[trace 7f3a] ok\n{}\n[trace 7f3a] closed",
)

FAILURES = (
    "Error: busy, try again",
    "Error: temporarily unavailable, call again",
    "Error: timed out, nothing was done: repeat the call",
)


def _text(description: str) -> Parameter:
    return Parameter(type="string", description=description)


DISTRACTORS = (
    Distractor(
        name="current_time",
        description="The time of day where the service runs.",
        replies=["09:41", "09:42", "09:44"],
    ),
    Distractor(
        name="weather",
        description="The weather in a city.",
        parameters={"city": _text("Name of the city.")},
        replies=["Light rain, 11 degrees.", "Cloudy, 12 degrees."],
    ),
    Distractor(
        name="service_status",
        description="Whether the services behind these tools are up.",
        replies=["All services are up."],
    ),
    Distractor(
        name="search_notes",
        description="Search the notes of the user.",
        parameters={"query": _text("Words to look for.")},
        replies=["No note matches.", "1 note: buy milk."],
    ),
    Distractor(
        name="convert_currency",
        description="Convert an amount from euro to dollars.",
        parameters={"euros": Parameter(type="number", description="Amount in euro.")},
        replies=["The rate is not known today."],
    ),
    Distractor(
        name="translate",
        description="Translate a text.",
        parameters={
            "words": _text("The text."),
            "language": _text("Language to translate it to."),
        },
        replies=["This language pair is not served."],
    ),
    Distractor(
        name="save_draft",
        description="Keep a text for later.",
        parameters={"draft": _text("What to keep.")},
        replies=["Saved as draft 1.", "Saved as draft 2.", "Saved."],
    ),
    Distractor(
        name="list_contacts",
        description="Names in the address book.",
        replies=["Ana, Bo, Chidi"],
    ),
    Distractor(
        name="roll_dice",
        description="Roll a die with six faces.",
        replies=["4", "1", "6", "3"],
    ),
    Distractor(
        name="help_topics",
        description="Topics of the manual, which is not about this task.",
        replies=["accounts, billing, printing"],
    ),
)
