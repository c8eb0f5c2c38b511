"""Run the notebooks of `examples/` and save their outputs: `make examples`."""

import json
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def code_cells(path):
    """Yield the source and the printed text of each code cell."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            streams = [o["text"] for o in cell["outputs"] if o["output_type"] == "stream"]
            yield "".join(cell["source"]), "".join("".join(text) for text in streams)


def run_notebook(path):
    """Run all cells of a notebook and save it with its outputs."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, record_timing=False).execute()
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for notebook_path in sorted(EXAMPLES.glob("*.ipynb")):
        run_notebook(notebook_path)
        print(notebook_path)
