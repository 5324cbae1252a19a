# What the classifiers share: MMPretrain's classifier, hooks, logs and resumable runs as everywhere in gbseg.
_base_ = ["../../_base_/runtime.py"]

default_scope = "mmpretrain"
custom_imports = dict(imports=["gbseg", "gbseg.classifiers", "gbseg.data.array_dataset", "gbseg.engine"])
visualizer = dict(type="UniversalVisualizer")
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator
param_scheduler = None  # the paper's rates are fixed
