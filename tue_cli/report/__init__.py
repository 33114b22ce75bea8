"""Pages, charts and previews made from results."""
