# PixelNet's head on timm's ViT-S/14, as DINOv2 trains it: VOC 2012 + SBD, exp-GB. Needs
# pip install "gbseg[timm]".
#
#   python tools/train.py configs/mm/pixelnet_timm_dinov2.py \
#       --cfg-options model.backbone.weights=weights.safetensors
#
# Without weights the trunk starts at random. timm's own file of vit_small_patch14_dinov2 fits (model.safetensors on its page).
# The trunk has a tenth of the head's rate. Not run in full here.
# Its maps are those of every third block; 224 x 224 is 16 x 16 patches, and images of any size are taken.
_base_ = ["_base_/pixelnet_timm.py"]

model = dict(
    backbone=dict(
        name="vit_small_patch14_dinov2",
        out_indices=(2, 5, 8, 11),
        options=dict(dynamic_img_size=True, dynamic_img_pad=True),
    ),
    decode_head=dict(
        in_channels=(384, 384, 384, 384),
        strides=(14, 14, 14, 14),
    ),
)
