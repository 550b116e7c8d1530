"""Where the pictures come from: three public packages, each of one version and with one digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["STYLES", "Package", "Style"]

_REGISTRY = "https://registry.npmjs.org"


@dataclass(frozen=True)
class Package:
    """A package of the npm registry.

    Attributes:
        name: in the registry.
        version: exactly this one.
        size: of its tarball, in bytes.
        sha512: of its tarball in base64, as the registry states it.
    """

    name: str
    version: str
    size: int
    sha512: str

    @property
    def file(self) -> str:
        """The tarball's name."""
        return f"{self.name}-{self.version}.tgz"

    @property
    def url(self) -> str:
        """Where the registry has it."""
        return f"{_REGISTRY}/{self.name}/-/{self.file}"


@dataclass(frozen=True)
class Style:
    """One artist's emoji.

    Attributes:
        name: of the style.
        package: that holds the pictures.
        folder: of them, within the tarball.
        suffix: ".png", or ".svg" where they have to be drawn first.
        licence: of the pictures, an SPDX identifier.
        licence_url: its text.
        credit: whom to name.
    """

    name: str
    package: Package
    folder: str
    suffix: str
    licence: str
    licence_url: str
    credit: str

    def notice(self, size: int) -> str:
        """What lies beside the pictures."""
        return (
            f"These pictures are {self.credit}\n"
            f"Licence: {self.licence}, {self.licence_url}\n"
            f"Source: {self.package.url}\n"
            f"Changed: drawn onto white, {size} pixels a side, and named by their code points without "
            "variation selectors.\n"
        )


STYLES: Mapping[str, Style] = {
    style.name: style
    for style in (
        Style(
            "noto",
            Package(
                "emoji-datasource-google",
                "16.0.0",
                74_344_091,
                "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
            ),
            "package/img/google/64",
            ".png",
            "Apache-2.0",
            "https://www.apache.org/licenses/LICENSE-2.0",
            "Noto Emoji by Google, packed by Cal Henderson's emoji-datasource.",
        ),
        Style(
            "twemoji",
            Package(
                "emoji-datasource-twitter",
                "16.0.0",
                61_683_754,
                "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
            ),
            "package/img/twitter/64",
            ".png",
            "CC-BY-4.0",
            "https://creativecommons.org/licenses/by/4.0/",
            "Twemoji, copyright Twitter, Inc and other contributors, packed by Cal Henderson's "
            "emoji-datasource.",
        ),
        Style(
            "openmoji",
            Package(
                "openmoji",
                "17.0.0",
                4_339_458,
                "EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w==",
            ),
            "package/color/svg",
            ".svg",
            "CC-BY-SA-4.0",
            "https://creativecommons.org/licenses/by-sa/4.0/",
            "OpenMoji, the open-source emoji and icon project of the HfG Schwaebisch Gmuend.",
        ),
    )
}
"""Style -> where its pictures come from. The last one needs the extra `emoji`, which draws them."""
