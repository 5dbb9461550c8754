"""Further programs: python -m tools.app, tools.export, tools.plot, tools.bench."""
