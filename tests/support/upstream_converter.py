"""Run llama.cpp's own converter on many folders: `python upstream_converter.py LLAMA_CPP JOBS.json`.

A process of its own, because the converter needs the `gguf` package of its own source tree, which differs
from the published one of the same version. JOBS is a list of [folder, out, pre]; `pre` answers for the
pre-tokenizer where the converter's table of hashes cannot know a toy's vocabulary (null: let it look).
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any


def main(llama_cpp: str, jobs: str) -> None:
    sys.path[:0] = [llama_cpp, str(Path(llama_cpp) / "gguf-py")]
    import gguf
    import torch
    from conversion import ModelBase, get_model_class  # type: ignore[import-not-found]

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for folder, out, pre in json.loads(Path(jobs).read_text("utf-8")):
        hparams: dict[str, Any] = ModelBase.load_hparams(Path(folder), False)
        kind = get_model_class(hparams["architectures"][0])
        model: Any = kind(Path(folder), gguf.LlamaFileType.ALL_F32, Path(out))
        if pre is not None:
            model.get_vocab_base_pre = lambda tokenizer, pre=pre: pre
        model.write()


if __name__ == "__main__":
    main(*sys.argv[1:])
