"""`python launch.py bench engine|overlap|learning|cost`: each prints a comparison made in one run."""
