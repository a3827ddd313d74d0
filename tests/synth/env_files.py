"""Env files after CodeGym's contract, small and our own: a sound one, and the same with one fault each."""

import ast

import msgspec

SOUND = '''"""Numbers lie in a row, face down. Count those that are larger than the limit."""

import ast
import json

import gymnasium


class CountLargerEnv(gymnasium.Env):
    def __init__(self, env_str=None):
        super().__init__()
        self.func_mapping = {"Observe": 0, "Look": 1, "Note": 2, "Done": 3}
        if env_str is not None:
            self.reset(options=ast.literal_eval(env_str.split("@", 1)[1]))
        else:
            self.reset()

    @property
    def finished(self):
        return self._done

    @property
    def reward(self):
        return float(self._reward)

    @staticmethod
    def from_env_str(env_str):
        if not env_str.startswith("CountLargerEnv@"):
            return None
        return CountLargerEnv(env_str)

    def reset(self, options={}):
        self.numbers = list(options.get("numbers", [14, 3, 27, 8, 19, 33, 5]))
        self.limit = options.get("limit", 10)
        self.noted = 0
        self.step_count = 0
        self._done = False
        self._reward = 0
        return "Begin."

    def get_ref_answer(self):
        return sum(number > self.limit for number in self.numbers)

    def step(self, action):
        self.step_count += 1
        try:
            call = json.loads(action)
            name, given = call["name"], call["parameters"]
            if name not in self.func_mapping:
                return True, "Error: no such function"
            return True, getattr(self, name)(**given)
        except Exception as error:
            return True, f"Error: {error}"

    def Observe(self):
        return json.dumps({"cards": len(self.numbers), "limit": self.limit})

    def Look(self, index):
        return str(self.numbers[index])

    def Note(self):
        self.noted += 1
        return "noted"

    def Done(self, answer):
        if self._done:
            return "It is over."
        self._done = True
        try:
            is_right = type(answer) is not bool and int(answer) == self.get_ref_answer()
        except (TypeError, ValueError):
            is_right = False
        self._reward = 1 if is_right else 0
        return f"You said {answer}."

    def solve(self):
        seen = json.loads(self.step(json.dumps({"name": "Observe", "parameters": {}}))[1])
        count = 0
        for index in range(seen["cards"]):
            call = json.dumps({"name": "Look", "parameters": {"index": index}})
            if int(self.step(call)[1]) > seen["limit"]:
                count += 1
                self.step(json.dumps({"name": "Note", "parameters": {}}))
        return self.step(json.dumps({"name": "Done", "parameters": {"answer": count}}))[1]
'''

_OBSERVE = 'return json.dumps({"cards": len(self.numbers), "limit": self.limit})'
_REFERENCE = "return sum(number > self.limit for number in self.numbers)"
_JUDGED = "is_right = type(answer) is not bool and int(answer) == self.get_ref_answer()"

FAULTS: dict[str, tuple[tuple[str, str], ...]] = {
    "prints_all": (
        (_OBSERVE, 'return f"{self.numbers}; limit {self.limit}, {len(self.numbers)} cards"'),
        (
            'json.loads(self.step(json.dumps({"name": "Observe", "parameters": {}}))[1])',
            '{"cards": len(self.numbers), "limit": self.limit}',
        ),
    ),
    "wrong_reference": ((_REFERENCE, _REFERENCE.replace(">", ">=")),),
    "tells_answer": (
        ('return f"You said {answer}."', 'return f"{answer}; right: {self.get_ref_answer()}"'),
    ),
    "done_again": (('        if self._done:\n            return "It is over."\n', ""),),
    "brittle": ((_JUDGED, "is_right = answer == self.get_ref_answer()"),),
    "constant": (
        (_REFERENCE, "return 3"),
        ('{"name": "Done", "parameters": {"answer": count}}', '{"name": "Done", "parameters": {"answer": 3}}'),
    ),
    "calculators": (("        self.noted += 1\n", ""),),
    "chance": (
        ("import json\n", "import json\nimport random\n"),
        ('return "noted"', "return str(random.random())"),
    ),
    "accepts_all": ((_JUDGED, "is_right = True"),),
    "loses": (('"answer": count}', '"answer": count + 1}'),),
    "observed_answer": ((_OBSERVE, _OBSERVE.replace('}', ', "all": self.get_ref_answer()}')),),
    "raises": (("        self.noted = 0\n", '        raise ValueError("of no use")\n'),),
}  # fmt: skip

# Changes that are no faults: a number of a rule that happens to be an answer, a tool that calls another.
SOUND_TOO: dict[str, tuple[str, str]] = {
    "rule_four": ('return f"You said {answer}."', 'return f"You said {answer}, by rule 4."'),
    "nested": (
        'return "noted"',
        'return self.step(json.dumps({"name": "Observe", "parameters": {}}))[1]',
    ),
}

# What an auditor has: two solutions, and the same problem under the names of the fault.
SOLUTION = "def solve(numbers, limit):\n    return sum(number > limit for number in numbers)\n"
SOLVER = (
    "def solve(numbers, limit):\n    count = 0\n    for number in numbers:\n"
    "        if number > limit:\n            count += 1\n    return count\n"
)
CONFIGS = (
    {"numbers": [14, 10, 27, 8, 19, 33, 5], "limit": 10},
    {"numbers": [2, 9, 9, 4, 61, 7], "limit": 9},
    {"numbers": [50, 1, 70, 21, 36, 12, 90, 6], "limit": 20},
)


def faulty(fault: str) -> str:
    """The source with a fault; its class keeps its name."""
    source = SOUND
    for sound, wrong in FAULTS[fault]:
        assert sound in source
        source = source.replace(sound, wrong)
    ast.parse(source)
    return source


def instance(code: str, config: dict[str, object], *, prompt: str = "", source: str = "") -> bytes:
    """A line of a data file."""
    row = {
        "ability": f"codegym_v1@{code}__CountLargerEnv@{config!r}",
        "code_id": code,
        "prompt": [{"role": "user", "content": prompt or "Count the cards that are larger."}],
        "extra_info": {"index": 0, "gym_env": source} if source else {"index": 0},
    }
    return msgspec.json.encode(row) + b"\n"


def problem(id: str) -> bytes:
    """A line of a file of problems."""
    row = {
        "id": id,
        "statement": "Count the numbers larger than the limit.",
        "solutions": [SOLUTION, SOLVER],
        "entry": "solve",
        "tests": [{"args": {"numbers": [1, 5, 9], "limit": 4}, "answer": 2}],
    }
    return msgspec.json.encode(row) + b"\n"
