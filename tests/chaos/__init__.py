"""Random faults during random operations, and what must hold nevertheless."""
