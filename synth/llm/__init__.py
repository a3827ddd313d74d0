"""The synthesizer that asks a language model: environments and independent solvers for coding problems.

    problem -> prompts -> replies (cached on disk) -> drafts -> (the verifier's message) -> repaired drafts

It needs an OpenAI-compatible endpoint; the environments below `recorded/` came by the same way from
replies that were written for this repository, and need none. Nothing that comes back is run here: it is
only parsed.
"""
