"""Checks of meaning, not only of form: whether what came in, sound as it is, is what it should be.

Each is for one party, before it uses what the other sent, and returns figures with their warnings: `emulator`
for the data owner before tuning, `adapter` for the model owner before the plugged-in model leaves.
"""

from offsite.audit.priming import Start
from offsite.audit.received import EmulatorAudit, emulator
from offsite.audit.returned import AdapterAudit, Losses, Moved, adapter, block_loss
from offsite.audit.weights import Oddity
from offsite.bundles.contents import Parameters

__all__ = [
    "AdapterAudit", "EmulatorAudit", "Losses", "Moved", "Oddity", "Parameters", "Start",
    "adapter", "block_loss", "emulator",
]  # fmt: skip
