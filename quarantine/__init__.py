"""Mail held back for a person to look at. Knows nothing of delivery: it can be read when `deliver` is long gone."""
