"""Any module with two methods as a system: `cir-export my_package.my_module:MyModel --weights w.pt`.

    encode_gallery(images) -> float (n, D)                     rows
    encode_query(images, tokens, lengths) -> float (n, ...)    whatever the query is
    terms(query) -> Terms                                      optional; else the cosine of query and row

and the attribute `image`, its preprocessing as in a bundle's manifest. docs/systems.md has an example.
"""

from cir_export.bring_your_own.loading import is_module_path, load_module

__all__ = ["is_module_path", "load_module"]
