"""What a model was trained on, in words, by the name that the public repositories give a data set."""

from __future__ import annotations

__all__ = ["domain_of"]

_DOMAINS = {
    "birds": "photographs of birds (Birds-to-Words)",
    "cirr": "everyday photographs (CIRR)",
    "css3d": "rendered scenes of solids (CSS)",
    "emoji": "emoji drawn by artists (Noto, Twemoji, OpenMoji)",
    "fashion200k": "photographs of fashion (Fashion200K)",
    "fashioniq": "photographs of fashion (FashionIQ)",
    "mitstates": "photographs of objects in states (MIT-States)",
    "scenes": "rendered scenes of flat and shaded solids",
    "shoes": "photographs of shoes (Shoes)",
}


def domain_of(data: object) -> str | None:
    """For `domain` of a bundle's provenance: the data in words, None where the name is not known."""
    name = "".join(letter for letter in str(data).lower() if letter.isalnum())
    return next((said for known, said in _DOMAINS.items() if name.startswith(known)), None)
