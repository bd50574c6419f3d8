"""Comparing what was computed with what was committed, and saying how far apart they are."""

# Of the greatest magnitude in the tensor: what fp32 sums in another order (another CPU, another PyTorch) may move. Three
# quarters of an order below the 1e-4 that the engine is held to.
TOLERANCE = 2e-5


class Comparison:

    def __init__(self):
        self.failures = []
        self.differences = {}

    def close(self, name, got, expected):
        if got.shape != expected.shape:
            self.failures.append(f"{name}: shape {list(got.shape)}, expected {list(expected.shape)}")
            return
        difference = float((got.double() - expected.double()).abs().max() / expected.abs().max())
        self.differences[name] = max(difference, self.differences.get(name, 0.0))
        if not difference <= TOLERANCE:
            self.failures.append(f"{name}: {difference:.2e} of the greatest magnitude, more than {TOLERANCE:.0e}")

    def equal(self, name, got, expected):
        if got != expected:
            self.failures.append(f"{name}: not equal")

    def report(self):
        """Prints it; the program's exit status."""
        for name, difference in self.differences.items():
            print(f"{name}: differs by {difference:.1e} of the greatest magnitude")
        for failure in self.failures:
            print("FAILED", failure)
        return 1 if self.failures or not self.differences else 0
