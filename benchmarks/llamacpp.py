"""llama.cpp as an opponent: rows as sequences that begin alike."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

KINDS = {"bfloat16": "bfloat16", "int8": "q8_0"}  # what tallrec calls them in a GGUF file
SEQUENCES = 32  # rows in a batch, at most


class LlamaCpp:
    """A context of llama.cpp that scores token rows."""

    def __init__(self, path: Path, longest: int) -> None:
        import llama_cpp  # noqa: PLC0415 - only this opponent needs it

        self.api = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model_options = llama_cpp.llama_model_default_params()
        model_options.use_extra_bufts = False  # with its AMX kernels for Q8_0 it crashes here
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_options)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = (SEQUENCES + 1) * longest
        options.n_batch = options.n_ubatch = 2048
        options.n_seq_max = SEQUENCES + 1
        options.n_threads = options.n_threads_batch = torch.get_num_threads()
        options.kv_unified = True  # so that sequences can share cells
        options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def score(self, rows: list[list[int]], yes: int, no: int) -> list[float]:
        """Log-odds after each row: their common beginning once, then rows by the batch."""
        api, scores = self.api, np.zeros(len(rows))
        first, last = min(rows), max(rows)
        pairs = enumerate(zip(first, last, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), 0)
        api.llama_memory_clear(self.memory, True)
        self._decode([(first[:shared], 0, 0)])
        for sequence in range(1, SEQUENCES + 1):
            api.llama_memory_seq_cp(self.memory, 0, sequence, 0, shared)
        order = np.argsort([-len(row) for row in rows], kind="stable")
        own = [len(row) - shared for row in rows]
        # Attention goes over the cells of all sequences, so long rows are quicker one by one.
        most = SEQUENCES if np.mean(own) < shared else 1
        for batch in self._batches(order, own, most):
            ends = self._decode([(rows[i][shared:], s + 1, shared) for s, i in enumerate(batch)])
            for i, end in zip(batch, ends, strict=True):
                logits = np.ctypeslib.as_array(
                    api.llama_get_logits_ith(self.context, end), (self.n_vocab,)
                )
                scores[i] = logits[yes] - logits[no]
            for sequence in range(1, len(batch) + 1):
                api.llama_memory_seq_rm(self.memory, sequence, shared, -1)
        return scores.tolist()

    @staticmethod
    def _batches(order: np.ndarray, own: list[int], most: int) -> Iterator[list[int]]:
        batch: list[int] = []
        tokens = 0
        for i in order.tolist():
            if batch and (len(batch) == most or tokens + own[i] > 2048):
                yield batch
                batch, tokens = [], 0
            batch.append(i)
            tokens += own[i]
        yield batch

    def _decode(self, parts: list[tuple[list[int], int, int]]) -> list[int]:
        """Reads (tokens, sequence, first position); returns where each part ends in the batch."""
        with self._batch(sum(len(tokens) for tokens, _, _ in parts)) as batch:
            n, ends = 0, []
            for tokens, sequence, position in parts:
                for i, token in enumerate(tokens):
                    batch.token[n], batch.pos[n] = token, position + i
                    batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
                    batch.logits[n] = i == len(tokens) - 1
                    n += 1
                ends.append(n - 1)
            batch.n_tokens = n
            if n and self.api.llama_decode(self.context, batch):
                raise RuntimeError("llama.cpp could not read a batch")
        return ends

    @contextmanager
    def _batch(self, size: int) -> Iterator[Any]:
        batch = self.api.llama_batch_init(max(1, size), 0, 1)
        try:
            yield batch
        finally:
            self.api.llama_batch_free(batch)
