"""What one figure of the report is made of."""

from dataclasses import dataclass, field

from matplotlib.figure import Figure


@dataclass
class Drawing:
    """A drawn figure with the words that go beside it."""

    number: str
    """The paper's figure number(s), or a name of our own where the paper has none."""
    slug: str
    """File name without suffix."""
    title: str
    figure: Figure
    look: str
    """What to see in it, and what the null means: true for any model."""
    reading: list[str] = field(default_factory=list)
    """What these models show, in numbers: one sentence each."""
