"""`python -m tests.fuzz`: exit status 1 where anything failed, with the commands that repeat it."""

import argparse
import secrets
import sys

from .parent import Campaign
from .targets import TARGETS


def main() -> int:
    """Parses the command line, runs, sums up; Ctrl-C ends it early."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzzes hvlab's parsers, readers and devices.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long in all (10)")
    parser.add_argument("--seed", type=int, help="seed of the first case of each target; each case has the next one (drawn by lot)")
    parser.add_argument("--only", action="append", choices=sorted(TARGETS), metavar="NAME", help=f"a target: {', '.join(TARGETS)}")
    parser.add_argument("--cases", type=int, help="cases of each target (as many as there is time for)")
    options = parser.parse_args()
    seed = secrets.randbits(40) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    campaign = Campaign(options.only or TARGETS, seed)
    try:
        campaign.run(options.minutes, options.cases)
    except KeyboardInterrupt:
        print("interrupted")
    print(campaign.summary())
    return bool(campaign.failures)


if __name__ == "__main__":
    sys.exit(main())
