from __future__ import annotations

project = "cvm_migrate"
author = "The cvm_migrate developers"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
# The benchmark writes its table itself; the page about it includes that.
exclude_patterns = ["_build", "explanation/benchmarks"]
html_theme = "furo"
html_title = "cvm_migrate"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
# Types of the standard library and of other packages are named in signatures; their pages are not here, and
# this build must work without a network.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!cvm_migrate).*"),
    (r"py:class", r"cvm_migrate\..*\._.*"),
]
