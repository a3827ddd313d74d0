"""A conversation with the model about one sample of a problem: what was said, and what is asked next."""

import msgspec

from synth.llm.cache import Message
from synth.llm.prompts import Prompts
from synth.llm.replies import Block, RefusedReply, Reply, spoken
from synth.problem import Problem

_ENVIRONMENT = (Block.ENVIRONMENT, Block.CONFIGURATIONS)
_SOLVER = (Block.SOLVER,)
# Seeds of solvers begin here, so that none is that of a sample.
_SOLVER_SEED = 1_000


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """It ends with what is asked, or with a reply that was good."""

    problem: Problem
    name: str
    """What it is for: `<problem>.environment.0`, `<problem>.solver.1`."""
    seed: int
    messages: tuple[Message, ...]
    blocks: tuple[Block, ...]
    """What each reply must have."""
    repairs_left: int
    repairs: int = 0
    """How often something went back so far."""

    def answered(self, reply: Reply) -> "Conversation":
        # Some endpoints refuse an empty message.
        said = Message(role="assistant", content=spoken(reply).strip() or "(empty)")
        return msgspec.structs.replace(self, messages=(*self.messages, said))

    def asked_again(self, prompts: Prompts, message: str) -> "Conversation":
        """Go on after a reply with what is wrong with it."""
        question = Message(role="user", content=prompts.ask_repair(message, self.blocks))
        return self._repaired((*self.messages, question))

    def after_refusal(
        self, prompts: Prompts, reply: Reply, refused: RefusedReply
    ) -> "Conversation":
        """Go on after a reply that could not be read."""
        if refused.reason == "truncated":
            # Half a reply is no use to the model, and would leave less room for a whole one.
            first = self.messages[0]
            again = f"{first.content}\n\n{refused.text}\n"
            return self._repaired((Message(role="user", content=again),))
        return self.answered(reply).asked_again(prompts, refused.text)

    def _repaired(self, messages: tuple[Message, ...]) -> "Conversation":
        return msgspec.structs.replace(
            self, messages=messages, repairs_left=self.repairs_left - 1, repairs=self.repairs + 1
        )


def about_environment(
    problem: Problem, sample: int, prompts: Prompts, repairs: int
) -> Conversation:
    return Conversation(
        problem=problem,
        name=f"{problem.id}.environment.{sample}",
        seed=sample,
        messages=(Message(role="user", content=prompts.ask_environment(problem, sample)),),
        blocks=_ENVIRONMENT,
        repairs_left=repairs,
    )


def about_solver(problem: Problem, number: int, prompts: Prompts, repairs: int) -> Conversation:
    return Conversation(
        problem=problem,
        name=f"{problem.id}.solver.{number}",
        seed=_SOLVER_SEED + number,
        messages=(Message(role="user", content=prompts.ask_solver(problem)),),
        blocks=_SOLVER,
        repairs_left=repairs,
    )
