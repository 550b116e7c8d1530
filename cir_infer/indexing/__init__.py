"""From a catalogue of images to a gallery: sources, decoding workers, the indexing run itself."""
