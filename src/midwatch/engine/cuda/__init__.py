"""One CUDA GPU: the decoder in Triton kernels and cuBLAS, one CUDA graph per decode size.

`backend.py` is what the engine sees → `staging.py` a step's integers on the device in one copy → `decoder.py` the
layers → `kernels.py` norm, activation, rotation and cache write, `attention.py` paged attention, `linear.py` matrix
products, `lora.py` adapters → `graphs.py` records decode steps and replays them. `loading.py` fills the weights.
Kernels are Triton, readable and for any CUDA GPU; they also run on CPU tensors under `TRITON_INTERPRET=1`, which is how
they are tested where there is no GPU. Several GPUs are not served here; that is vLLM's work.
"""
