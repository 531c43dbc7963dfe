"""How does a CPU multiply fastest? One fused step in C, compiled on the machine that runs it.

`backend.py` implements `batch.Backend`; `pack.py` lays weights out as the step reads them; `build.py` compiles. The
C sources are one translation unit: `step.c` (a step as a list of phases) includes `simd.h` (vectors of 16 floats),
`gemm.h` (4- and 8-bit products), `attention.h` (paged attention), `threads.h` (who does which item) and `pack.h`.
"""
