"""Settings of the factory that prove less, and faster, than its own do."""

QUICK = (
    "verify.configs=3",
    "verify.drawn=6",
    "verify.certificate_s=0.2",
    "verify.random_episodes=2",
    "verify.alternatives=8",
)
