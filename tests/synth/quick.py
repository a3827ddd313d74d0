"""Settings of the factory that prove less, and faster, than its own do.

How many configurations are drawn and kept is not among them: that depends on a test's problems.
"""

QUICK = (
    "verify.certificate_s=0.2",
    "verify.random_episodes=2",
    "verify.alternatives=8",
)
