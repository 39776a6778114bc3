"""What MkDocs does beside its plugins: pages that lie outside of `docs`, and links to them."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "CITATION.cff",
    "benchmarks/**/*.*",
    "src/softmaxfree/ops/*/README.md",
)


def on_files(files: Files, config: Any) -> Files:
    """Add what keeps its place in the repository: the README as the first page, READMEs of operators, CSVs."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    for path in sorted(path for pattern in PAGES for path in ROOT.glob(pattern)):
        if "__pycache__" not in path.parts:
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make links as they are in the repository fit the site."""
    if page.file.src_uri == "index.md":
        markdown = markdown.replace("](docs/", "](")
    elif page.file.generated_by is not None:
        markdown = markdown.replace("../docs/", "../")
    elif "/" not in page.file.src_uri:  # of `docs`, which is the top of the site
        markdown = markdown.replace("](../", "](")
    return markdown
