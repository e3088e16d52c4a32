"""What a report shows together: the models at one setting."""

from dataclasses import dataclass

from megasink.analysis.bootstrap import ComparisonRow, FigureIntervals
from megasink.analysis.measured import MeasuredModel
from megasink.analysis.pictures import Picture
from megasink.analysis.tokens import TokenSequences


@dataclass
class Section:
    """What was found at one setting: a sequence length, with or without BOS."""

    sequences: TokenSequences
    models: list[MeasuredModel]
    pictures: list[Picture]
    comparisons: list[list[ComparisonRow]]
    """One for each pair of models that was compared."""
    intervals: list[list[FigureIntervals]]
    """One for each model."""
