"""Many faults in one test: how many of them, and what came of them."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Tell = Callable[[str], None]
"""The fixture `tell`: puts a line under the results of the tests, from whichever worker."""

EVERY = int(os.environ.get("POINTS", "0")) or None
"""Points of each long test; all of them when not set."""


@dataclass
class Tally:
    """What came of all the faults of one test; `what`: their name, in the plural."""

    what: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def judging(self, label: str) -> Iterator[None]:
        """What is not as it should be here is a failure of this one; the others go on."""
        try:
            yield
        except AssertionError as error:
            self.failures.append(f"{label}: {error}")

    def report(self, tell: Tell, name: str) -> None:
        """Tell the numbers, and fail if anything was lost or told wrong."""
        total = self.outcomes.total() + len(self.failures)
        tell(f"{name}: {total} {self.what}: {dict(self.outcomes)}, failed: {len(self.failures)}")
        assert total
        assert not self.failures, "\n\n".join(self.failures)
