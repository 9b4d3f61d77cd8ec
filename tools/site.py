"""The parts of the site that come from outside docs/: the changelog, the contributing guide, plots, and the notebook.

mkdocs calls these functions (`hooks` in mkdocs.yml). In the repository the pages link to the files themselves, so that
they read well there too; here these links become links inside the site.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "recipes" / "_results" / "studies"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and images that are made from other files."""
    for plot in sorted(RESULTS.glob("*.png")):
        files.append(File.generated(config, f"plots/{plot.name}", abs_src_path=str(plot)))
    for name in ("CHANGELOG", "CONTRIBUTING"):
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        files.append(File.generated(config, f"{name.lower()}.md", content=text))
    for path in sorted((ROOT / "docs").glob("*.ipynb")):
        if (raw := files.get_file_from_path(path.name)) is not None:
            files.remove(raw)
        page, images = notebook_page(json.loads(path.read_text(encoding="utf-8")), path.stem)
        files.append(File.generated(config, f"{path.stem}.md", content=page))
        for name, content in images.items():
            files.append(File.generated(config, f"plots/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files outside docs/ as links inside the site."""
    markdown = re.sub(r"\]\((?:\.\./)?recipes/_results/studies/", "](plots/", markdown)
    markdown = re.sub(r"\]\((?:\.\./)?(CHANGELOG|CONTRIBUTING)\.md", lambda m: f"]({m[1].lower()}.md", markdown)
    markdown = re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(r"\]\((\w+)\.ipynb", r"](\1.md", markdown)


def notebook_page(notebook: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and the images among its outputs by file name."""
    parts: list[str] = []
    images: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{stem}_{len(images)}.png"
                images[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![Output of the cell above](plots/{name})")
            elif "text/markdown" in data:
                parts.append("".join(data["text/markdown"]))
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", images
