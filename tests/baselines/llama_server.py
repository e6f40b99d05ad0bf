"""llama.cpp's own server with a GGUF file, on loopback: `python -m ... KEY [FILE]`.

Without a file it has the embedded SmolLM2.

Prints its address when it answers and ends with its standard input. One question at a time and no
cache of prompts, so that an answer's probabilities are the same bits whenever it is asked.
"""

import sys

import xllamacpp

from tallrec.assets import fetch


def main(key, model=None):
    parameters = xllamacpp.CommonParams()
    if model is None:
        (model,) = map(str, fetch("smollm2-135m").glob("*.gguf"))
    parameters.model.path = model
    parameters.port = 0
    parameters.api_keys = [key]
    parameters.n_ctx = 2048
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_prompt = False
    parameters.cache_ram_mib = 0
    parameters.warmup = False
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()


main(*sys.argv[1:])
