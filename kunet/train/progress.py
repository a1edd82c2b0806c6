"""What a training shows while it runs: a bar on a terminal, plain lines in a file or a notebook."""

import sys
import time

from tqdm import tqdm


class Progress:
    """Steps done, loss, score, crops a second, time left; nothing when it is not wanted.

    A bar redraws itself, which only a terminal shows well: a job's log or an executed notebook gets a line now
    and then.
    """

    def __init__(self, name: str, total: int, done: int, measure: str, wanted: bool):
        self.name, self.total, self.begin, self.measure, self.wanted = name, total, done, measure, wanted
        self.start = time.monotonic()
        self.bar = None
        if wanted and sys.stderr.isatty():
            self.bar = tqdm(total=total, initial=done, desc=name, unit="step")

    def step(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def report(self, done: int, loss: float, score: float, rate: float) -> None:
        """Args: rate: crops a second, of all processes together."""
        facts = {"loss": f"{loss:.3f}", self.measure: f"{score:.4g}", "crops_s": f"{rate:.0f}"}
        if self.bar is not None:
            self.bar.set_postfix(facts, refresh=False)
        elif self.wanted:
            left = (time.monotonic() - self.start) / max(1, done - self.begin) * (self.total - done)
            words = ", ".join(f"{name} {value}" for name, value in facts.items())
            clock = time.strftime("%H:%M:%S", time.gmtime(left)) if left < 86_400 else f"{left / 86_400:.1f} days"
            print(f"{self.name}: step {done} of {self.total}, {words}, {clock} left", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
