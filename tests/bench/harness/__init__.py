"""The parts of compare.py; see tests/bench/README.md."""
