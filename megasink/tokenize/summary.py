"""What a run of the writer did, in numbers for the manifest and in a line for the user."""

from dataclasses import dataclass, field

from megasink.tokenize.parts import Counts


@dataclass
class Summary:
    """Counts over a whole corpus (or, for one --shard, its part of it).

    Attributes:
        outputs: output name -> (documents, tokens) written.
        documents, tokens, text_bytes, longest: of the documents tokenized, before de-duplication; longest in tokens.
        empty, bad, duplicates: documents left out.
        library: what tokenized.
        found: the outputs were there already.
        made_bytes, made_tokens, seconds: the work of this process alone (units finished earlier do not count).
    """

    outputs: dict[str, tuple[int, int]] = field(default_factory=dict)
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    longest: int = 0
    empty: int = 0
    bad: int = 0
    duplicates: int = 0
    library: str = ""
    found: bool = False
    made_bytes: int = 0
    made_tokens: int = 0
    seconds: float = 0.0

    def add(self, counts: Counts, made_now: bool) -> None:
        """Add one unit's counts."""
        tokens = sum(counts.tokens.values())
        self.documents += sum(counts.documents.values())
        self.tokens += tokens
        self.text_bytes += counts.text_bytes
        self.longest = max(self.longest, counts.longest)
        self.empty += counts.empty
        self.bad += counts.bad
        if made_now:
            self.made_bytes += counts.text_bytes
            self.made_tokens += tokens

    def counts(self) -> dict[str, int | str]:
        """What a manifest keeps of it: all but the outputs and this process's work."""
        names = ("documents", "tokens", "text_bytes", "longest", "empty", "bad", "duplicates", "library")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        per_token = self.text_bytes / self.tokens if self.tokens else 0.0
        lines = [
            f"tokenized    {self.documents:,} documents, {self.text_bytes / 1e6:,.1f} MB of text, {self.tokens:,} "
            f"tokens ({self.library}); {per_token:.2f} bytes/token, longest {self.longest:,} tokens",
            f"left out     {self.empty:,} empty, {self.bad:,} unreadable, {self.duplicates:,} duplicates",
        ]
        if self.made_bytes and self.seconds:
            lines.append(
                f"took         {self.seconds:.1f} s, start included: {self.made_bytes / self.seconds / 1e6:.1f} MB/s, "
                f"{self.made_tokens / self.seconds / 1e6:.2f} M tokens/s"
            )
        for name, (documents, tokens) in self.outputs.items():
            verb = "found" if self.found else "wrote"
            lines.append(f"{verb}        {name}.bin and .idx: {documents:,} documents, {tokens:,} tokens")
        if not self.outputs:
            lines.append("no output    yet: run again with --merge when every shard is done")
        return "\n".join(lines)
