"""Run the notebooks of `examples/` and keep what they print and draw: `make examples`."""

import json
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def code_cells(path):
    """The source of each code job, and what it has printed."""
    for job in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if job["job_type"] == "code":
            streams = [o["text"] for o in job["outputs"] if o["output_type"] == "stream"]
            yield "".join(job["source"]), "".join("".join(text) for text in streams)


def run(path):
    """Run a notebook from its first job to its last, and write it with its outputs."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, record_timing=False).execute()
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for place in sorted(EXAMPLES.glob("*.ipynb")):
        run(place)
        print(place)
