"""What the factory lays beside code that nobody trusts, to run in the sandbox with it.

These modules are imported by name only there (`_inside` in a pool's directory); they import each other
relatively, and besides that the standard library, msgspec and `envpool` alone.
"""
