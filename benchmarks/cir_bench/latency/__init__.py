"""How fast and how steady a bundle answers over a gallery: by stage, end to end, under load, from cold."""
