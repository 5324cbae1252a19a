# PixelNet's head on timm's ResNet-50: VOC 2012 + SBD, exp-GB. Needs
# pip install "gbseg[timm]".
#
#   python tools/train.py configs/mm/pixelnet_timm_resnet50.py \
#       --cfg-options model.backbone.weights=weights.safetensors
#
# Without weights the trunk starts at random. timm's own file of resnet50 fits (model.safetensors on its page).
# The trunk has a tenth of the head's rate. Not run in full here.
_base_ = ["_base_/pixelnet_timm.py"]

model = dict(
    backbone=dict(name="resnet50"),
    decode_head=dict(
        in_channels=(64, 256, 512, 1024, 2048),
        strides=(2, 4, 8, 16, 32),
    ),
)
