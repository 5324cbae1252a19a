# PixelNet as its authors built it: VGG-16 with fc6 and fc7 as convolutions, six taps (5568 channels), an MLP of 4096-4096.
model = dict(
    type="PixelNet",
    # the trunk normalises its input itself, as its weights want it
    data_preprocessor=dict(type="SegDataPreProcessor", size_divisor=1, pad_val=0, seg_pad_val=255),
    backbone=dict(
        type="VGG16Trunk", taps=("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3", "fc7"), weights="torchvision"
    ),  # fetched by torchvision; or the path of a .pth or .safetensors
    decode_head=dict(
        type="PixelNetHead",
        in_channels=(64, 128, 256, 512, 512, 4096),
        strides=(1, 2, 4, 8, 16, 32),
        hidden=(4096, 4096),
        dropout=0.5,
        num_classes=21,
        sampler=dict(type="UniformPixelSampler", num=2000),
        loss_decode=dict(type="ExpGBLoss"),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole", input=(224, 224)),
)  # input='original' predicts at the original size
