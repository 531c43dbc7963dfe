"""How do I teach it? QLoRA: a base in four bits, a few million new weights, a measured change of behaviour.

recipe.py         one TOML file says everything a run needs
conversations.py  JSON lines of chat messages in, one clear error per bad line
encoding.py       the model's own chat template; which tokens the loss counts
packing.py        conversations side by side in rows of equal length
base.py           a base by name: pulled, converted, loaded in NF4
training.py       the run: resume, metrics, checkpoints, the adapter with its card
pirate.py         the style's rules; facts.py, arithmetic.py: what its answers are about
style.py          how much of a style is in a text; suite.py: what is asked to find out
evaluation.py     base, prompted base and tuned side by side; answers.py: who answers
measures.py       the figures; bootstrap.py: how sure they are
report.py         an evaluation as rows, answers and a page; plot.py: its picture
convert.py        GGUF to a Hugging Face folder; export.py: merge and write it back
plan.py           how many bytes a run needs, before it starts
"""
