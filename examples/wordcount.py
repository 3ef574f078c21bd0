"""Word counts: one task per file, and the merge of what they return.

tiflow job run examples/wordcount.toml --output counts.jsonl
python examples/wordcount.py counts.jsonl
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path


def count_words(path: str) -> dict[str, int]:
    """How often each word stands in the file."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    return dict(Counter(word.lower() for word in re.findall(r"[A-Za-z_]+", text)))


def merge(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of several counts, the most frequent word first."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total.most_common())


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as lines:
        merged = merge(json.loads(line)["value"] for line in lines)
    for word, count in list(merged.items())[:20]:
        print(f"{count:8} {word}")
