"""Studies: arms x seeds of one recipe, submitted or run in turn, compared on one page (docs/studies.md)."""
