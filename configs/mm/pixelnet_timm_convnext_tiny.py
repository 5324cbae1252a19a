# PixelNet's head on timm's ConvNeXt-T: VOC 2012 + SBD, exp-GB. Needs
# pip install "gbseg[timm]".
#
#   python tools/train.py configs/mm/pixelnet_timm_convnext_tiny.py \
#       --cfg-options model.backbone.weights=weights.safetensors
#
# Without weights the trunk starts at random. timm's own file of convnext_tiny fits (model.safetensors on its page).
# The trunk has a tenth of the head's rate. Not run in full here.
_base_ = ["_base_/pixelnet_timm.py"]

model = dict(
    backbone=dict(name="convnext_tiny"),
    decode_head=dict(
        in_channels=(96, 192, 384, 768),
        strides=(4, 8, 16, 32),
    ),
)
