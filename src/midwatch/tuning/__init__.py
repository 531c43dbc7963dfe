"""How do I teach it? QLoRA: a base in four bits, a few million new weights, a measured change of behaviour.

recipe.py         one TOML file says everything a run needs
plan.py           how many bytes that takes, before it starts; shapes.py: of which model
base.py           a base by name: pulled, converted, loaded in NF4 with an adapter
convert.py        GGUF to a Hugging Face folder; model_folder.py, tokenizer_files.py, rope_scaling.py: its parts
conversations.py  JSON lines of chat messages in, one clear error per bad line
datasets.py       conversations that we make; facts.py, arithmetic.py, tables/: on what; own_words.py: the base says it
pirate.py         the style's rules; pirate_words.py: its dictionary
encoding.py       the model's own chat template; which tokens the loss counts
packing.py        conversations side by side in rows of equal length
fast.py           how a step computes: layer.py, attention.py, nf4.py, lowrank.py, pointwise.py, offload.py, kernels.py
loss.py           the loss over counted tokens, never a batch's logits
training.py       the run; run_folder.py: what lies where; progress.py, checkpoints.py, card.py: what it leaves
identity.py       which base an adapter belongs to
style.py          how much of a style is in a text; questions.py, suite.py: what is asked to find out
evaluation.py     base, prompted base and tuned side by side; answers.py: who speaks; measures.py, bootstrap.py: figures
report.py         an evaluation as rows, answers and a page; plot.py: its picture
merge.py          adapter and base in one; export.py, gguf_writer.py, gguf_tokenizer.py: as GGUF
"""
