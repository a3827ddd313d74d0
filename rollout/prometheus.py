"""The text format 0.0.4 in which Prometheus reads metrics, and what the keys of a run are called there.

time/step_s            millrace_time_step_seconds
perf/tokens_per_s      millrace_perf_tokens_per_second
env/basics/step_s_p50  millrace_env_step_seconds_p50{pool="basics"}
stop/answered          millrace_stop_frac{reason="answered"}
curriculum/basics/sum_list/share  millrace_curriculum_share{pool="basics",env="sum_list"}
"""

import math
import re
from collections.abc import Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

PREFIX = "millrace_"

# Keys with a name in them: the name becomes a label. The rest follows `_name`.
_LABELLED = (
    (re.compile(r"(?P<family>env|pool)/(?P<pool>[^/]+)/(?P<rest>.+)"), "{family}_{rest}"),
    (
        re.compile(r"curriculum/(?P<pool>[^/]+)/(?P<env>.+)/(?P<rest>[^/]+)"),
        "curriculum_{rest}",
    ),
    (re.compile(r"stop/(?P<reason>.+)"), "stop_frac"),
    (re.compile(r"eval/(?P<set>[^/]+)/(?P<mode>.+)"), "eval_success"),
    (re.compile(r"lag/count_(?P<lag>\d+)"), "lag_rollouts"),
    (re.compile(r"lag/tokens_(?P<lag>\d+)"), "lag_tokens"),
)
_NOT_LABELS = ("family", "rest")
# Of the file, not of the run.
_LEFT_OUT = frozenset({"format"})
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Exposition:
    """Samples by the name of their metric; `str` gives the text."""

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}
        self._samples: dict[str, list[str]] = {}

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """A value that may go up and down."""
        self._add("gauge", name, value, labels)

    def counter(self, name: str, value: float, **labels: str) -> None:
        """A value that only grows; its name ends in `_total`."""
        self._add("counter", name, value, labels)

    def values(self, values: Mapping[str, float]) -> None:
        """The metrics of one step, by the keys of `metrics.jsonl`."""
        for key, value in values.items():
            if key not in _LEFT_OUT:
                name, labels = named(key)
                self._add("gauge", name, value, labels)

    def _add(self, kind: str, name: str, value: float, labels: Mapping[str, str]) -> None:
        full = PREFIX + name
        self._kinds.setdefault(full, kind)
        inner = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in labels.items())
        shown = f"{full}{{{inner}}}" if inner else full
        self._samples.setdefault(full, []).append(f"{shown} {_number(value)}")

    def __str__(self) -> str:
        lines: list[str] = []
        for name, samples in self._samples.items():
            lines += [f"# TYPE {name} {self._kinds[name]}", *samples]
        return "\n".join([*lines, ""])


def named(key: str) -> tuple[str, dict[str, str]]:
    """What a key of `metrics.jsonl` is called, without the prefix, and its labels."""
    for pattern, template in _LABELLED:
        if found := pattern.fullmatch(key):
            groups = found.groupdict()
            labels = {name: text for name, text in groups.items() if name not in _NOT_LABELS}
            return _name(template.format(**groups)), labels
    return _name(key), {}


def _name(key: str) -> str:
    """A valid name, with the unit spelled out."""
    name = re.sub(r"[^a-zA-Z0-9_]", "_", key)
    name = re.sub(r"_per_s(?=_|$)", "_per_second", name)
    return re.sub(r"_s(?=_|$)", "_seconds", name)


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value)) if isinstance(value, float) else str(int(value))
