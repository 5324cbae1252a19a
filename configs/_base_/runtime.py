# What every gbseg config shares: hooks, logs, checkpoints that survive a kill.
default_scope = "mmseg"
custom_imports = dict(imports=["gbseg.mm"])

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    guard=dict(type="NonFiniteGuardHook"),  # stops before a step and a checkpoint with a loss that is not finite
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="DurableCheckpointHook", by_epoch=False, interval=1000, max_keep_ckpts=2),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    progress=dict(type="ProgressHook"),
)

env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl"))
randomness = dict(seed=0)
max_pixels = 2**30  # of an image or a mask; larger ones are refused
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(type="SegLocalVisualizer", vis_backends=vis_backends)
log_processor = dict(by_epoch=False)
log_level = "INFO"
load_from = None
resume = False
