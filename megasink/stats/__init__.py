"""Sink statistics, exact on any layout: taps in, one reduction, one report out. No engine is known here."""
