"""What a thin hypervisor would meet on a machine: a verdict for each policy, and each problem with its evidence and its mend.

    from hvcore.doctor import examine
    examine("dmesg.txt")
"""

from .examine import POLICIES, examine
from .records import BLAMES, SEVERITIES, Diagnosis, Problem, Verdict

__all__ = ["BLAMES", "POLICIES", "SEVERITIES", "Diagnosis", "Problem", "Verdict", "examine"]
