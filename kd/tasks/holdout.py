"""Which rows of train become validation."""

import hashlib
import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from kd.frozen import Frozen

if TYPE_CHECKING:
    import numpy as np


class Holdout(Frozen):
    """A part of train that becomes validation."""

    fraction: float = Field(gt=0, lt=1)
    """Share of the records of train."""
    seed: int = Field(0, ge=0)
    """Another seed, another part."""
    by: Literal["uid", "position"] = "uid"
    """uid: by a hash of the uid, for any size (the share is approximate). position: the very rows that Hugging Face
    `train_test_split(test_size=fraction, seed=seed)` takes; needs some bytes of memory per record of train."""

    def takes(self, uid: str) -> bool:
        """Whether the row with this uid is held out, by uid."""
        digest = hashlib.sha256(f"{self.seed}/{uid}".encode()).digest()
        return int.from_bytes(digest[:8]) < self.fraction * 2**64

    def positions(self, records: int) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        """For each of so many records of train, whether it is held out, by position.

        Source: `datasets.Dataset.train_test_split`: the first ceil(fraction x n) of a PCG64 permutation are the test set.
        """
        import numpy as np

        held = np.zeros(records, dtype=np.bool_)
        held[np.random.default_rng(self.seed).permutation(records)[: math.ceil(self.fraction * records)]] = True
        return held
