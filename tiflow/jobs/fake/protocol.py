"""What source and workers agree on."""

import re
from typing import Final, TypeAlias

Change: TypeAlias = tuple[int, str]  #: revision, value

KEY: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
VALUE_BYTES_MAX: Final = 1 << 10
PAGE: Final = 1_000  #: changes in one answer
BODY_BYTES_MAX: Final = PAGE * (6 * VALUE_BYTES_MAX + 64)  #: of an answer: JSON may take six bytes for one
